"""What a dataset is like, from the fingerprints of its cases: spacings, shapes, intensities, organ volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.sides import paired_names
from pipeline.data.layouts import Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint, channel_statistics
from pipeline.preprocess.histogram import intensity_histogram

__all__ = ["dataset_fingerprint"]


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
