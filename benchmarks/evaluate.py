"""Time scoring of one case against MONAI, medpy, surface-distance and nnU-Net's evaluator, on one core.

    python benchmarks/evaluate.py                # a large volume, then 1, 25 and 104 labels beside the other tools
    python benchmarks/evaluate.py --labels 25    # only this comparison
    python benchmarks/evaluate.py --large        # only the large volume

Times are those of the processor, so that other work on the machine does not count. surface-distance and nnU-Net are
followed by their definitions, written here (surface elements by MONAI's copy of the table). MONAI gets whole channels,
as it asks for, one at a time to save memory; it crops them itself. medpy and surface-distance get the box around the
label.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and PyTorch are imported

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from medpy.metric import binary
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.evaluate.case import score_case
from pipeline.evaluate.metrics import OVERLAP_ONLY, Measures

SMALL, LARGE = (200, 256, 256), (400, 512, 512)
SPACING_MM = (1.25, 0.8, 0.8)
TOLERANCE_MM = 2.0
LIMITS = {"Dice, IoU, volumes": 3.0, "with distances, voxel": 60.0, "with distances, exact": 180.0}

Labels = NDArray[np.uint8]


def organs(shape: tuple[int, int, int], count: int, predicted: bool) -> Labels:
    """Wobbly ellipsoids of many sizes; those of a prediction are shifted by about a voxel and wobble elsewhere."""
    generator = np.random.default_rng(0)
    out = np.zeros(shape, dtype=np.uint8)
    for value in range(1, count + 1):
        radius = np.exp(generator.normal(np.log(30), 0.5)) * min(shape) / 400 * np.exp(generator.normal(0, 0.35, 3))
        centre = generator.uniform(0.05, 0.95, 3) * np.array(shape)
        phase, shift = generator.uniform(0, 2 * np.pi, 3), np.zeros(3)
        if predicted:
            own = np.random.default_rng(value)
            phase, shift = phase + own.normal(0, 0.35, 3), own.normal(0, 1.0, 3)
        start = np.maximum(0, np.floor(centre - 1.4 * radius - 2)).astype(int)
        stop = np.minimum(shape, np.ceil(centre + 1.4 * radius + 3)).astype(int)
        parts = zip(start, stop, centre, shift, radius, strict=True)
        axes = [((np.arange(a, b) - c - s) / r).astype(np.float32) for a, b, c, s, r in parts]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        wobble = [np.sin(5 * axis + np.float32(p)) for axis, p in zip((x, y, z), phase, strict=True)]
        inside = x * x + y * y + z * z + np.float32(0.12) * (wobble[0] + wobble[1] + wobble[2]) < 1
        out[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))][inside] = value
    return out


def boxes(reference: Labels, prediction: Labels, count: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Both masks of every label that is in both maps, in the box around it with a voxel to spare."""
    found = [find_objects(array) for array in (reference, prediction)]
    for value in range(1, count + 1):
        both = [parts[value - 1] for parts in found if len(parts) >= value and parts[value - 1] is not None]
        if len(both) == 2:
            edges = zip(*both, reference.shape, strict=True)
            box = tuple(slice(max(0, min(a.start, b.start) - 1), min(n, max(a.stop, b.stop) + 1)) for a, b, n in edges)
            yield reference[box] == value, prediction[box] == value


def by_us(reference: Labels, prediction: Labels, count: int, measures: Measures) -> float:
    """Score the case as `volseg evaluate` does; the mean Dice."""
    grid = Grid(reference.shape, np.diag([*SPACING_MM, 1.0]))
    table = LabelTable({value: f"organ {value}" for value in range(1, count + 1)})
    rows = score_case(LabelMap(prediction, grid), LabelMap(reference, grid), table, "case", measures)
    return float(np.nanmean([row.dice for row in rows]))


def by_monai(reference: Labels, prediction: Labels, count: int) -> float:
    """Dice, HD95, ASSD and surface Dice of MONAI, on one channel per label."""
    options = {"include_background": True, "spacing": list(SPACING_MM)}
    scores = []
    for value in range(1, count + 1):
        pair = [torch.from_numpy((array == value)[None, None]) for array in (prediction, reference)]
        scores.append(float(compute_dice(*pair, include_background=True)))
        compute_hausdorff_distance(*pair, percentile=95, **options)
        compute_average_surface_distance(*pair, symmetric=True, **options)
        compute_surface_dice(*pair, [TOLERANCE_MM], **options)
    return float(np.nanmean(scores))


def by_medpy(reference: Labels, prediction: Labels, count: int) -> float:
    """Dice, HD95 and ASSD of medpy."""
    scores = []
    for one, other in boxes(reference, prediction, count):
        scores.append(binary.dc(other, one))
        binary.hd95(other, one, SPACING_MM)
        binary.assd(other, one, SPACING_MM)
    return float(np.mean(scores))


def by_surface_distance(reference: Labels, prediction: Labels, count: int) -> float:
    """Surface elements by neighbour codes, two distance maps, and all scores from these distances at once."""
    scores = []
    for one, other in boxes(reference, prediction, count):
        edges, distances, areas = get_edge_surface_distance(
            *(torch.from_numpy(np.pad(mask, 1)) for mask in (other, one)),
            spacing=list(SPACING_MM),
            use_subvoxels=True,
            symmetric=True,
        )
        for edge, distance, area in zip(edges, distances, areas, strict=True):
            order = torch.argsort(distance)
            share = torch.cumsum(area[edge][order], 0) / area[edge].sum()
            torch.searchsorted(share, torch.tensor(0.95))
            (area[edge] * distance).sum()
            area[edge][distance <= TOLERANCE_MM].sum()
        scores.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    return float(np.mean(scores))


def by_nnunet(reference: Labels, prediction: Labels, count: int) -> float:
    """nnU-Net's evaluator: masks of the whole volume for every label, four counts each; no distances."""
    scores = []
    for value in range(1, count + 1):
        one, other = reference == value, prediction == value
        tp, fp = np.sum(one & other), np.sum(~one & other)
        fn, _ = np.sum(one & ~other), np.sum(~one & ~other)
        if tp + fp + fn and tp + fn and tp + fp:
            scores.append(2 * tp / (2 * tp + fp + fn))
    return float(np.mean(scores))


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Processor seconds, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def memory_mib(entry: str) -> float:
    """Memory of this process in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) / 1024


def beside_others(count: int) -> None:
    """Print a table of all tools on one small volume."""
    reference, prediction = organs(SMALL, count, False), organs(SMALL, count, True)
    exact = Measures(tolerance_mm=TOLERANCE_MM)
    tools: dict[str, Callable[[], float]] = {
        "volseg, overlap": lambda: by_us(reference, prediction, count, OVERLAP_ONLY),
        "volseg, voxel": lambda: by_us(reference, prediction, count, replace(exact, surface="voxel")),
        "volseg, exact": lambda: by_us(reference, prediction, count, exact),
        "nnU-Net, overlap": lambda: by_nnunet(reference, prediction, count),
        "MONAI": lambda: by_monai(reference, prediction, count),
        "medpy": lambda: by_medpy(reference, prediction, count),
        "surface-distance": lambda: by_surface_distance(reference, prediction, count),
    }
    print(f"\n{count} labels, {SMALL[2]}x{SMALL[1]}x{SMALL[0]}\n\n| tool | processor s | mean Dice |\n|---|---|---|")
    for name, work in tools.items():
        seconds, dice = timed(work)
        print(f"| {name} | {seconds:.2f} | {dice:.4f} |", flush=True)


def large_volume() -> None:
    """Print times and memory of 104 labels at 512x512x400 beside their limits."""
    reference, prediction = organs(LARGE, 104, False), organs(LARGE, 104, True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of making the volumes, is forgotten (Linux)
    before = memory_mib("VmRSS")
    exact = Measures(tolerance_mm=TOLERANCE_MM)
    kinds = (OVERLAP_ONLY, replace(exact, surface="voxel"), exact)
    size = f"{LARGE[2]}x{LARGE[1]}x{LARGE[0]}"
    print(f"\n104 labels, {size}, {(reference > 0).mean():.0%} foreground\n")
    print("| what | processor s | limit s | memory above the label maps, MiB |\n|---|---|---|---|")
    for (name, limit), measures in zip(LIMITS.items(), kinds, strict=True):
        seconds, _ = timed(lambda measures=measures: by_us(reference, prediction, 104, measures))
        print(f"| {name} | {seconds:.1f} | {limit:g} | {memory_mib('VmHWM') - before:.0f} |", flush=True)


def main() -> None:
    """Parse, generate, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="*", help="only these numbers of labels")
    parser.add_argument("--large", action="store_true", help="only the large volume")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if chosen.large or chosen.labels is None:
        large_volume()
    for count in [] if chosen.large else chosen.labels or (1, 25, 104):
        beside_others(count)


if __name__ == "__main__":
    main()
