"""Planning rules with values worked out by hand."""

import math

import pytest

from pipeline.preprocess.topology import batch_size, plan_patch, target_spacing, topology


def test_target_spacing_is_the_median_per_axis() -> None:
    assert target_spacing([(1, 1, 2), (1, 1, 3), (2, 2, 2.5)], [(100, 100, 60)] * 3) == (1, 1, 2.5)


def test_a_much_coarser_axis_takes_its_10th_percentile() -> None:
    spacings = [(1.0, 1.0, float(z)) for z in range(4, 15)]  # 4 … 14: median 9, 10th percentile 5
    assert target_spacing(spacings, [(300, 300, 50)] * 11) == (1.0, 1.0, 5.0)
    # the same spacing with as many slices as a third of the other axes is left alone
    assert target_spacing(spacings, [(300, 300, 100)] * 11) == (1.0, 1.0, 9.0)


def test_the_exception_never_gets_finer_than_the_other_axes() -> None:
    spacings = [(2.0, 2.0, z) for z in (1.0, 7.0, 7.0, 7.0)]
    assert target_spacing(spacings, [(300, 300, 50)] * 4)[2] == pytest.approx(max(2.8, 2.0))


def test_isotropic_patch_is_pooled_while_8_voxels_are_left() -> None:
    shape = topology((64, 64, 64), (1, 1, 1))
    assert shape.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert shape.divisor == (16, 16, 16)


def test_coarse_axis_is_pooled_later_and_gets_flat_kernels() -> None:
    shape = topology((128, 128, 16), (1, 1, 5), max_stages=6)
    # spacing 1 → 2 → 4 in plane; the slice axis joins when the in-plane spacing is above 2.5
    assert shape.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1))
    assert shape.kernel_sizes[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_hippocampus_gets_the_patch_nnunet_plans() -> None:
    # facts: 36 x 50 x 35 voxels at 1 mm → patch 40 x 56 x 40
    assert plan_patch((36, 50, 35), (1, 1, 1), 128**3) == (40, 56, 40)


def test_large_volume_is_shrunk_to_the_budget() -> None:
    patch = plan_patch((512, 512, 200), (0.8, 0.8, 2.5), 128**3)
    divisor = topology(patch, (0.8, 0.8, 2.5)).divisor
    assert math.prod(patch) <= 128**3
    assert all(n % d == 0 for n, d in zip(patch, divisor, strict=True))
    assert math.prod(patch) > 0.5 * 128**3


def test_batch_follows_budget_and_dataset() -> None:
    assert batch_size((128, 128, 128), 128**3, 1e12) == 2
    assert batch_size((64, 64, 64), 128**3, 1e12) == 16
    assert batch_size((40, 56, 40), 128**3, 208 * 36 * 50 * 35) == 7  # 5 % of the dataset
    assert batch_size((40, 56, 40), 128**3, 10.0) == 2
