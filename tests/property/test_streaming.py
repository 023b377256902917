"""Streamed logits are MONAI's, and streamed labels those of the full logits, whatever the geometry."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.labelling import PlaneLabels, decode
from pipeline.preprocess.interpolation import resample


@st.composite
def _geometry(draw, most=13):
    axes = draw(st.integers(2, 3))
    sizes = st.lists(st.integers(1, most), min_size=axes, max_size=axes)
    return draw(sizes), draw(sizes), draw(st.lists(st.floats(0.0, 0.8), min_size=axes, max_size=axes))


def _network(axes, channels, classes):
    torch.manual_seed(axes)
    convolution = nn.Conv2d if axes == 2 else nn.Conv3d
    return convolution(channels, classes, 3, padding=1).eval()


@settings(deadline=None, max_examples=80)
@given(
    geometry=_geometry(),
    blend=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 5),
    volumes=st.integers(1, 2),
    axis=st.sampled_from(["auto", 0, 1]),
    last=st.booleans(),
)
def test_logits_are_those_of_monai(geometry, blend, batch, volumes, axis, last):
    shape, window, overlap = geometry
    inputs = torch.randn(volumes, 2, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    network = _network(len(shape), 2, 3)
    called = (
        (lambda x: network(x).contiguous(memory_format=(torch.channels_last, torch.channels_last_3d)[x.ndim - 4]))
        if last
        else network
    )
    with torch.no_grad():
        expected = sliding_window_inference(inputs, window, batch, network, overlap=overlap, mode=blend)
    found = StreamingInferer(window, overlap, blend, batch, axis)(inputs, called)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


_REGIONS = (((0,), 1), ((1, 2), 2), ((0, 2), 3))


@settings(deadline=None, max_examples=150)
@given(
    shape=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    target=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    classes=st.sampled_from([1, 2, 3, 9, 30, 105]),
    regions=st.booleans(),
    planes=st.integers(1, 10),
    smooth=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_labels_are_those_of_resampled_logits(shape, target, classes, regions, planes, smooth, seed):
    painting, classes = (_REGIONS, 3) if regions else ((), classes)
    logits = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))
    if smooth:  # a few organs, their borders the only cells where voxels disagree
        logits = logits + 5 * torch.as_tensor(
            np.indices(shape).sum(0) // 3 == torch.arange(classes).reshape(-1, 1, 1, 1)
        )
    values = logits.movedim(0, -1).contiguous()
    slabs = PlaneLabels(shape, target, painting)
    rows = [row for first in range(0, shape[0], planes) for row in slabs.add(values[first : first + planes])]
    assert [first for first, _ in rows] == list(np.cumsum([0, *(len(part) for _, part in rows[:-1])]))
    found = torch.cat([part for _, part in rows]).long()
    whole = torch.as_tensor(resample(logits, target, 1))
    expected = decode(whole, painting)
    assert found.shape == expected.shape
    differ = found != expected
    if differ.any():  # rounding may decide exact ties alone
        gap = whole.abs().amin(0) if painting else whole.topk(min(2, classes), 0).values.diff(dim=0).abs()[0]
        assert gap[differ].max() < 1e-5


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("axes", [2, 3])
def test_label_maps_are_the_winners_of_the_logits(axes, classes):
    shape, target = (14, 9, 11)[:axes], (20, 15, 9)[:axes]
    inputs = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    network, inferer = _network(axes, 1, classes), StreamingInferer((6, 5, 4)[:axes], 0.4, batch=3)
    logits = inferer(inputs, network)
    assert torch.equal(inferer.label_map(inputs, network).long(), logits.argmax(1))
    found = inferer.label_map(inputs, network, target)
    assert (found.shape, found.dtype) == ((2, *target), torch.uint8)
    for number in range(2):
        whole = logits[number] if axes == 3 else logits[number][..., None]
        expected = torch.as_tensor(resample(whole, [*target, 1][:3], 1)).argmax(0).reshape(target)
        assert torch.equal(found[number].long(), expected)
