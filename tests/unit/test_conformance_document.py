"""The DICOM conformance statement says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pydicom
from dicom_readers import segmented, series, write
from pydicom.uid import UID

from pipeline.core.labels import LabelTable
from pipeline.data.dicom_pixels import DECODED
from pipeline.data.organ_codes import PRIVATE_SCHEME
from pipeline.export.dicom_objects import KINDS
from pipeline.export.dicom_source import _IMAGE, _PATIENT_AND_STUDY

PAGE = (Path(__file__).parents[2] / "docs" / "dicom_conformance.md").read_text(encoding="utf-8")
UIDS = [tuple(line.split("|")[1:4]) for line in PAGE.splitlines() if re.search(r"\| 1\.2\.840\.[0-9.]+ \|", line)]
NAMED = {uid.strip(): (name.strip(), last.strip()) for name, uid, last in UIDS}
SYNTAXES = {uid for uid in NAMED if UID(uid).type == "Transfer Syntax"}


def test_the_transfer_syntaxes_are_those_that_are_decoded() -> None:
    assert SYNTAXES == DECODED
    # Names are shortened, but of the same words.
    for uid in SYNTAXES:
        words = set(re.findall(r"[A-Za-z]{3,}|\d+", NAMED[uid][0]))
        assert words <= set(re.findall(r"[A-Za-z]{3,}|\d+", UID(uid).name)), uid


def test_every_class_that_is_written_is_named_with_its_numbers(tmp_path: Path) -> None:
    case = segmented(series(tmp_path / "s"), None, LabelTable({1: "liver", 2: "unheard of"}))
    files = write(case, tmp_path / "a", *KINDS) | {
        "map": write(case, tmp_path / "b", "seg", seg_type="labelmap")["seg"]
    }
    for kind, path in files.items():
        written = pydicom.dcmread(path)
        assert written.SOPClassUID in NAMED
        assert written.file_meta.TransferSyntaxUID in SYNTAXES
        number = int(written.SeriesNumber) - 700
        assert f"100 N + {number}" in PAGE
        assert written.Modality in PAGE
        assert written.SeriesDescription in PAGE
        if kind == "seg":
            assert written.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator in PAGE
    assert PRIVATE_SCHEME in PAGE


def test_the_elements_that_are_copied_are_all_named() -> None:
    copied = set(_PATIENT_AND_STUDY) | {"PositionReferenceIndicator", "LossyImageCompression"}
    assert [name for name in sorted(copied) if f"`{name}`" not in PAGE] == []
    assert set(_IMAGE) - copied == {
        "LossyImageCompressionMethod",
        "LossyImageCompressionRatio",
        "RescaleType",
        "Units",
    }
