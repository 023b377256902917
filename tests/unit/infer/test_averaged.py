"""Networks that are averaged window by window."""

import torch
from torch import nn

from pipeline.infer.averaged import averaged, device_of

CPU = torch.device("cpu")


def test_the_mean_of_logits_and_windows_left_as_they_are():
    windows = torch.arange(6.0).reshape(1, 1, 2, 3)
    before = windows.clone()
    mean = averaged([nn.Identity(), lambda x: 3 * x, lambda x: -x], [CPU] * 3, torch.float32)
    assert torch.equal(mean(windows), before)  # (1 + 3 - 1) / 3
    assert torch.equal(windows, before)


def test_networks_compute_in_their_type_and_are_averaged_in_float32():
    layers = [nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)]
    windows = torch.ones(1, 1, 4, 4)
    assert averaged(layers[:1], [CPU], torch.bfloat16)(windows).dtype == torch.bfloat16
    both = averaged(layers, [CPU, CPU], torch.bfloat16)(windows)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both, (layers[0](windows) + layers[1](windows)) / 2, rtol=0.02, atol=0.02)
    assert {device_of(layers[0]), device_of(nn.Identity())} == {CPU}
