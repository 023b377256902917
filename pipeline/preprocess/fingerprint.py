"""The fingerprint: spacing, shape, intensities and organ volumes of every case, and of all cases together.

Planning reads the fingerprints of the cases; people read that of the dataset, in ``fingerprint.json`` and its page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import Box
from pipeline.core.labels import LabelTable
from pipeline.core.regions import paired_names
from pipeline.core.volume import Image, LabelMap, require_same_grid
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.volumes import read_image

_BINS = 64
_SAME = 1e-6  # relative; float32 holds no finer differences
_BEYOND = 0.15  # of the distance between the limits, shown on either side of them
_MOST_SAMPLES, _ALL_SAMPLES, _FEWEST_SAMPLES = 10_000, 4_000_000, 100  # intensities of a channel


@dataclass(frozen=True, eq=False)
class CaseFingerprint:
    """What one case tells the planner; axes are those of the target orientation.

    Args:
        id: Case id.
        shape: Voxels of the whole volume.
        cropped_shape: Voxels after cropping.
        spacing_mm: Spacing along the axes.
        intensities: (C, N) float32, intensities of randomly chosen foreground voxels; N may be 0.
        class_voxels: Number of voxels per class index, background first.
    """

    id: str
    shape: tuple[int, int, int]
    cropped_shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    intensities: NDArray[np.float32]
    class_voxels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelStatistics:
    """Foreground intensities of one channel over the whole dataset."""

    mean: float
    sd: float
    percentile_00_5: float
    percentile_99_5: float


def foreground_box(array: NDArray[np.floating[Any]]) -> Box:
    """Smallest box that holds every voxel in which some channel is not 0; the whole volume if everything is 0.

    Args:
        array: (C, I, J, K).
    """
    occupied = array[0] != 0
    for channel in array[1:]:
        occupied |= channel != 0
    return Box.around(occupied) or Box.whole(occupied.shape)


def samples_per_case(cases: int) -> int:
    """Foreground intensities to keep of each case and channel: fewer of many cases, so that memory stays bounded."""
    return max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _ALL_SAMPLES // cases))


def fingerprint_case(
    files: CaseFiles,
    labels: LabelTable,
    orientation: str,
    crop: str,
    channels: int | None = None,
    samples: int = _MOST_SAMPLES,
) -> CaseFingerprint:
    """Read one case and take its fingerprint.

    Args:
        files: Where the case is; it must have a reference.
        labels: Label table of the dataset.
        orientation: Axis codes of the prepared data.
        crop: ``nonzero`` or ``none``.
        channels: Channels that the case must have, if that is known.
        samples: Foreground intensities to keep of each channel.

    Raises:
        DataError: If a file cannot be used, a channel is missing, grids differ, the image holds NaN or infinity, or a
            label is unknown.
    """
    if channels is not None and len(files.images) != channels:
        advice = "Add the missing files, or drop the case"
        raise DataError(sentence("image channels", f"{channels} files", len(files.images), advice, case=files.id))
    image, reference = read_checked(files)
    image, reference = image.reoriented(orientation), reference.reoriented(orientation)
    box = foreground_box(image.array) if crop == "nonzero" else Box.whole(image.grid.shape)
    try:
        index = labels.to_index(reference.array)
    except ValueError as error:
        raise DataError(f"case {files.id}: {error}") from None
    generator = np.random.default_rng(len(files.id) + image.grid.voxels)  # the same voxels in every run
    where = np.flatnonzero(index > 0)
    if len(where) > samples:
        where = generator.choice(where, samples, replace=False)
    flat = image.array.reshape(image.channels, -1)
    return CaseFingerprint(
        files.id,
        image.grid.shape,
        box.shape,
        image.grid.spacing_mm,
        flat[:, where].astype(np.float32),
        _counts(index[box.slices], labels.classes),
    )


def _counts(index: NDArray[np.signedinteger[Any]], classes: int) -> tuple[int, ...]:
    """Voxels of every class, counted slab by slab, as counting takes eight bytes a voxel; ignored ones left out."""
    total = np.zeros(classes + 1, np.int64)
    for slab in index:
        total += np.bincount(slab.ravel().astype(np.int64) + 1, minlength=classes + 1)
    return tuple(total[1:].tolist())


def read_checked(files: CaseFiles) -> tuple[Image, LabelMap]:
    """Image and reference of a case, on the same grid, without NaN or infinity.

    Raises:
        DataError: If one of these does not hold.
    """
    image = read_image(files.images, case=files.id)
    require_finite(image.array, files.id)
    reference = read_reference(files)
    require_same_grid(image.grid, reference.grid, "label map grid", "the image grid", case=files.id)
    return image, reference


def require_finite(array: NDArray[np.floating[Any]], case: str | None) -> None:
    """Refuse NaN and infinity, naming how many voxels have them."""
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        got, advice = f"{bad} voxels of NaN or infinity", "Repair the volume"
        raise DataError(sentence("image", "finite intensities", got, advice, case=case))


def channel_statistics(fingerprints: Sequence[CaseFingerprint]) -> tuple[ChannelStatistics, ...]:
    """Foreground statistics of every channel over all cases, in which every case with foreground weighs the same.

    Args:
        fingerprints: At least one.

    Returns:
        One entry per channel; mean 0 and SD 1 with infinite limits where no case has any foreground.
    """
    pooled = np.concatenate([fingerprint.intensities for fingerprint in fingerprints], axis=1)
    if pooled.shape[1] == 0:
        return tuple(ChannelStatistics(0.0, 1.0, -np.inf, np.inf) for _ in range(pooled.shape[0]))
    sizes = [fingerprint.intensities.shape[1] for fingerprint in fingerprints]
    # Every case counts the same, however many voxels its organs have.
    weights = np.repeat([1.0 / max(size, 1) for size in sizes], sizes)
    return tuple(_statistics(channel, weights / weights.sum()) for channel in pooled)


def _statistics(values: NDArray[np.float32], weights: NDArray[np.float64]) -> ChannelStatistics:
    mean = float(np.dot(values, weights))
    sd = float(np.dot(np.square(values - mean), weights)) ** 0.5
    order = np.argsort(values)
    # Percentiles of a weighted sample: where the weights so far reach the share.
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, [0.005, 0.995]).clip(max=len(order) - 1)
    low, high = values[order[places]].tolist()
    return ChannelStatistics(mean, sd or 1.0, low, high)


def dataset_fingerprint(
    dataset: Dataset, fingerprints: Sequence[CaseFingerprint], *, orientation: str = "RAS"
) -> dict[str, Any]:
    """Put the fingerprints of all cases together.

    Args:
        dataset: The dataset.
        fingerprints: One per usable case, at least one.
        orientation: Axis codes of the axes in the fingerprints.

    Returns:
        A dictionary for JSON. ``orientation``: of the axes. ``spacing_mm``, ``shape`` and ``cropped_shape``: median,
        smallest and largest along each axis. ``kept_by_crop``: median share of the volume. ``anisotropy``: median of
        the coarsest spacing over the finest. ``channels``: mean, SD, percentiles and histogram of foreground
        intensities (null limits and histogram where no case has any). ``organs``: number of cases that have the organ,
        its volume in ml among those, its share of all foreground. ``regions``: the organs of each, where there are any.
        ``side_pairs``: names that differ in their side. ``cases``: shape, spacing and voxels per organ of each.
    """
    spacings = np.array([case.spacing_mm for case in fingerprints])
    shapes, cropped = (np.array([getattr(case, name) for case in fingerprints]) for name in ("shape", "cropped_shape"))
    names = dataset.labels.organs
    return {
        "dataset": dataset.name,
        "number_of_cases": len(fingerprints),
        "orientation": orientation,
        "spacing_mm": _spread(spacings),
        "shape": _spread(shapes),
        "cropped_shape": _spread(cropped),
        "kept_by_crop": float(np.median(cropped.prod(axis=1) / shapes.prod(axis=1))),
        "anisotropy": float(np.median(spacings.max(axis=1) / spacings.min(axis=1))),
        "channels": _channels(dataset.channels, fingerprints),
        "organs": _organs(names, fingerprints, spacings),
        "regions": {
            region: [names[index - 1] for index in dataset.labels.indexed().regions[region]]
            for region in dataset.labels.regions
        },
        "side_pairs": [[names[left], names[right]] for left, right in paired_names(names)],
        "cases": {case.id: _case(case, names) for case in fingerprints},
    }


def _spread(values: NDArray[Any]) -> dict[str, list[float]]:
    """Median, smallest and largest along each axis."""
    found = {"median": np.median(values, axis=0), "smallest": values.min(axis=0), "largest": values.max(axis=0)}
    return {name: numbers.tolist() for name, numbers in found.items()}


def _channels(names: Sequence[str], fingerprints: Sequence[CaseFingerprint]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, statistics in enumerate(channel_statistics(fingerprints)):
        limits = statistics.percentile_00_5, statistics.percentile_99_5
        name = names[index] if names.count(names[index]) == 1 else f"{names[index]} ({index})"
        found[name] = {key: value if np.isfinite(value) else None for key, value in asdict(statistics).items()}
        found[name]["histogram"] = intensity_histogram([case.intensities[index] for case in fingerprints], *limits)
    return found


def intensity_histogram(parts: Sequence[NDArray[np.float32]], low: float, high: float) -> dict[str, Any] | None:
    """Count intensities in bins of equal width between two limits and somewhat beyond.

    Where all intensities are integers, a bin holds the same number of integers as any other: else the counts of CT and
    of 8-bit images would rise and fall for no reason of theirs.

    Args:
        parts: Intensities (N,) of each case; some may be empty.
        low: Lower limit, e.g. the 0.5 percentile of all.
        high: Upper limit.

    Returns:
        ``start`` of the first bin, ``width`` of each, at most 65 ``counts``, and how many lie ``below`` and ``above``;
        None without any intensity.
    """
    filled = [part for part in parts if part.size]
    if not filled:
        return None
    # Histograms of all datasets are alike: the percentiles and a little beyond, not the rare extremes of implants.
    margin = _BEYOND * (high - low)
    start = max(low - margin, min(float(part.min()) for part in filled))
    stop = min(high + margin, max(float(part.max()) for part in filled))
    width = (stop - start) / _BINS
    if stop - start <= _SAME * abs(stop):
        start, stop, width = start - 0.5, stop + 0.5, 2.0  # one bin
    elif all(bool((part == np.rint(part)).all()) for part in filled):
        start, width = math.floor(start) - 0.5, float(max(1, math.ceil((stop - start) / _BINS)))
    bins = max(1, math.ceil((stop - start) / width - 1e-9))
    counts = np.zeros(bins + 2, np.int64)
    for part in filled:
        places = np.floor((part.astype(np.float64) - start) / width).clip(-1, bins)
        places[part == stop] = bins - 1  # the last bin holds its upper edge
        counts += np.bincount(places.astype(np.int64) + 1, minlength=bins + 2)
    found = counts.tolist()
    return {"start": start, "width": width, "counts": found[1:-1], "below": found[0], "above": found[-1]}


def _organs(
    names: Sequence[str], fingerprints: Sequence[CaseFingerprint], spacings_mm: NDArray[np.float64]
) -> dict[str, Any]:
    voxels = np.array([case.class_voxels for case in fingerprints], dtype=np.float64)[:, 1:]
    volumes_ml = voxels * spacings_mm.prod(axis=1)[:, None] / 1000.0
    total = volumes_ml.sum()
    organs = {}
    for index, name in enumerate(names):
        present = volumes_ml[volumes_ml[:, index] > 0, index]
        found = [float(value) for value in np.percentile(present, (0, 50, 100))] if present.size else [None] * 3
        organs[name] = {
            "cases": int(present.size),
            "volume_ml": dict(zip(("smallest", "median", "largest"), found, strict=True)),
            "share_of_foreground": float(present.sum() / total) if total else 0.0,
        }
    return organs


def _case(case: CaseFingerprint, names: Sequence[str]) -> dict[str, Any]:
    return {
        "shape": list(case.shape),
        "cropped_shape": list(case.cropped_shape),
        "spacing_mm": list(case.spacing_mm),
        "voxels": dict(zip(names, case.class_voxels[1:], strict=True)),
    }
