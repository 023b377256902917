"""Properties of distances between surfaces."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from solids import Mask, compared

MASKS = hnp.arrays(np.bool_, (4, 3, 5)).filter(lambda mask: bool(mask.any()))
SPACINGS = st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 5.0])] * 3)


@settings(deadline=None, max_examples=40)
@given(MASKS, MASKS, SPACINGS, st.permutations(range(3)), st.floats(0.1, 4.0))
def test_symmetry_axes_scale_padding_and_tolerance(
    one: Mask, other: Mask, spacing: tuple[float, ...], order: list[int], tolerance: float
) -> None:
    scores = astuple(compared(one, other, spacing, tolerance))
    assert astuple(compared(other, one, spacing, tolerance)) == pytest.approx(scores, abs=1e-6)
    turned = compared(one.transpose(order), other.transpose(order), [spacing[axis] for axis in order], tolerance)
    assert astuple(turned) == pytest.approx(scores, abs=1e-6)
    flipped = compared(one[::-1], other[::-1], spacing, tolerance)
    assert astuple(flipped) == pytest.approx(scores, abs=1e-6)
    padded = compared(np.pad(one, 2), np.pad(other, 2), spacing, tolerance)
    assert astuple(padded) == pytest.approx(scores, abs=1e-6)
    scaled = compared(one, other, [3 * side for side in spacing], 3 * tolerance)
    assert astuple(scaled)[:4] == pytest.approx([3 * value for value in scores[:4]], abs=1e-5)
    assert scaled.nsd == pytest.approx(scores[4], abs=1e-4)
    wider = compared(one, other, spacing, tolerance + 0.3)
    assert scores[4] <= wider.nsd + 1e-9
    assert 0 <= scores[3] <= scores[0]
    assert scores[1] <= scores[0] + 1e-6
    assert (scores[0] == 0) == bool((one == other).all())
