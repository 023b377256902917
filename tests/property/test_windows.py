import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.windows import window_starts

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


@settings(deadline=None, max_examples=60)
@given(
    geometry=_geometry(),
    blend=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 50),
    volumes=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_identity_network_returns_its_input(geometry, blend, batch, volumes, seed):
    shape, window, overlap = geometry
    inputs = torch.randn(volumes, 2, *shape, generator=torch.Generator().manual_seed(seed))
    before = inputs.clone()
    result = StreamingInferer(window, overlap, blend, batch)(inputs, lambda patch: patch)
    torch.testing.assert_close(result, before, atol=1e-5, rtol=0)
    assert torch.equal(inputs, before)
