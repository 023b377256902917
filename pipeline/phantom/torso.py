"""The phantom dataset: CT-like or MR-like torsos with ten organs, as a folder in nnU-Net's raw layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core.errors import require_arguments
from pipeline.core.files import OutputFolder, write_json
from pipeline.core.labels import LabelTable
from pipeline.core.signals import Progress, silent
from pipeline.core.volume import Case, Image, LabelMap
from pipeline.data.nifti import write_nifti
from pipeline.data.volumes import write_label_map
from pipeline.phantom.anatomy import ORGANS
from pipeline.phantom.body import draw_body, draw_grid
from pipeline.phantom.render import render
from pipeline.phantom.tissue import draw_scanner

TEST_START = 1000
"""Index of the first test case, so that test cases do not depend on how many training cases there are."""

_STREAMS = {"body": 0, "grid": 1, "ct": 2, "mr": 3}  # the same patient and grid whatever the contrast
_SUFFIX = ".nii.gz"


def phantom_labels() -> LabelTable:
    """Label table of the phantom: ten organs, values 1 to 10."""
    return LabelTable(dict(enumerate(ORGANS, start=1)))


def phantom_case(
    index: int, seed: int = 0, contrast: Literal["ct", "mr"] = "ct", size: Literal["small", "full"] = "small"
) -> Case:
    """Make one case; the same arguments give the same case, however many others are made.

    Args:
        index: Number of the case, at least 0.
        seed: Seed of the dataset, at least 0.
        contrast: ``"ct"`` (HU) or ``"mr"`` (T1-like signal, bias field, Rician noise, arbitrary scale). The same index
            and seed give the same patient on the same grid in both.
        size: ``"small"`` (about 1 million voxels) or ``"full"`` (512 x 512 x 60 to 300; takes ten seconds and
            1 GB).

    Returns:
        Case with an image of one channel, whole numbers as float32, and its reference, in one of several orientations.
        An organ outside the field of view is not in the reference.

    Raises:
        ConfigError: If an argument is none of those named.
    """
    _check(index=index, seed=seed, contrast=contrast, size=size)
    # A stream for each kind of draw: more draws of one kind change nothing of the others.
    rng = {name: np.random.default_rng([seed, index, stream]) for name, stream in _STREAMS.items()}
    body = draw_body(rng["body"])
    grid, orientation = draw_grid(body, index, seed, size, rng["grid"])
    intensities, labels = render(body, draw_scanner(contrast, rng[contrast]), grid, rng[contrast])
    image = Image(intensities[None], grid).reoriented(orientation)
    reference = LabelMap(labels, grid).reoriented(orientation)
    return Case(case_id(index), image, reference, {"contrast": contrast, "seed": str(seed), "size": size})


def case_id(index: int) -> str:
    """Name of a case, e.g. ``phantom_007``."""
    return f"phantom_{index:03d}"


def write_phantom(
    out: Path,
    *,
    cases: int = 24,
    tests: int = 8,
    seed: int = 0,
    contrast: Literal["ct", "mr"] = "ct",
    size: Literal["small", "full"] = "small",
    progress: Progress = silent,
) -> Path:
    """Write a phantom dataset in nnU-Net's raw layout.

    Args:
        out: Folder of the dataset; created, or filled again with the same files.
        cases: Training cases (``imagesTr``, ``labelsTr``), 1 to 1000.
        tests: Test cases with references (``imagesTs``, ``labelsTs``), at least 0.
        seed: Seed of the dataset, at least 0.
        contrast: ``"ct"`` or ``"mr"``.
        size: ``"small"`` or ``"full"``.
        progress: Told after every case.

    Returns:
        The folder.

    Raises:
        ConfigError: If arguments are out of range.
        VolsegError: If the folder holds cases of another dataset, or cannot be written to.
    """
    out = Path(out)
    _check(seed=seed, contrast=contrast, size=size, cases=cases, tests=tests)
    # Test cases have indices of their own: they stay the same however many train.
    work = [(index, "Tr") for index in range(cases)] + [(TEST_START + index, "Ts") for index in range(tests)]
    description = _description(cases, tests, seed, contrast, size)
    folder = OutputFolder(out, "dataset.json", {key: description[key] for key in _KIND})
    files = {file for index, part in work for file in _files(out, case_id(index), part)}
    folder.require_only(files | {folder.record}, "an empty folder or the same phantom dataset")
    folder.require_own("phantoms of the same contrast, size and seed")
    write_json(folder.record, description)
    for done, (index, part) in enumerate(work, start=1):
        case = phantom_case(index, seed, contrast, size)
        image, label = _files(out, case.id, part)
        write_nifti(case.image.array[0].astype(np.int16), case.image.grid, image)  # as scanners store it
        if case.reference is not None:
            write_label_map(case.reference, label)
        progress(done, len(work), "phantom")
    return out


_KIND = ("name", "phantom")


def _files(out: Path, case: str, part: str) -> tuple[Path, Path]:
    return out / f"images{part}" / f"{case}_0000{_SUFFIX}", out / f"labels{part}" / f"{case}{_SUFFIX}"


def _description(cases: int, tests: int, seed: int, contrast: str, size: str) -> dict[str, object]:
    return {
        "name": f"phantom_{contrast}",
        "description": "Synthetic torsos with ten organs; no patient data.",
        "channel_names": {"0": contrast.upper()},
        "labels": {"background": 0, **{name: value for value, name in phantom_labels().names.items()}},
        "numTraining": cases,
        "numTest": tests,
        "file_ending": _SUFFIX,
        "phantom": {"seed": seed, "size": size},
    }


def _check(
    *, index: int = 0, seed: int = 0, contrast: str = "ct", size: str = "small", cases: int = 1, tests: int = 0
) -> None:
    """Raise one ConfigError with everything that is wrong."""
    require_arguments(
        "phantom",
        ("index", index >= 0, "at least 0", index),
        ("seed", seed >= 0, "at least 0", seed),
        ("contrast", contrast in ("ct", "mr"), "ct or mr", contrast),
        ("size", size in ("small", "full"), "small or full", size),
        ("cases", 1 <= cases <= TEST_START, f"1 to {TEST_START}", cases),
        ("tests", tests >= 0, "at least 0", tests),
    )
