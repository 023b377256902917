"""Measurements: the numbers of the mask and of the image, of the organs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_readers import KIDNEYS, measured, segmented, series, sided, valid, write
from generated_dicom import make_slices, save

from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.export.dicom_source import Maker


def test_volumes_are_those_of_the_mask_and_means_those_of_the_image(tmp_path: Path) -> None:
    path = series(tmp_path / "s", (6, 5, 7), slopes=[2.0] * 6, intercepts=[-100.0] * 6)
    case = segmented(path)
    found = measured(write(case, tmp_path, "sr")["sr"])
    assert list(found) == ["kidney_left", "kidney_right"]
    image = open_series(path).image().array[0]
    for value, name in ((1, "kidney_left"), (2, "kidney_right")):
        there = case.label_map.array == value
        # 1 x 1 x 2 mm are 0.002 mL.
        assert found[name]["Volume"] == (pytest.approx(np.count_nonzero(there) * 0.002), "mL")
        assert found[name]["Attenuation Coefficient"] == (pytest.approx(image[there].mean()), "[hnsf'U]")


def test_only_what_is_there_is_reported_but_all_where_nothing_is(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    one = sided(open_series(path).grid)
    left = LabelMap(np.where(one.array == 1, 1, 0).astype(np.uint8), one.grid)
    assert list(measured(write(segmented(path, left), tmp_path / "a", "sr")["sr"])) == ["kidney_left"]
    nothing = LabelMap(np.zeros(one.grid.shape, np.uint8), one.grid)
    empty = measured(write(segmented(path, nothing), tmp_path / "b", "sr")["sr"])
    assert {name: numbers["Volume"][0] for name, numbers in empty.items()} == {"kidney_left": 0, "kidney_right": 0}


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({"Modality": "MR"}, "MR signal intensity"),
        ({"Modality": "CT", "RescaleType": "HU"}, "Attenuation Coefficient"),
        ({"Modality": "CT", "RescaleType": "US"}, None),
        ({"Modality": "PT"}, None),
    ],
)
def test_a_mean_is_told_where_its_unit_is_known(tags: dict[str, str], name: str | None, tmp_path: Path) -> None:
    found = measured(write(segmented(series(tmp_path / "s", **tags)), tmp_path, "sr")["sr"])
    assert set(found["kidney_left"]) == {"Volume", *([name] if name else [])}


def test_a_report_refers_to_the_segments_and_names_side_and_site(tmp_path: Path) -> None:
    files = write(segmented(series(tmp_path / "s")), tmp_path, "sr")
    report, seg = pydicom.dcmread(files["sr"]), pydicom.dcmread(files["seg"])
    groups = hd.sr.srread(files["sr"]).content.get_volumetric_roi_measurement_groups()
    for group, segment in zip(groups, seg.SegmentSequence, strict=True):
        reference = group.referenced_segment[0].ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == segment.SegmentNumber
        assert group.tracking_uid == segment.TrackingUID
        (site,) = group.finding_sites
        assert (site.value.meaning, site.laterality.meaning) == (
            "Kidney",
            segment.SegmentLabel.removeprefix("kidney_").capitalize(),
        )
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = [len(one.ReferencedSOPSequence) for one in study.ReferencedSeriesSequence]
    assert listed == [1, 5]
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_parts_of_the_hippocampus_are_sites_with_a_part(tmp_path: Path) -> None:
    path = series(tmp_path / "s", Modality="MR")
    files = write(segmented(path, table=LabelTable({1: "Anterior", 2: "Posterior"})), tmp_path, "sr")
    groups = hd.sr.srread(files["sr"]).content.get_volumetric_roi_measurement_groups()
    sites = [group.finding_sites[0] for group in groups]
    assert [site.topographical_modifier.meaning for site in sites] == ["Anterior", "Posterior"]


def test_volumes_of_tilted_and_of_missing_slices_are_those_of_the_straightened_volume(tmp_path: Path) -> None:
    tilted = save(make_slices(np.zeros((6, 9, 7), np.int16), step=(0.0, 0.7, 2.0)), tmp_path / "t")
    gaps = series(tmp_path / "g", (7, 4, 6))
    (gaps / "IM00003").unlink()
    for source in (tilted, f"{gaps}#series=any+gaps"):
        case = segmented(source)
        found = measured(write(case, tmp_path / Path(source).name, "sr")["sr"])
        expected = case.label_map.volumes_ml()
        assert [found[name]["Volume"][0] for name in found] == pytest.approx([expected[1], expected[2]])


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_dciodvfy_finds_no_error(modality: str, manual: bool, tmp_path: Path) -> None:
    table = LabelTable({1: "kidney_cyst_left", 2: "something else"}) if manual else KIDNEYS
    maker = Maker("manual", "unknown", "manual", manual) if manual else Maker()
    path = series(tmp_path / "s", Modality=modality)
    valid(write(segmented(path, None, table, maker=maker), tmp_path, "sr")["sr"])


def test_numbers_of_many_digits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"spacing_mm": (0.123456789, 0.987654321, 1.234567891)}
    case = segmented(series(tmp_path / "s", **options))
    found = measured(write(case, tmp_path, "sr")["sr"])
    assert found["kidney_left"]["Volume"][0] == pytest.approx(case.label_map.volumes_ml()[1], rel=1e-9)
