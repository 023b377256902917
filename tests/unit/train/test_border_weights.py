"""The border weight map against a brute-force reference, and what its paper says of it."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.train.border_weights import border_map, instances, squared_distances


def brute_force(labels: NDArray[np.int64], largest: float, sigma: float) -> NDArray[np.float64]:
    numbered = instances(labels)
    places = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), -1).reshape(-1, 1, labels.ndim)
    objects = [np.argwhere(numbered == n)[None] for n in range(1, numbered.max() + 1)]
    distances = np.sort([np.sqrt(((places - voxels) ** 2).sum(2).min(1)) for voxels in objects], axis=0)
    return (largest * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))).reshape(labels.shape)


@pytest.mark.parametrize(
    ("size", "sigma", "share"),
    [((20, 26), 1.0, 0.03), ((20, 26), 2.5, 0.2), ((40, 40), 0.7, 0.01), ((9, 8, 10), 1.5, 0.1)],
)
def test_map_equals_brute_force(size: tuple[int, ...], sigma: float, share: float) -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(size) < share) * generator.integers(1, 4, size) - (generator.random(size) < 0.05)
    ours = border_map(torch.from_numpy(labels)[None], 10.0, sigma)[0]
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), brute_force(labels, 10.0, sigma), rtol=1e-5, atol=1e-6)


def test_touching_objects_have_nearly_the_largest_weight() -> None:
    labels = torch.tensor([[[1, 1, 2, 2]]])  # d1 + d2: 0 + 2, 0 + 1, 0 + 1, 0 + 2
    expected = [10 * math.exp(-d / 50) for d in (4, 1, 1, 4)]
    assert border_map(labels, 10.0, 5.0)[0, 0].tolist() == pytest.approx(expected, rel=1e-6)


def test_one_object_or_none_has_no_border() -> None:
    labels = torch.zeros((3, 8, 8), dtype=torch.int64)
    labels[1, 2:5, 2:5] = 1
    labels[2] = -1
    assert not border_map(labels, 10.0, 5.0).any()


def test_objects_far_from_each_other_have_no_border() -> None:
    labels = torch.zeros((1, 1, 40), dtype=torch.int64)
    labels[0, 0, [0, 39]] = 1
    assert not border_map(labels, 10.0, 1.0).any()


def test_patches_of_a_batch_know_nothing_of_each_other() -> None:
    labels = torch.zeros((2, 1, 5), dtype=torch.int64)
    labels[0, 0, [0, 2]] = 1
    labels[1, 0, 0] = 1
    weights = border_map(labels, 10.0, 1.0)
    assert float(weights[0, 0, 1]) == pytest.approx(10 * math.exp(-2))
    assert not weights[1].any()


def test_nested_regions_are_one_object() -> None:
    labels = torch.tensor([[[1, 2, 1, 0, 1]]])
    as_regions = border_map(labels, 10.0, 1.0, regions=((1, 2), (2,)))[0, 0]
    assert torch.equal(as_regions, border_map(labels.clamp(max=1), 10.0, 1.0)[0, 0])
    assert float(border_map(labels, 10.0, 1.0)[0, 0, 1]) == pytest.approx(10 * math.exp(-0.5))  # as classes they touch


def test_instances_are_components_that_share_a_face() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 1], [2, -1, 1]])
    assert instances(labels).tolist() == [[1, 1, 0], [0, 0, 2], [3, 0, 2]]


@pytest.mark.parametrize("reach", [3, 150])  # int16, int32
def test_squared_distances_up_to_a_limit(reach: int) -> None:
    masks = torch.zeros((2, 1, 7), dtype=torch.bool)
    masks[0, 0, 1] = True
    far = min(25, reach**2 + 1), min(16, reach**2 + 1)
    assert squared_distances(masks, reach)[:, 0].tolist() == [[1, 0, 1, 4, 9, far[1], far[0]], [reach**2 + 1] * 7]
