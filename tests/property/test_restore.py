import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restoring import restore_labels

from pipeline.core.grid import ORIENTATIONS, Grid, reorient_array
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.resample import resample_labels

_shapes = st.tuples(*[st.integers(1, 12)] * 3)


@st.composite
def _traces(draw):
    """Any source orientation and spacing, any orientation of work, any crop, any prepared shape."""
    spacing = draw(st.tuples(*[st.floats(0.3, 6.0)] * 3))
    source = Grid.from_spacing(draw(_shapes), spacing, draw(st.sampled_from(ORIENTATIONS)))
    orientation = draw(st.sampled_from(ORIENTATIONS))
    reoriented = source.reoriented(orientation)
    starts = [draw(st.integers(0, n - 1)) for n in reoriented.shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, reoriented.shape, strict=True)]
    crop = reoriented.cropped(starts, stops)
    shape = draw(st.one_of(st.just(crop.shape), _shapes))
    return GridHistory(source, orientation, tuple(starts), tuple(stops), crop.resized(shape))


@settings(deadline=None, max_examples=100)
@given(
    trace=_traces(),
    classes=st.sampled_from([2, 4, 12]),
    planes=st.integers(1, 12),
    axis=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_restored_labels_are_those_of_the_whole_volume_on_the_source_grid(trace, classes, planes, axis, seed):
    logits = torch.randn(classes, *trace.prepared.shape, generator=torch.Generator().manual_seed(seed))
    restored = restore_labels(logits, trace, planes, axis)
    assert restored.shape == trace.source.shape
    whole = resample(logits, trace.cropped.shape, 1)
    expected = np.zeros(trace.reoriented.shape, dtype=np.uint8)
    sure = np.ones(trace.reoriented.shape, dtype=bool)
    crop = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
    expected[crop] = whole.argmax(dim=0).numpy()
    best, second = whole.topk(2, dim=0).values
    sure[crop] = (best - second > 1e-5).numpy()  # a tie may go either way, depending on rounding
    assert sure.mean() > 0.99 or sure.size < 1000
    turned = reorient_array(restored, trace.source.orientation, trace.orientation)
    np.testing.assert_array_equal(turned[sure], expected[sure])


@settings(deadline=None, max_examples=50)
@given(trace=_traces())
def test_trace_survives_json(trace):
    assert GridHistory.from_json(trace.to_json()) == trace


@settings(deadline=None, max_examples=100)
@given(shape=_shapes, target=_shapes, order=st.sampled_from([0, 1, 3]), value=st.floats(-1000, 1000, width=32))
def test_constant_images_stay_constant(shape, target, order, value):
    resampled = resample(np.full(shape, value, dtype=np.float32), target, order)
    assert resampled.shape == target
    np.testing.assert_allclose(resampled, value, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(shape=_shapes, target=_shapes, seed=st.integers(0, 2**31))
def test_resampled_labels_invent_no_value(shape, target, seed):
    label = np.random.default_rng(seed).choice([-1, 0, 3, 90], size=shape).astype(np.int8)
    resampled = resample_labels(label, target)
    assert resampled.shape == target
    assert resampled.dtype == np.int8
    assert set(np.unique(resampled)) <= set(np.unique(label))
