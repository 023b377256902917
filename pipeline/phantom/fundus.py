"""Synthetic fundus photographs in the folder layout of Drishti-GS1: disc and cup with soft maps of four experts.

:func:`photograph` turns an eye into its picture: colours, illumination, vessels, distractors, blur and noise.
:func:`write_fundus` writes the dataset.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.core.errors import require_arguments
from pipeline.core.files import OutputFolder
from pipeline.core.grid import Box
from pipeline.core.signals import Progress, silent
from pipeline.data.itk import write_picture
from pipeline.data.itk_open import read_picture
from pipeline.phantom.fundus_eye import (
    Eye,
    Outline,
    Plane,
    Vector,
    draw_eye,
    draw_vessels,
    outline_angle,
    signed_distance,
)

Photo = NDArray[np.float32]
"""(H, W, 3), 0 to 1."""

_Colour = tuple[float, float, float] | NDArray[np.float64]

_RETINA = (0.72, 0.33, 0.13)
_RIM = (0.93, 0.62, 0.34)
_CUP = (1.0, 0.86, 0.60)
_CRESCENT = (0.92, 0.68, 0.42)
_EXUDATE = (0.98, 0.86, 0.48)
_MACULA = (0.28, 0.05, 0.03)
_BLOOD = (0.45, 0.12, 0.07)
_ARTERY = (0.10, 0.42, 0.40)  # share of light that a vessel takes
_VEIN = (0.24, 0.60, 0.52)


def photograph(eye: Eye, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Photograph (H, W, 3) of an eye."""
    photo = _retina(eye, rng)
    _add_crescent(photo, eye, rng)
    _add_spots(photo, eye, rng)
    _add_disc(photo, eye, rng)
    for covered, taken in zip(draw_vessels(eye, rng), (_ARTERY, _VEIN), strict=True):
        photo *= 1.0 - covered[..., None] * np.array(taken, np.float32) * np.float32(rng.uniform(0.75, 1.1))
    return _exposed(photo, eye, rng)


def _retina(eye: Eye, rng: np.random.Generator) -> Photo:
    """Reddish background with choroidal texture and the darker macula."""
    tint = np.array(_RETINA) * (1.0 + rng.normal(0.0, (0.05, 0.10, 0.15)))
    texture = 0.035 * _noise(eye.size, 10, rng) + 0.022 * _noise(eye.size, 60, rng)
    photo = ((1.0 + texture)[..., None] * tint).astype(np.float32)
    radius = float(eye.disc.radii.mean())
    macula = eye.disc.centre + radius * np.array([eye.temporal * rng.uniform(4.2, 5.2), rng.uniform(0.1, 0.9)])
    _blob(photo, macula, radius * rng.uniform(0.9, 1.4), _MACULA, rng.uniform(0.2, 0.5))
    return photo


def _add_crescent(photo: Photo, eye: Eye, rng: np.random.Generator) -> None:
    """Peripapillary atrophy: a pale crescent beside the disc, mostly on the temporal side."""
    if rng.random() < 0.75:
        return
    radius = float(eye.disc.radii.mean())
    towards = (0.0 if eye.temporal > 0 else np.pi) + rng.normal(0.0, 0.5)
    wide = radius * rng.uniform(0.15, 0.4)
    around = np.clip(np.cos(outline_angle(eye.disc, eye.size) - towards), 0.0, 1.0) ** rng.uniform(0.6, 1.6)
    outside = signed_distance(eye.disc, eye.size)
    reach = wide * around * (1.0 + 0.25 * _noise(eye.size, 30, rng))
    alpha = rng.uniform(0.5, 0.9) * _soft(outside - reach, rng.uniform(1.5, 4.0)) * (around > 0)
    _blend(photo, alpha * (1.0 - 0.3 * np.clip(_noise(eye.size, 60, rng), 0.0, 1.0)), _CRESCENT)


def _add_disc(photo: Photo, eye: Eye, rng: np.random.Generator) -> None:
    """The disc with a soft border, and the cup, which slopes gently into the rim on one side."""
    size = eye.size
    disc, cup = signed_distance(eye.disc, size), signed_distance(eye.cup, size)
    rim = np.array(_RIM) * (1.0 + rng.normal(0.0, (0.02, 0.05, 0.08)))
    _blend(photo, rng.uniform(0.8, 0.95) * _soft(disc, rng.uniform(1.0, 2.0)), rim)
    theta = outline_angle(eye.cup, size) - rng.uniform(0.0, 2.0 * np.pi)
    vague = 0.5 + 0.5 * np.cos(theta)  # 1 where the cup slopes gently into the rim
    softness = 1.0 + vague * rng.uniform(0.3, 0.05 * float(eye.cup.radii.mean()) + 0.8)
    inside = 1.0 / (1.0 + np.exp(np.clip(cup / softness, -30.0, 30.0)))
    _blend(photo, rng.uniform(0.8, 0.98) * inside * (1.0 - 0.1 * vague), _CUP)
    pores = np.clip(_noise(size, 110, rng), 0.0, 2.0) * _soft(cup + 0.3 * float(eye.cup.radii.mean()), 3.0)
    photo *= (1.0 - 0.05 * pores)[..., None]
    halo = np.exp(-np.clip(disc, 0.0, None) / (0.8 * float(eye.disc.radii.mean())))  # light scattered by the disc
    photo *= (1.0 + rng.uniform(0.02, 0.14) * halo)[..., None].astype(np.float32)


def _add_spots(photo: Photo, eye: Eye, rng: np.random.Generator) -> None:
    """Distractors: clusters of exudates, a pale scar, bleedings."""
    radius = float(eye.disc.radii.mean())
    for _ in range(rng.integers(0, 4)):
        home = _away(eye, rng)
        for _ in range(rng.integers(3, 14)):
            place = home + rng.normal(0.0, 0.45 * radius, 2)
            _blob(photo, place, radius * rng.uniform(0.03, 0.10), _EXUDATE, rng.uniform(0.35, 0.9), flat=1.7)
    if rng.random() < 0.2:  # about as large and as pale as a disc
        _blob(photo, _away(eye, rng), radius * rng.uniform(0.35, 0.6), _CRESCENT, rng.uniform(0.4, 0.75), flat=2.5)
    for _ in range(rng.integers(0, 5)):
        _blob(photo, _away(eye, rng), radius * rng.uniform(0.04, 0.12), _BLOOD, rng.uniform(0.3, 0.8))


def _exposed(photo: Photo, eye: Eye, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Illumination, haze, colour balance, blur, noise and the black frame."""
    size = eye.size
    y, x = np.indices((size[1], size[0]), dtype=np.float32)
    dx, dy = (x - eye.view_centre[0]) / eye.view_radius, (y - eye.view_centre[1]) / eye.view_radius
    reach = np.hypot(dx, dy).astype(np.float32)
    slope = rng.normal(0.0, 0.10, 2)
    slopes = 1.0 + slope[0] * dx + slope[1] * dy + 0.03 * _noise(size, 4, rng)
    # Light first, then the camera: colour balance and gamma, sensor noise, and the blur of focus over all of it.
    photo = photo * ((1.0 - rng.uniform(0.25, 0.5) * reach**2) * slopes)[..., None].astype(np.float32)
    if rng.random() < 0.35:  # a lens reflex at the border of the field of view
        side = rng.uniform(0.0, 2.0 * np.pi)
        glare = np.clip(np.cos(np.arctan2(dy, dx) - side), 0.0, 1.0) ** 6 * np.clip((reach - 0.7) / 0.3, 0.0, 1.0)
        _blend(photo, rng.uniform(0.1, 0.35) * glare, (0.72, 0.66, 0.75))
    gains = 1.0 + rng.normal(0.0, (0.05, 0.06, 0.09))
    photo = np.clip(photo * (gains * rng.uniform(0.85, 1.12)).astype(np.float32), 0.0, 1.1) ** rng.uniform(0.85, 1.2)
    photo += rng.normal(0.0, rng.uniform(0.008, 0.022), photo.shape[:2]).astype(np.float32)[..., None]
    photo = gaussian_filter(photo, (*(rng.uniform(0.5, 1.3),) * 2, 0))
    framed = photo * _soft((reach - 1.0) * np.float32(eye.view_radius), 0.8)[..., None]
    return np.asarray(np.rint(np.clip(framed, 0.0, 1.0) * 255.0), dtype=np.uint8)


def _away(eye: Eye, rng: np.random.Generator) -> Vector:
    """A place in the field of view that is not at the disc."""
    for _ in range(100):
        place = eye.view_centre + rng.uniform(-1.0, 1.0, 2) * eye.view_radius
        apart = np.hypot(*(place - eye.disc.centre)) > 2.0 * eye.disc.radii.max()
        if apart and np.hypot(*(place - eye.view_centre)) < 0.85 * eye.view_radius:
            break
    return place


def _soft(distance: Plane, width: float) -> Plane:
    """1 inside, 0 outside, with a border of some pixels."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(distance / width, -30.0, 30.0))), dtype=np.float32)


def _blob(photo: Photo, centre: Vector, sigma: float, colour: _Colour, strength: float, flat: float = 1.0) -> None:
    """Blend a Gaussian blob in, with a flat top if ``flat`` is above 1."""
    box, profiles = [], []
    for length, middle in zip(photo.shape, reversed(centre.tolist()), strict=False):
        pixels = np.arange(max(0, int(middle - 4 * sigma)), min(length, int(middle + 4 * sigma) + 2))
        box.append(slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0))
        profiles.append(np.exp(-0.5 * ((pixels - middle) / sigma) ** 2))
    alpha = strength * np.minimum(1.0, flat * np.outer(*profiles))
    _blend(photo[tuple(box)], alpha, colour)


def _blend(photo: Photo, alpha: NDArray[Any], colour: _Colour) -> None:
    photo += alpha[..., None].astype(np.float32) * (np.array(colour, np.float32) - photo)


def _noise(size: tuple[int, int], waves: int, rng: np.random.Generator) -> Plane:
    """A smooth random field of SD 1: cosines of up to so many half waves along x, weaker the finer."""
    rows = max(2, round(waves * size[1] / size[0]))
    k, n = np.arange(rows)[:, None] * size[0] / size[1], np.arange(waves)[None, :]
    # Amplitudes fall with the square of the frequency; the mean, which would change the colour, is left out.
    weights = rng.normal(size=(rows, waves)) / (1.0 + (k**2 + n**2) / (0.25 * waves) ** 2)
    weights[0, 0] = 0.0
    field = _cosines(size[1], rows) @ weights.astype(np.float32) @ _cosines(size[0], waves).T
    return np.asarray(field / field.std())


@lru_cache(maxsize=32)
def _cosines(pixels: int, waves: int) -> NDArray[np.float32]:
    """(pixels, waves)."""
    return np.cos(np.pi * np.outer((np.arange(pixels) + 0.5) / pixels, np.arange(waves))).astype(np.float32)


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
    # Streams of their own for anatomy, picture and experts: a change of one leaves the others as they were.
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
    progress: Progress = silent,
) -> Path:
    """Write a dataset of synthetic fundus photographs, laid out as Drishti-GS1.

    Args:
        out: Folder of the dataset; created, or filled again with the same files.
        cases: Images in ``Training``, 1 to 500.
        tests: Images in ``Test``, 0 to 500.
        seed: Seed of the dataset, at least 0.
        progress: Told after every case.

    Returns:
        The folder.

    Raises:
        ConfigError: If arguments are out of range.
        VolsegError: If the folder holds other files, or cannot be written to.
    """
    out = Path(out)
    require_arguments(
        "phantom",
        ("cases", 1 <= cases <= _TEST_START, f"1 to {_TEST_START}", cases),
        ("tests", 0 <= tests <= _TEST_START, f"0 to {_TEST_START}", tests),
        ("seed", seed >= 0, "at least 0", seed),
    )
    work = {index: _files(out, index, "Training", "GT") for index in range(cases)}
    work |= {index: _files(out, index, "Test", "Test_GT") for index in range(_TEST_START, _TEST_START + tests)}
    folder = OutputFolder(out)
    expected = {file for files in work.values() for file in files}
    folder.require_only(expected, "an empty folder or the same phantom dataset")
    # The layout of Drishti-GS1 has no file for a record: the first photograph tells whether the seed is the same.
    there = next((index for index, files in work.items() if files[0].is_file()), None)
    if there is not None and not np.array_equal(read_picture(work[there][0]), fundus_case(there, seed)[0]):
        folder.refuse("an empty folder or photographs of the same seed", "others")
    for done, (index, files) in enumerate(work.items(), start=1):
        for file, pixels in zip(files, fundus_case(index, seed), strict=True):
            write_picture(pixels, file)
        progress(done, len(work), "phantom")
    return out


def _files(out: Path, index: int, part: str, references: str) -> tuple[Path, ...]:
    name = f"fundus_{index:03d}"
    maps = out / part / references / name / "SoftMap"
    return out / part / "Images" / f"{name}.png", *(maps / f"{name}_{mask}.png" for mask in _MASKS)


def _soft_maps(eye: Eye, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Share of experts whose outline holds a pixel, as grey level; an expert's cup lies in that expert's disc."""
    votes = np.zeros((2, eye.size[1], eye.size[0]), np.uint8)
    reach = 1.5 * eye.disc.radii.max()  # no expert draws further out
    x, y = eye.disc.centre
    box = Box((max(0, int(y - reach)), max(0, int(x - reach))), (int(y + reach), int(x + reach)))
    for _ in range(EXPERTS):
        disc, cup = (
            signed_distance(_opinion(outline, spread, rng), eye.size, box) < 0
            for outline, spread in zip((eye.disc, eye.cup), _SPREAD, strict=True)
        )
        votes[:, *box.slices] += np.stack([disc, cup & disc])
    disc_map, cup_map = np.rint(votes * (255 / EXPERTS)).astype(np.uint8)
    return disc_map, cup_map


def _opinion(outline: Outline, spread: float, rng: np.random.Generator) -> Outline:
    """An expert's outline: a little larger or smaller, shifted and of another shape."""
    radius = float(np.mean(outline.radii))
    shift = rng.normal(0.0, 0.5 * spread * radius, 2)
    factors = 1.0 + rng.normal(0.0, spread) + rng.normal(0.0, 0.5 * spread, 2)
    waves = outline.waves + rng.normal(0.0, 0.3 * spread, outline.waves.shape)
    return Outline(outline.centre + shift, outline.radii * factors, outline.angle + rng.normal(0.0, 0.05), waves)
