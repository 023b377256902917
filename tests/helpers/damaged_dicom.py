"""Damaged DICOM files: for tests that try many.

python damaged_dicom.py <folder> <files> <seed>   damage a file at a time, read its series, print what came out as JSON

A series, an archive, a DICOMDIR, SEG and RTSTRUCT take turns.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from damaged import damaged
from generated_dicom import JPEG_LOSSLESS, SECRET, compressed, enhanced, make_slices, save
from generated_labels import make_rtstruct, make_seg

from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.dicom_labels import Meaning
from pipeline.data.volume_file import labels_source
from pipeline.data.volumes import read_image, read_label_map

SYNTAXES = {
    "plain": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "big": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpegls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "jpeg": JPEG_LOSSLESS,
}


def good_series(folder: Path) -> list[Path]:
    """A series of three slices in every syntax, one file of three frames, an archive and a DICOMDIR."""
    from pydicom.fileset import FileSet

    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(-500, 500, (3, 36, 40)).astype(np.int16)
    found = []
    for name, syntax in SYNTAXES.items():
        slices = make_slices(array, slopes=[1.0, 2.0, 1.0], intercepts=[0.0, 1.0, 2.0])
        found.append(save([compressed(one, syntax, folder) for one in slices], folder / name))
    slices = make_slices(array, slopes=[1.0] * 3, intercepts=[0.0] * 3)
    found.append(save([enhanced(slices, (2, 0, 1))], folder / "enhanced"))
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "plain").iterdir()):
            archive.write(file, f"a/{file.name}")
    files = FileSet()
    for one in make_slices(array, StudyDate="20200101", StudyTime="120000"):
        files.add(one)
    files.write(folder / "disc")
    (folder / "jpeg.dcm").unlink()
    return [*found, folder / "archive.zip", folder / "disc" / "DICOMDIR"]


def good_labels(folder: Path) -> dict[Path, Path]:
    """SEG and RTSTRUCT of the plain series: file → the source of a label map."""
    slices = make_slices(np.zeros((3, 36, 40), np.int16))
    masks = {"liver": np.zeros((3, 36, 40), bool), SECRET: np.zeros((3, 36, 40), bool)}
    masks["liver"][:, 4:20, 5:30], masks[SECRET][1:, 22:30, 5:30] = True, True
    masks["liver"][1, 8:12, 9:12] = False
    shares = {name: mask * 0.7 for name, mask in masks.items()}
    made = {
        "binary": make_seg(slices, masks),
        "fractional": make_seg(slices, shares, "FRACTIONAL"),
        "labelmap": make_seg(slices, masks, "LABELMAP", transfer_syntax_uid=SYNTAXES["rle"]),
        "rtstruct": make_rtstruct(slices, masks),
    }
    meaning = Meaning(LabelTable({1: "liver"}), (folder / "plain",))
    found = {}
    for name, one in made.items():
        one.save_as(folder / f"{name}.dcm", enforce_file_format=True)
        found[folder / f"{name}.dcm"] = labels_source(folder / f"{name}.dcm", meaning.to_json(folder))
    return found


def outcome(source: Path, label: Path | None) -> dict[str, Any]:
    """What reading a series, or labels, came to."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        array = read_image(source, case="c").array if label is None else read_label_map(label, case="c").array
        found["image"] = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]
    except VolsegError as error:
        found["image"] = f"refused: {error}"
    except BaseException as error:
        found["image"] = f"{type(error).__name__}: {error}"
    found["seconds"] = round(time.monotonic() - began, 2)
    return found


def main(home: Path, number: int, seed: int) -> list[dict[str, Any]]:
    """Damage one file of a series at a time, and put it back."""
    labels: dict[Path, Path | None] = {**dict.fromkeys(good_series(home)), **good_labels(home)}
    series = list(labels)
    found = []
    for n in range(number):
        chance, source = random.Random(f"{seed} {n}"), series[n % len(series)]
        # Of a series any slice but the first one, too: its place among the others matters.
        file = chance.choice(sorted(source.iterdir())) if source.is_dir() else source
        content = file.read_bytes()
        head = content[:132] if chance.random() < 0.8 else b""  # behind the mark, or else few are looked at
        file.write_bytes(head + damaged(content[len(head) :], chance))
        found.append({"number": n, "source": str(source), **outcome(source, labels[source])})
        file.write_bytes(content)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    outcomes = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # Not ru_maxrss, which begins with the memory of the process that started this one.
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
    sys.stdout.write(json.dumps({"outcomes": outcomes, "peak_kb": peak, "secret": SECRET}))
