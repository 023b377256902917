"""The fingerprint of a dataset as a page: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.files import write_text
from pipeline.core.regions import paired_names
from pipeline.core.tables import compact_cell
from pipeline.preprocess.spacing import ANISOTROPIC
from pipeline.report.fingerprint_plots import (
    MOST_CHANNELS,
    MOST_ROWS,
    axis_histograms,
    intensity_histograms,
    side_ratios,
    volume_boxes,
)
from pipeline.report.page import both_themes, render_page

_CASES_SHOWN = 30
_FEWEST_CASES = 5
_ROBUST_SDS = 3.0
_LEAST_FACTOR = 1.1  # nearer to the median nothing is unusual, however alike the others are
_GROUP_SHARE = 0.1  # where more cases are this far off, they are another protocol and not single mistakes
_DIRECTIONS = {frozenset("LR"): ("left", "right"), frozenset("AP"): ("anterior", "posterior")}


def write_fingerprint_page(
    fingerprint: Mapping[str, Any],
    out: Path,
    *,
    failures: Sequence[tuple[str, str]] = (),
    class_weights: Mapping[str, float] | None = None,
    why: str = "",
    version: str = "",
    date: str = "",
) -> Path:
    """Write the page.

    Args:
        fingerprint: As ``fingerprint.json`` holds it.
        out: HTML file to write.
        failures: Case id and sentence of every case that could not be used.
        class_weights: Weights that the plan proposes, by organ.
        why: The plan's reason for them.
        version: Version of volseg, for the foot of the page.
        date: Date, likewise.

    Returns:
        ``out``.

    Raises:
        VolsegError: If it cannot be written.
    """
    names = axis_names(fingerprint["orientation"])
    shapes, cropped = measure(fingerprint, "shape"), measure(fingerprint, "cropped_shape")
    changed = bool((shapes != cropped).any())
    spacings = measure(fingerprint, "spacing_mm")
    context = {
        "title": f"Dataset {fingerprint['dataset']}",
        "fingerprint": fingerprint,
        "failures": [(case, message.removeprefix(f"case {case}: ")) for case, message in failures],
        "cases_shown": _CASES_SHOWN,
        "channels_shown": MOST_CHANNELS,
        "most_rows": MOST_ROWS,
        "axes": names,
        "anisotropy": anisotropy_sentence(fingerprint),
        "cropped": changed,
        "spacing": both_themes(partial(axis_histograms, spacings, None, names, "mm")),
        "shape": both_themes(partial(axis_histograms, shapes, cropped if changed else None, names, "voxels")),
        "weights": class_weights or {},
        "why": why,
        "version": version,
        "date": date,
        **_organs(fingerprint),
    }
    write_text(out, render_page("fingerprint.html.j2", context))
    return out


def _organs(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of intensities and organs; plots only where some case has an organ."""
    volumes = volumes_ml(fingerprint)
    present = [n for n, entry in enumerate(fingerprint["organs"].values()) if entry["cases"]]
    names = list(fingerprint["organs"])
    pairs = [pair for pair in side_pairs(fingerprint, volumes) if len(pair.ratios) or pair.one_sided]
    both = [pair for pair in pairs if len(pair.ratios)]
    drawn: dict[str, Any] = {"intensities": None, "volumes": None, "sides": None}
    if present:
        drawn["intensities"] = both_themes(partial(intensity_histograms, fingerprint["channels"]))
        columns = [volumes[volumes[:, n] > 0, n] for n in present]
        shares = [fingerprint["organs"][names[n]]["share_of_foreground"] for n in present]
        drawn["volumes"] = both_themes(partial(volume_boxes, [names[n] for n in present], columns, shares))
    if both:
        drawn["sides"] = both_themes(partial(side_ratios, [pair.left for pair in both], [p.ratios for p in both]))
    return {
        **drawn,
        "pairs": [_pair(pair) for pair in pairs],
        "regions": region_rows(fingerprint, volumes),
        "outliers": outliers(fingerprint, volumes),
    }


def _pair(pair: SidePair) -> dict[str, Any]:
    numbers = np.percentile(pair.ratios, (0, 50, 100)).tolist() if len(pair.ratios) else (None, None, None)
    found = dict(zip(("smallest", "median", "largest"), numbers, strict=True))
    return {"left": pair.left, "right": pair.right, "cases": len(pair.ratios), "one_sided": pair.one_sided, **found}


# What a fingerprint says beyond its numbers: volumes per case, left against right, cases unlike the others.


def axis_names(orientation: str) -> tuple[str, ...]:
    """The axes in words, in the direction in which the index grows: ``i (left–right)`` for RAS."""
    names = []
    for letter, code in zip("ijk", orientation, strict=True):
        ends = next((pair for codes, pair in _DIRECTIONS.items() if code in codes), ("superior", "inferior"))
        start, stop = ends if code == ends[1][0].upper() else ends[::-1]
        names.append(f"{letter} ({start}–{stop})")
    return tuple(names)


def anisotropy_sentence(fingerprint: Mapping[str, Any]) -> str:
    """What the spacings of the median case mean for the pipeline, in one or two sentences."""
    median = fingerprint["spacing_mm"]["median"]
    coarsest, ratio = int(np.argmax(median)), max(median) / min(median)
    if ratio < 1.05:
        return "The median voxel is a cube."
    axis = axis_names(fingerprint["orientation"])[coarsest]
    sentence = f"The median voxel is {compact_cell(ratio)} times as long along {axis} as along its finest axis."
    if ratio <= ANISOTROPIC:
        return f"{sentence} That is below 3: all axes are resampled alike."
    return f"{sentence} That is above 3: slices are thick, and resampled one by one if they stay so in the plan."


def measure(fingerprint: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """A measure of every case, such as ``spacing_mm``: (cases, 3)."""
    return np.array([case[name] for case in fingerprint["cases"].values()], np.float64)


def volumes_ml(fingerprint: Mapping[str, Any]) -> NDArray[np.float64]:
    """Volumes (cases, organs) in ml; 0 where a case does not have the organ."""
    names = list(fingerprint["organs"])
    cases = fingerprint["cases"].values()
    voxels = np.array([[case["voxels"][name] for name in names] for case in cases], np.float64)
    voxel_ml = measure(fingerprint, "spacing_mm").prod(axis=1) / 1000.0
    return np.asarray(voxels.reshape(len(cases), len(names)) * voxel_ml[:, None])


def region_rows(fingerprint: Mapping[str, Any], volumes: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Of every region its organs, the cases that have it and its median volume among those."""
    place = {name: index for index, name in enumerate(fingerprint["organs"])}
    rows = []
    for region, organs in fingerprint["regions"].items():
        united = volumes[:, [place[name] for name in organs]].sum(axis=1)
        present = united[united > 0]
        median = float(np.median(present)) if present.size else None
        rows.append({"name": region, "organs": organs, "cases": int(present.size), "median": median})
    return rows


@dataclass(frozen=True, eq=False)
class SidePair:
    """An organ with a left and a right.

    Args:
        left: Name of the left one.
        right: Name of the right one.
        ratios: (N,) left volume over right volume of the cases that have both.
        one_sided: Number of cases that have only one of them.
    """

    left: str
    right: str
    ratios: NDArray[np.float64]
    one_sided: int


def side_pairs(fingerprint: Mapping[str, Any], volumes: NDArray[np.float64]) -> list[SidePair]:
    """Organs that come in a left and a right, in the order of the label table."""
    names = list(fingerprint["organs"])
    pairs = []
    for a, b in paired_names(names):
        left, right = volumes[:, a], volumes[:, b]
        both = (left > 0) & (right > 0)
        pairs.append(SidePair(names[a], names[b], left[both] / right[both], int(((left > 0) ^ (right > 0)).sum())))
    return pairs


@dataclass(frozen=True)
class Outlier:
    """A case, or a group of cases, far from the median.

    Args:
        case: Case id, of a group that of its most extreme case.
        cases: Number of cases in the group; 1 for a single case.
        what: The measured thing, e.g. ``volume of liver``.
        unit: Of both values; may be empty.
        value: Of the case.
        median: Of all cases that have the thing.
        robust_sds: Distance of the logarithms in robust standard deviations, negative below the median.
    """

    case: str
    cases: int
    what: str
    unit: str
    value: float
    median: float
    robust_sds: float


def outliers(fingerprint: Mapping[str, Any], volumes: NDArray[np.float64]) -> list[Outlier]:
    """Cases whose spacing, shape, organ volume or ratio of sides is more than 3 robust SDs from the median.

    Distances are between logarithms, so that twice and half are equally far; the robust SD is 1.4826 times the median
    absolute deviation or, where more than half of the cases agree, 1.2533 times the mean one (Iglewicz and Hoaglin
    1993). Nothing is said of fewer than 5 cases, of factors below 1.1, and of organs a case does not have. Where more
    than a tenth of the cases (and more than one) are that far off, they make one entry. The most extreme come first.
    """
    ids = list(fingerprint["cases"])
    columns = []
    for key, what, unit in (("spacing_mm", "spacing", "mm"), ("shape", "shape", "voxels")):
        values = measure(fingerprint, key)
        named = enumerate(axis_names(fingerprint["orientation"]))
        columns += [(f"{what} along {axis}", unit, values[:, index]) for index, axis in named]
    names = list(fingerprint["organs"])
    columns += [(f"volume of {name}", "ml", volumes[:, index]) for index, name in enumerate(names)]
    for a, b in paired_names(names):
        both = (volumes[:, a] > 0) & (volumes[:, b] > 0)
        ratio = np.divide(volumes[:, a], volumes[:, b], out=np.zeros(len(ids)), where=both)
        columns.append((f"{names[a]} over {names[b]}", "", ratio))
    found = [outlier for what, unit, values in columns for outlier in _far_off(ids, what, unit, values)]
    return sorted(found, key=lambda outlier: -abs(outlier.robust_sds))


def _far_off(ids: Sequence[str], what: str, unit: str, values: NDArray[np.float64]) -> list[Outlier]:
    """Outliers of one measure; values of 0 are missing."""
    there = np.flatnonzero(values > 0)
    if len(there) < _FEWEST_CASES:
        return []
    logs = np.log(values[there])
    away = logs - np.median(logs)
    # Where more than half of the cases agree, the median deviation is 0 and the mean one takes its place.
    sd = 1.4826 * np.median(np.abs(away)) or 1.2533 * np.abs(away).mean()
    if sd == 0:
        return []
    far = np.flatnonzero((np.abs(away) > _ROBUST_SDS * sd) & (np.abs(away) > np.log(_LEAST_FACTOR)))
    far = far[np.argsort(-np.abs(away[far]), kind="stable")]
    median = float(np.median(values[there]))
    group = len(far) if len(far) > max(1.0, _GROUP_SHARE * len(there)) else 1
    return [
        Outlier(ids[there[n]], group, what, unit, float(values[there[n]]), median, float(away[n] / sd))
        for n in (far if group == 1 else far[:1])
    ]
