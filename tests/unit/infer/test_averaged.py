"""Networks that are averaged window by window."""

import weakref
from collections import namedtuple

import torch
from torch import nn

from pipeline.infer.averaged import averaged, device_of, spread

CPU = torch.device("cpu")
Place = namedtuple("Place", "name type")


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


def test_networks_are_spread_one_after_the_other():
    one, two, three = (torch.device("cuda", n) for n in range(3))
    assert spread(5, [one, two]) == [one, two, one, two, one]
    assert spread(2, [one, two, three]) == [one, two]
    assert spread(2, [CPU]) == [CPU, CPU]


def test_no_more_logits_are_held_than_there_are_devices():
    alive, most = [], []

    def network(windows):
        most.append(sum(one() is not None for one in alive))
        logits = windows * len(most)
        alive.append(weakref.ref(logits))
        return logits

    windows = torch.ones(1, 1, 2, 2)
    assert averaged([network] * 4, [CPU] * 4, torch.float32)(windows).unique().tolist() == [2.5]
    assert max(most) == 0


def test_all_devices_start_before_the_first_is_waited_for():
    log = []
    one, other = (Place(name, "cpu") for name in "ab")  # the CPU stands in for both

    class Windows:
        def to(self, device):
            log.append(f"to {device.name}")
            return torch.ones(1, 1, 2)

    class Logits(torch.Tensor):
        def to(self, *args, **kwargs):
            log.append("gather")
            return self.as_subclass(torch.Tensor).to(*args, **kwargs)

    mean = averaged([lambda x: (x * 2).as_subclass(Logits)] * 4, [one, other] * 2, torch.float32)
    assert mean(Windows()).unique().tolist() == [2.0]
    assert log == ["to a", "to b", "gather", "gather"] * 2
