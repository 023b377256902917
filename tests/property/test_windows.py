import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.windows import Tiling, window_starts

_overlaps = st.floats(0.0, 0.99)


@settings(deadline=None, max_examples=300)
@given(size=st.integers(1, 400), window=st.integers(1, 200), overlap=_overlaps)
def test_windows_cover_every_voxel_and_keep_inside(size, window, overlap):
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    if size <= window:
        assert starts == [0]
        return
    gaps = np.diff(starts)
    assert starts[-1] == size - window
    assert gaps.min() >= 1
    assert gaps.max() <= window  # no hole
    assert gaps.max() <= max(1.0, window * (1 - overlap)) + 1  # the overlap is kept, but for rounding
    assert gaps.max() - gaps.min() <= 1  # evenly spread


@st.composite
def _geometry(draw):
    axes = draw(st.integers(2, 3))
    sizes = st.lists(st.integers(1, 13), min_size=axes, max_size=axes)
    return draw(sizes), draw(sizes), draw(st.lists(st.floats(0.0, 0.8), min_size=axes, max_size=axes))


@settings(deadline=None, max_examples=100)
@given(
    geometry=_geometry(),
    blend=st.sampled_from(["gaussian", "constant", "hann"]),
    batch=st.integers(1, 50),
    axis=st.sampled_from(["auto", 0, 1]),
    placement=st.sampled_from(["interval", "even"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    volumes=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_identity_network_returns_its_input_and_nothing_of_the_callers_is_written(
    geometry, blend, batch, axis, placement, dtype, volumes, seed
):
    shape, window, overlap = geometry
    inputs = torch.randn(volumes, 2, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before, returned = inputs.clone(), []

    def network(windows):
        returned.append((windows, windows.clone()))
        return windows

    result = StreamingInferer(window, overlap, blend, batch, axis, placement=placement)(inputs, network)
    torch.testing.assert_close(result, before.float(), atol=1e-5, rtol=0)
    assert torch.equal(inputs, before)
    assert all(torch.equal(logits, copy) for logits, copy in returned)


@settings(deadline=None, max_examples=100)
@given(
    geometry=_geometry(),
    placement=st.sampled_from(["interval", "even"]),
    margin=st.integers(0, 3),
    step=st.integers(1, 4),
)
def test_windows_give_logits_for_every_voxel(geometry, placement, margin, step):
    shape, window, overlap = geometry
    axes = len(shape)
    if margin:
        window = [max(size, step) + 2 * margin for size in window]
    tiling = Tiling.of(window, overlap, [margin] * axes, [step] * axes, placement)
    seen = np.zeros(shape, bool)
    for place in tiling.starts(shape, 0):
        seen[tuple(slice(max(0, start), start + size) for start, size in zip(place, tiling.tile, strict=True))] = True
    assert seen.all()


@pytest.mark.parametrize("placement", ["interval", "even"])
def test_twice_the_length_is_twice_the_windows(placement):
    tiling = Tiling.of((96, 96, 96), 0.5, None, None, placement)
    counts = [len(tiling.starts((273, 273, length), 2)) for length in (480, 960, 1920)]
    assert counts == [25 * 9, 25 * 19, 25 * 39]  # a window of 96 and one more per 48 planes
