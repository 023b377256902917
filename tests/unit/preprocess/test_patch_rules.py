"""Target spacing, patch and batch by hand; ``test_plan.py`` holds whole plans against nnU-Net's."""

from __future__ import annotations

import pytest

from pipeline.preprocess.patch_rules import batch_size, plan_patch, target_spacing


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


def test_too_little_memory_ends_at_the_smallest_patch() -> None:
    assert plan_patch((200, 200, 100), (1, 1, 2), 2, 1e-9) == (1, 1, 1)
    assert plan_patch((20, 30), (1, 1), 2, 1e-9) == (1, 1)


def test_batch_is_at_least_2_and_at_most_a_20th_of_the_dataset() -> None:
    assert batch_size((40, 56, 40), (1, 1, 1), 3, 8, 208 * 36 * 50 * 35) == 7
    assert batch_size((40, 56, 40), (1, 1, 1), 3, 8, 10.0) == 2
    assert batch_size((128, 128, 128), (1, 1, 1), 2, 8, 1e12) == 2
