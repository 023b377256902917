"""Scores of masks against references that share no code with the package: NumPy, SciPy and scikit-image alone.

Organs: Dice per structure, and how much of a structure lies on the other side. Images: Dice and IoU of each. Membranes
(label 1 is membrane, 0 the cells between): besides, the pixel error and the two scores of the ISBI 2012 challenge,
as "Crowdsourcing the creation of image segmentation algorithms for connectomics" (Arganda-Carreras et al. 2015,
doi 10.3389/fnana.2015.00142) defines them.

A structure that is in neither mask has no Dice (NaN) and enters no mean; one that is in one of them alone has 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage
from skimage.segmentation import watershed

THRESHOLDS = tuple(n / 10 for n in range(1, 10))
"""Probabilities of membrane that the challenge's scores are taken at; the challenge takes the best of them."""
HALF = 0.5
TIES = 0.01  # share of pixels whose rounded probability may be on the other side of a half


def read_labels(file: Path) -> NDArray[np.int64]:
    """Label values of a NIfTI volume, its axes as stored, or of a picture."""
    if file.suffix == ".png":
        return np.asarray(Image.open(file)).astype(np.int64)
    return np.rint(np.asanyarray(nibabel.load(file).dataobj)).astype(np.int64)


def renumbered(labels: NDArray[np.int64], values: Mapping[int, int]) -> NDArray[np.int64]:
    """Labels with some values changed, all at once."""
    table = np.arange(max(int(labels.max()), *values, 0) + 1)
    table[list(values)] = list(values.values())
    return table[labels]


def read_probability(masks: Path, case: str) -> NDArray[np.float32]:
    """Probability of class 1 of a picture, rows first: as nnU-Net saves it beside its masks, or volseg below them."""
    theirs = masks / f"{case}.npz"
    if theirs.is_file():
        saved: NDArray[np.float32] = np.load(theirs)["probabilities"][1, 0]
        return saved
    (file,) = (masks / "probabilities" / case).iterdir()
    volume: NDArray[np.float32] = np.asanyarray(nibabel.load(file).dataobj, np.float32)
    return volume[..., 0].T  # NIfTI has columns first


def require_same_grid(mask: Path, reference: Path) -> None:
    """Refuse a NIfTI mask that lies elsewhere than its reference."""
    if mask.name.endswith(".nii.gz"):
        one, other = (nibabel.load(file).affine for file in (mask, reference))
        if not np.allclose(one, other, atol=1e-3):
            raise ValueError(f"{mask}: expected the reference's affine {other.tolist()}, got {one.tolist()}.")


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Overlap of two masks over their mean size; NaN if both are empty."""
    one, other = np.asarray(prediction, bool), np.asarray(reference, bool)
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return float(2 * np.count_nonzero(one & other) / total) if total else float("nan")


def iou(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Overlap of two masks over their union; NaN if both are empty."""
    one, other = np.asarray(prediction, bool), np.asarray(reference, bool)
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else float("nan")


def overlaps(prediction: NDArray[np.int64], reference: NDArray[np.int64]) -> dict[tuple[int, int], int]:
    """(Predicted value, reference value) → voxels that have both."""
    if prediction.shape != reference.shape:
        raise ValueError(f"mask: expected the reference's shape {reference.shape}, got {prediction.shape}.")
    base = int(max(prediction.max(), reference.max())) + 1
    pairs, counts = np.unique(prediction * base + reference, return_counts=True)
    return {(int(pair) // base, int(pair) % base): int(count) for pair, count in zip(pairs, counts, strict=True)}


def organ_scores(
    prediction: NDArray[np.int64], reference: NDArray[np.int64], names: Mapping[int, str]
) -> dict[str, float]:
    """Dice of every structure."""
    counts = overlaps(prediction, reference)
    found = {}
    for value, name in names.items():
        sizes = [sum(n for pair, n in counts.items() if pair[side] == value) for side in (0, 1)]
        found[name] = 2 * counts.get((value, value), 0) / sum(sizes) if sum(sizes) else float("nan")
    return found


def exchanged(
    prediction: NDArray[np.int64], reference: NDArray[np.int64], names: Mapping[int, str]
) -> dict[str, float]:
    """Structures named ``…_left`` and ``…_right`` → share of their predicted voxels that are the other side's.

    One that was not found has nothing on the other side: 0.
    """
    counts = overlaps(prediction, reference)
    values = {name: value for value, name in names.items()}
    found = {}
    for name, value in values.items():
        stem, _, side = name.rpartition("_")
        other = values.get(f"{stem}_{'right' if side == 'left' else 'left'}")
        if stem and side in ("left", "right") and other is not None:
            predicted = sum(n for pair, n in counts.items() if pair[0] == value)
            found[name] = counts.get((value, other), 0) / predicted if predicted else 0.0
    return found


def image_scores(prediction: NDArray[np.int64], reference: NDArray[np.int64]) -> dict[str, float]:
    """Dice and IoU of label 1."""
    return {"dice": dice(prediction == 1, reference == 1), "iou": iou(prediction == 1, reference == 1)}


def membrane_scores(
    mask: NDArray[np.int64], probability: NDArray[np.float32], reference: NDArray[np.int64]
) -> dict[str, float]:
    """Dice, IoU and pixel error (share of pixels that differ) of a mask, and the ISBI scores at every threshold.

    Args:
        mask: 1 where membrane is predicted.
        probability: Of membrane, of the mask's shape.
        reference: 1 where membrane is.

    Returns:
        ``dice``, ``iou``, ``pixel_error``, and ``rand 0.1``, ``information 0.1``, … for each of THRESHOLDS.
    """
    if np.mean((probability >= HALF) != (mask == 1)) > TIES:
        raise ValueError("probabilities: expected those that the mask was made of, got others.")
    found = image_scores(mask, reference) | {"pixel_error": float(np.mean((mask == 1) != (reference == 1)))}
    cells = components(reference == 0)
    for threshold in THRESHOLDS:
        table = joint(thinned(components(probability < threshold)), cells)
        found[f"rand {threshold}"], found[f"information {threshold}"] = rand_score(*table), information_score(*table)
    return found


def components(cells: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Connected components, numbered from 1, of what is no membrane; pixels that touch at corners alone are apart."""
    found: NDArray[np.int32] = ndimage.label(cells)[0].astype(np.int32)
    return found


def thinned(cells: NDArray[np.int32]) -> NDArray[np.int32]:
    """Let cells grow into the membrane until lines one pixel wide (0) are left of it: widths should not count."""
    if not cells.any():
        return cells
    from_cells = ndimage.distance_transform_edt(cells == 0)
    grown: NDArray[np.int32] = watershed(from_cells, cells, watershed_line=True)
    return grown


def joint(cells: NDArray[np.int32], reference: NDArray[np.int32]) -> tuple[NDArray[np.float64], float, int]:
    """How predicted cells share out the pixels of reference cells; those of reference membrane do not count.

    Returns:
        Shares of these pixels by (predicted, reference) cell, the share that is no predicted cell, and their number.
    """
    inside = reference > 0
    pixels = int(np.count_nonzero(inside))
    table = np.zeros((int(cells.max()) + 1, int(reference.max()) + 1))
    np.add.at(table, (cells[inside], reference[inside]), 1 / max(pixels, 1))
    return table, float(table[0].sum()), pixels


def rand_score(table: NDArray[np.float64], lost: float, pixels: int) -> float:
    """V_Rand: pairs of pixels that both put into one cell, over the mean number of pairs that either does.

    A pixel that is no predicted cell is a cell of its own, as in the challenge's program.

    Args:
        table: As :func:`joint` gives it, with the share ``lost`` in row 0, and the number of ``pixels``.
        lost: Share of the pixels that is no predicted cell.
        pixels: Number of pixels.
    """
    if not pixels:
        return float("nan")
    alone = lost / pixels  # sum of (1 / pixels)² over the lost pixels
    both = float(np.sum(table[1:] ** 2)) + alone
    predicted = float(np.sum(table[1:].sum(axis=1) ** 2)) + alone
    return both / (0.5 * predicted + 0.5 * float(np.sum(table.sum(axis=0) ** 2)))


def information_score(table: NDArray[np.float64], lost: float, pixels: int) -> float:
    """V_Info: mutual information over the mean entropy of both; 1 where both have a single cell. See rand_score."""
    if not pixels:
        return float("nan")
    alone = lost * np.log(pixels)  # entropy of the lost pixels, a cell each
    predicted = _entropy(table[1:].sum(axis=1)) + alone
    reference = _entropy(table.sum(axis=0))
    both = _entropy(table[1:].ravel()) + alone
    mean = 0.5 * (predicted + reference)
    return float((predicted + reference - both) / mean) if mean > 0 else 1.0


def best_threshold(cases: Iterable[Mapping[str, float]], score: str) -> tuple[float, float]:
    """The threshold at which the mean of ``rand`` or ``information`` over the cases is best, and that mean."""
    listed = list(cases)
    means = {n: float(np.mean([case[f"{score} {n}"] for case in listed])) for n in THRESHOLDS}
    best = max(means, key=lambda n: means[n])
    return best, means[best]


def _entropy(shares: NDArray[np.float64]) -> float:
    there = shares[shares > 0]
    return float(-np.sum(there * np.log(there)))
