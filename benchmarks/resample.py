"""Time resampling by one matrix per axis against scikit-image and SciPy, on one thread, on the same volume.

    python benchmarks/resample.py

What is compared is the same to 1e-5 of the range; the difference is printed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and PyTorch are imported

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import zoom
from skimage.transform import resize

from pipeline.preprocess.interpolation import resample, resize_operator
from pipeline.preprocess.resample import resample_labels

SOURCE, TARGET, CLASSES, REPEATS = (120, 200, 200), (90, 256, 256), 15, 3


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Median of some runs, and the result."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def by_skimage(volume: np.ndarray, order: int) -> np.ndarray:
    """nnU-Net's resampling of one channel."""
    return np.asarray(resize(volume, TARGET, order, mode="edge", anti_aliasing=False, preserve_range=True))


def by_scipy(volume: np.ndarray, order: int) -> np.ndarray:
    """The SciPy function behind scikit-image's, without its clipping."""
    factors = [after / before for before, after in zip(SOURCE, TARGET, strict=True)]
    return np.asarray(zoom(volume, factors, order=order, mode="nearest", grid_mode=True))


def votes_by_skimage(label: np.ndarray) -> np.ndarray:
    """Every class resized by itself, the largest vote wins."""
    best, winner = np.zeros(TARGET), np.zeros(TARGET, label.dtype)
    for value in np.unique(label):
        votes = by_skimage((label == value).astype(float), 1)
        winner[votes > best] = value
        best = np.maximum(best, votes)
    return winner


def blocks(classes: int) -> np.ndarray:
    """A label map of rounded organs: the largest of some smooth fields at every voxel."""
    rng = np.random.default_rng(0)
    fields = [zoom(rng.normal(size=(6, 10, 10)), 20, order=1) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def main() -> None:
    """Run the benchmark."""
    torch.set_num_threads(1)
    volume = np.random.default_rng(0).random(SOURCE, dtype=np.float32)
    print(f"{SOURCE} to {TARGET}, one thread, median of {REPEATS}")
    print(
        "| what | ours s | scikit-image s | ratio | SciPy s | largest difference / range |\n|---|---|---|---|---|---|"
    )
    for order in (1, 3):
        resize_operator.cache_clear()
        ours, mine = timed(lambda order=order: resample(volume, TARGET, order))
        theirs, expected = timed(lambda order=order: by_skimage(volume, order))
        scipys, _ = timed(lambda order=order: by_scipy(volume, order))
        apart = np.abs(mine - expected).max() / np.ptp(volume)
        print(f"| order {order} | {ours:.3f} | {theirs:.2f} | {theirs / ours:.1f} | {scipys:.2f} | {apart:.1e} |")
    label = blocks(CLASSES)
    ours, mine = timed(lambda: resample_labels(label, TARGET))
    theirs, expected = timed(lambda: votes_by_skimage(label))
    share = float(np.mean(mine != expected))
    print(f"| {CLASSES} classes | {ours:.3f} | {theirs:.2f} | {theirs / ours:.1f} | | {share:.1e} of voxels |")


if __name__ == "__main__":
    main()
