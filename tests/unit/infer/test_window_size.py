"""Windows that suit a volume of about the size of the training patch."""

from __future__ import annotations

import pytest
import torch
from members import member
from torch import nn

from pipeline.config import InferSettings, Settings
from pipeline.infer.logits import CaseInference
from pipeline.infer.mirror import Rotation
from pipeline.infer.slices import SliceNetwork
from pipeline.infer.window_size import fitting_window
from pipeline.model.spec import NetworkSpec


def _legal(step):
    class Network(nn.Conv2d if len(step) == 2 else nn.Conv3d):
        def legal_size(self, size):
            return tuple(-(-n // one) * one for n, one in zip(size, step, strict=True))

    return Network(1, 2, 1)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((35, 51, 35), (40, 56, 40)),  # as the patch
        ((33, 47, 29), (40, 48, 32)),  # no padding that can be left out
        ((42, 57, 50), (48, 64, 40)),  # one window instead of two, up to a quarter more; 56 would be too long for 40
        ((51, 200, 9), (40, 56, 24)),  # the patch along long axes; not less than half of it along short ones
    ],
)
def test_windows_fit_volumes_of_about_the_size_of_the_patch(shape, expected):
    assert fitting_window(_legal((8, 8, 8)), (40, 56, 40), shape) == expected


def test_networks_without_rules_see_the_volume_as_it_is():
    assert fitting_window(nn.Identity(), (10, 10, 4), (9, 12, 5)) == (9, 12, 5)


def test_a_window_of_slices_stays_one_slice_thick():
    assert fitting_window(SliceNetwork(_legal((16, 16)), 2), (64, 64, 1), (50, 70, 30)) == (64, 80, 1)


def _inference(size, rotation=None, patch=(8, 8, 8)):
    plan, network = member().card.plan, _legal((2, 2, 2))
    spec = NetworkSpec(name="unet", dims=3, in_channels=1, out_channels=2, options={}, patch_size=patch)
    settings = Settings(infer=InferSettings(window_size=size, batch_size=2)).infer
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return CaseInference([network.eval()], spec, plan, settings, rotation=rotation), seen, network


def test_fit_sees_the_volume_at_once_and_the_default_in_windows():
    image = torch.randn(1, 10, 9, 6, generator=torch.Generator().manual_seed(0))
    found = {}
    for size, expected in ((None, {(2, 1, 8, 8, 8)}), ("fit", {(1, 1, 10, 10, 6)})):
        inference, seen, network = _inference(size)
        network.weight.data.fill_(2)
        network.bias.data.fill_(1)
        found[size] = inference.logits(image)
        assert set(seen) == expected if size == "fit" else expected <= set(seen)
    torch.testing.assert_close(found["fit"], found[None])  # a network of single voxels has nothing to gain


def test_rotated_windows_stay_square():
    inference, seen, _ = _inference("fit", Rotation((0, 1)))
    inference.logits(torch.zeros(1, 10, 7, 6))
    assert {shape[2:] for shape in seen} == {(8, 8, 8)}
