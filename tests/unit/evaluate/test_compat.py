"""Scores in the conventions of other tools."""

import math

import numpy as np
import pytest
import torch
from medpy.metric import binary
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance
from solids import ball, box, faces_of

from pipeline.evaluate.compat import Organ, compat_scores, voxel_scores
from pipeline.evaluate.metrics import COMPAT_TOOLS

CASES = ("rod", "spheres", "noise", "edge")


def masks(name):
    if name == "rod":  # T3
        sphere = ball((54, 54, 106), (26.5, 26.5, 26.5), 25)
        return sphere, sphere | box(sphere.shape, (25, 25, 52), (4, 4, 50)), (1.0, 1.0, 1.0)
    if name == "spheres":  # T4
        one, other = (ball((48, 44, 44), (x, 21.5, 21.5), 20) for x in (21.5, 24.5))
        return one, other, (1.0, 1.0, 1.0)
    if name == "edge":
        return box((9, 8, 7), (0, 0, 0), (4, 8, 5)), box((9, 8, 7), (1, 0, 2), (8, 5, 5)), (0.8, 1.0, 2.5)
    generator = np.random.default_rng(3)
    return *(generator.random((2, 12, 11, 10)) < 0.4), (1.5, 0.7, 3.0)


def scores(name, tolerance=1.0):
    reference, prediction, spacing = masks(name)
    organs = [Organ(faces_of(mask), mask, (0, 0, 0)) for mask in (reference, prediction)]
    return compat_scores(COMPAT_TOOLS, *organs, reference.shape, spacing, tolerance)


def test_known_values():
    rod, spheres = scores("rod"), scores("spheres")
    assert rod["monai_hd95_mm"] == pytest.approx(22.0)
    assert rod["medpy_hd95_mm"] == 0.0
    assert rod["surface_distance_hd95_mm"] == pytest.approx(19.0)
    assert spheres["monai_nsd"] == pytest.approx(0.432, abs=5e-4)
    assert spheres["surface_distance_nsd"] == pytest.approx(0.534, abs=5e-4)


@pytest.mark.parametrize("name", CASES)
def test_medpy(name):
    reference, prediction, spacing = masks(name)
    found = scores(name)
    assert found["medpy_hd_mm"] == pytest.approx(binary.hd(prediction, reference, spacing), abs=1e-6)
    assert found["medpy_hd95_mm"] == pytest.approx(binary.hd95(prediction, reference, spacing), abs=1e-6)
    assert found["medpy_assd_mm"] == pytest.approx(binary.assd(prediction, reference, spacing), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_monai(name):
    reference, prediction, spacing = masks(name)
    pair = [torch.from_numpy(mask[None, None]) for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": list(spacing)}
    found = scores(name)
    assert found["monai_hd_mm"] == pytest.approx(float(compute_hausdorff_distance(*pair, **options)), abs=1e-5)
    percentile = compute_hausdorff_distance(*pair, percentile=95, **options)
    assert found["monai_hd95_mm"] == pytest.approx(float(percentile), abs=1e-5)
    mean = compute_average_surface_distance(*pair, symmetric=True, **options)
    assert found["monai_asd_mm"] == pytest.approx(float(mean), abs=1e-5)
    assert found["monai_nsd"] == pytest.approx(float(compute_surface_dice(*pair, [1.0], **options)), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_surface_distance(name):
    """MONAI's subvoxel edges are the codes and areas of surface-distance; the scores here follow its definition."""
    reference, prediction, spacing = masks(name)
    edges, distances, areas = get_edge_surface_distance(
        *(torch.from_numpy(np.pad(mask, 1)) for mask in (prediction, reference)),
        spacing=list(spacing),
        use_subvoxels=True,
        symmetric=True,
    )
    parts = []
    for edge, distance, area in zip(edges, distances, areas, strict=True):
        weight, order = area[edge].double().numpy(), np.argsort(distance.double().numpy(), kind="stable")
        parts.append((distance.double().numpy()[order], weight[order]))

    def robust(percent):
        return max(d[min(int(np.searchsorted(np.cumsum(w) / w.sum(), percent / 100)), len(d) - 1)] for d, w in parts)

    found = scores(name)
    (back, back_mm2), (there, there_mm2) = parts
    assert found["surface_distance_hd_mm"] == pytest.approx(robust(100), abs=1e-5)
    assert found["surface_distance_hd95_mm"] == pytest.approx(robust(95), abs=1e-5)
    assert found["surface_distance_mean_reference_mm"] == pytest.approx(there @ there_mm2 / there_mm2.sum(), abs=1e-5)
    assert found["surface_distance_mean_prediction_mm"] == pytest.approx(back @ back_mm2 / back_mm2.sum(), abs=1e-5)
    near = there_mm2[there <= 1].sum() + back_mm2[back <= 1].sum()
    assert found["surface_distance_nsd"] == pytest.approx(near / (there_mm2.sum() + back_mm2.sum()), abs=1e-6)


def test_empty_masks():
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    one, none = (Organ(faces_of(mask), mask, (0, 0, 0)) for mask in (full, empty))
    missed = compat_scores(("monai", "surface-distance"), one, none, (4, 4, 4), (1.0, 1.0, 1.0), 1.0)
    assert set(missed.values()) == {math.inf, 0.0}
    assert [name for name, value in missed.items() if value == 0] == ["monai_nsd", "surface_distance_nsd"]
    neither = compat_scores(("medpy",), none, none, (4, 4, 4), (1.0, 1.0, 1.0), 1.0)
    assert all(math.isnan(value) for value in neither.values())
    assert math.isnan(voxel_scores(none.faces, none.faces, (4, 4, 4), (1.0, 1.0, 1.0), 1.0).hd_mm)
