"""Target spacing and the coarse axis, by hand."""

import pytest

from pipeline.preprocess.spacing import coarse_axis, target_spacing


def test_target_spacing_is_the_median_per_axis() -> None:
    assert target_spacing([(1, 1, 2), (1, 1, 3), (2, 2, 2.5)], [(100, 100, 60)] * 3)[0] == (1, 1, 2.5)


def test_a_much_coarser_axis_takes_its_10th_percentile() -> None:
    spacings = [(1.0, 1.0, float(z)) for z in range(4, 15)]  # 4 … 14: median 9, 10th percentile 5
    assert target_spacing(spacings, [(300, 300, 50)] * 11)[0] == (1.0, 1.0, 5.0)
    assert "Axis k takes its 10th percentile" in target_spacing(spacings, [(300, 300, 50)] * 11)[1]
    # the same spacing with as many slices as a third of the other axes is left alone
    assert target_spacing(spacings, [(300, 300, 100)] * 11)[0] == (1.0, 1.0, 9.0)


def test_the_exception_never_gets_finer_than_the_other_axes() -> None:
    spacings = [(2.0, 2.0, z) for z in (1.0, 7.0, 7.0, 7.0)]
    assert target_spacing(spacings, [(300, 300, 50)] * 4)[0][2] == pytest.approx(max(2.8, 2.0))


def test_which_axis_is_coarse() -> None:
    assert coarse_axis((1, 1, 3.1), (1, 1, 1)) == 2
    assert coarse_axis((1, 1, 1), (0.5, 2, 0.5)) == 1
    assert coarse_axis((1, 1, 3), (1, 1, 1)) is None
    assert coarse_axis((0.24, 1.25, 1.25), (1, 1, 1)) is None
    assert coarse_axis((4, 1, 1), (1, 1, 9)) == 0
