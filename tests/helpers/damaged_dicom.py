"""Damaged DICOM files: for tests that try many.

python damaged_dicom.py <folder> <files> <seed>   damage a file at a time, read its series, print what came out as JSON
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

from pipeline.core.errors import VolsegError
from pipeline.data.volumes import read_image

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


def outcome(source: Path) -> dict[str, Any]:
    """What reading a series came to."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        found["image"] = hashlib.sha256(np.ascontiguousarray(read_image(source, case="c").array)).hexdigest()[:16]
    except VolsegError as error:
        found["image"] = f"refused: {error}"
    except BaseException as error:
        found["image"] = f"{type(error).__name__}: {error}"
    found["seconds"] = round(time.monotonic() - began, 2)
    return found


def main(home: Path, number: int, seed: int) -> list[dict[str, Any]]:
    """Damage one file of a series at a time, and put it back."""
    series = good_series(home)
    found = []
    for n in range(number):
        chance, source = random.Random(f"{seed} {n}"), series[n % len(series)]
        # Of a series any slice but the first one, too: its place among the others matters.
        file = chance.choice(sorted(source.iterdir())) if source.is_dir() else source
        content = file.read_bytes()
        head = content[:132] if chance.random() < 0.8 else b""  # behind the mark, or else few are looked at
        file.write_bytes(head + damaged(content[len(head) :], chance))
        found.append({"number": n, "source": str(source), **outcome(source)})
        file.write_bytes(content)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    outcomes = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # Not ru_maxrss, which begins with the memory of the process that started this one.
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
    sys.stdout.write(json.dumps({"outcomes": outcomes, "peak_kb": peak, "secret": SECRET}))
