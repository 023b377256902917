"""The fingerprint of a dataset as a page: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.files import write_text
from pipeline.export.fingerprint_facts import (
    SidePair,
    axis_names,
    measure,
    outliers,
    region_rows,
    side_pairs,
    volumes_ml,
)
from pipeline.export.fingerprint_plots import (
    MOST_CHANNELS,
    MOST_ROWS,
    axis_histograms,
    intensity_histograms,
    side_ratios,
    volume_boxes,
)
from pipeline.export.page import both_themes, compact, render_page
from pipeline.preprocess.patch_rules import ANISOTROPIC

__all__ = ["anisotropy_sentence", "write_fingerprint_page"]

_CASES_SHOWN = 30


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


def anisotropy_sentence(fingerprint: Mapping[str, Any]) -> str:
    """What the spacings of the median case mean for the pipeline, in one or two sentences."""
    median = fingerprint["spacing_mm"]["median"]
    coarsest, ratio = int(np.argmax(median)), max(median) / min(median)
    if ratio < 1.05:
        return "The median voxel is a cube."
    axis = axis_names(fingerprint["orientation"])[coarsest]
    sentence = f"The median voxel is {compact(ratio)} times as long along {axis} as along its finest axis."
    if ratio <= ANISOTROPIC:
        return f"{sentence} That is below 3: all axes are resampled alike."
    return f"{sentence} That is above 3: slices are thick, and resampled one by one if they stay so in the plan."


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
