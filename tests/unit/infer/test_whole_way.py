"""From an image through windows to its mask: what is streamed is what all logits at once would give."""

import numpy as np
import pytest
import torch
from members import logits_of, member_of, smooth_scan
from torch import nn

from pipeline.core.grid import reorient_array
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.prepare_case import prepare_image
from pipeline.stages.predict import Predictor


def _network(classes):
    torch.manual_seed(classes)
    return nn.Conv3d(1, classes, 5, padding=2).eval()


def _at_once(member, image):
    """The mask by way of all logits on the image's own voxels, and where no rounding can change it."""
    array, trace = prepare_image(image, member.card.plan)
    logits = resample(logits_of(member, torch.from_numpy(array)), trace.cropped.shape, 1)
    best, second = logits.topk(2, dim=0).values
    mask, sure = np.zeros(trace.reoriented.shape, np.uint8), np.ones(trace.reoriented.shape, bool)
    box = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
    mask[box], sure[box] = logits.argmax(dim=0).numpy(), (best - second > 1e-5).numpy()
    assert box != tuple(slice(0, n) for n in mask.shape)  # something was cropped
    return [reorient_array(values, trace.orientation, trace.source.orientation) for values in (mask, sure)]


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAL"])
@pytest.mark.parametrize("classes", [3, 25, 105])
def test_masks_are_those_of_all_logits_at_once(classes, orientation):
    image, member = smooth_scan(orientation), member_of(_network(classes), classes)
    expected, sure = _at_once(member, image)
    found = Predictor([member]).predict(image)
    assert found.grid == image.grid
    assert sure.mean() > 0.999
    assert len(np.unique(found.array)) > 2
    np.testing.assert_array_equal(found.array[sure], expected[sure])


@pytest.mark.parametrize("classes", [3, 25, 105])
def test_half_sums_give_almost_the_same_mask(classes):
    image, network = smooth_scan("LPI", blobs=3), _network(classes)
    full, half = (
        Predictor([member_of(network, classes, accumulate=sums)]).predict(image).array
        for sums in ("float32", "float16")
    )
    assert (full == half).mean() >= 0.9999
