"""Synthetic fundus photographs in the folder layout of Drishti-GS1: disc and cup with soft maps of four experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core import ConfigError, VolsegError, sentence
from pipeline.data.itk import read_picture, write_picture
from pipeline.phantom.fundus_eye import Eye, Outline, draw_eye, signed_distance
from pipeline.phantom.fundus_photo import photograph

__all__ = ["EXPERTS", "FUNDUS_SIZE", "fundus_case", "write_fundus"]

FUNDUS_SIZE = (512, 384)
"""Pixels along x and y."""

EXPERTS = 4
"""How many outlines a soft map averages."""

_TEST_START = 500  # index of the first test case, so that it does not depend on how many train
_SPREAD = (0.015, 0.025)  # SD of an expert's bias in the radius of disc and cup, as a share of it
_MASKS = ("ODsegSoftmap", "cupsegSoftmap")


def fundus_case(index: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Make one photograph; the same arguments give the same pixels, however many others are made.

    Args:
        index: Number of the case, at least 0.
        seed: Seed of the dataset, at least 0.

    Returns:
        Photograph (H, W, 3), and the soft maps of disc and cup (H, W): 0, 64, 128, 191 or 255 for 0 to 4 experts.
    """
    eye = draw_eye(FUNDUS_SIZE, np.random.default_rng([seed, index, 0]))
    photo = photograph(eye, np.random.default_rng([seed, index, 1]))
    experts = np.random.default_rng([seed, index, 2])
    return photo, *_soft_maps(eye, experts)


def write_fundus(
    out: Path,
    *,
    cases: int = 50,
    tests: int = 51,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a dataset of synthetic fundus photographs, laid out as Drishti-GS1.

    Args:
        out: Folder of the dataset; created, or filled again with the same files.
        cases: Images in ``Training``, 1 to 500.
        tests: Images in ``Test``, 0 to 500.
        seed: Seed of the dataset, at least 0.
        progress: Called after each case with the number of cases done and of all cases.

    Returns:
        The folder.

    Raises:
        ConfigError: If arguments are out of range.
        VolsegError: If the folder holds other files, or cannot be written to.
    """
    out = Path(out)
    rules = (
        ("cases", 1 <= cases <= _TEST_START, f"1 to {_TEST_START}", cases),
        ("tests", 0 <= tests <= _TEST_START, f"0 to {_TEST_START}", tests),
        ("seed", seed >= 0, "at least 0", seed),
    )
    problems = [sentence(what, rule, got, "Change it") for what, fine, rule, got in rules if not fine]
    if problems:
        raise ConfigError(problems, "phantom")
    work = {index: _files(out, index, "Training", "GT") for index in range(cases)}
    work |= {index: _files(out, index, "Test", "Test_GT") for index in range(_TEST_START, _TEST_START + tests)}
    _require_no_strangers(out, {file for files in work.values() for file in files})
    there = next((index for index, files in work.items() if files[0].is_file()), None)
    if there is not None and not np.array_equal(read_picture(work[there][0]), fundus_case(there, seed)[0]):
        rule, got = "an empty folder or photographs of the same seed", "others"
        raise VolsegError(f"{out}: expected {rule}, got {got}. Choose another folder or empty this one.")
    for done, (index, files) in enumerate(work.items(), start=1):
        for file, pixels in zip(files, fundus_case(index, seed), strict=True):
            write_picture(pixels, file)
        if progress is not None:
            progress(done, len(work))
    return out


def _files(out: Path, index: int, part: str, references: str) -> tuple[Path, ...]:
    name = f"fundus_{index:03d}"
    maps = out / part / references / name / "SoftMap"
    return out / part / "Images" / f"{name}.png", *(maps / f"{name}_{mask}.png" for mask in _MASKS)


def _require_no_strangers(out: Path, expected: set[Path]) -> None:
    strangers = sorted(file for file in out.rglob("[!.]*") if file.is_file() and file not in expected)
    if strangers:
        raise VolsegError(
            f"{out}: expected an empty folder or the same phantom dataset, got {len(strangers)} other files such as "
            f"{strangers[0].relative_to(out)}. Choose another folder or empty this one."
        )


def _soft_maps(eye: Eye, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Share of experts whose outline holds a pixel, as grey level; an expert's cup lies in that expert's disc."""
    votes = np.zeros((2, eye.size[1], eye.size[0]), np.uint8)
    reach = 1.5 * eye.disc.radii.max()  # no expert draws further out
    x, y = eye.disc.centre
    box = (slice(max(0, int(y - reach)), int(y + reach)), slice(max(0, int(x - reach)), int(x + reach)))
    for _ in range(EXPERTS):
        disc, cup = (
            signed_distance(_opinion(outline, spread, rng), eye.size, box) < 0
            for outline, spread in zip((eye.disc, eye.cup), _SPREAD, strict=True)
        )
        votes[:, *box] += np.stack([disc, cup & disc])
    disc_map, cup_map = np.rint(votes * (255 / EXPERTS)).astype(np.uint8)
    return disc_map, cup_map


def _opinion(outline: Outline, spread: float, rng: np.random.Generator) -> Outline:
    """An expert's outline: a little larger or smaller, shifted and of another shape."""
    radius = float(np.mean(outline.radii))
    shift = rng.normal(0.0, 0.5 * spread * radius, 2)
    factors = 1.0 + rng.normal(0.0, spread) + rng.normal(0.0, 0.5 * spread, 2)
    waves = outline.waves + rng.normal(0.0, 0.3 * spread, outline.waves.shape)
    return Outline(outline.centre + shift, outline.radii * factors, outline.angle + rng.normal(0.0, 0.05), waves)
