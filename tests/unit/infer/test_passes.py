"""Several networks over every window: their mean, what is held meanwhile, and too little memory on the way."""

import weakref

import pytest
import torch
from torch import nn

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.mirror import Rotation
from pipeline.infer.passes import Passes, spread

CPU = torch.device("cpu")


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mean_of_logits_and_windows_left_as_they_are():
    inputs = torch.arange(24.0).reshape(1, 1, 2, 12)
    before = inputs.clone()
    passes = Passes([nn.Identity(), lambda x: x.mul_(3), lambda x: -x])
    torch.testing.assert_close(StreamingInferer((2, 4), batch=2)(inputs, passes), before)  # (1 + 3 - 1) / 3
    assert torch.equal(inputs, before)


def test_networks_compute_in_their_type_and_are_averaged_in_float32():
    layers = [nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)]
    seen = [layer.register_forward_hook(lambda _, __, found: types.add(found.dtype)) for layer in layers]
    types, inputs = set(), torch.ones(1, 1, 4, 4)
    found = StreamingInferer((4, 4))(inputs, Passes(layers, torch.bfloat16))
    assert (types, found.dtype, len(seen)) == ({torch.bfloat16}, torch.float32, 2)
    expected = (layers[0](inputs) + layers[1](inputs)) / 2
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_networks_are_spread_one_after_the_other():
    one, two, three = (torch.device("cuda", n) for n in range(3))
    assert spread(5, [one, two]) == [one, two, one, two, one]
    assert spread(2, [one, two, three]) == [one, two]
    assert spread(2, [CPU]) == [CPU, CPU]


@pytest.mark.parametrize("devices", [1, 2])
def test_no_more_logits_are_held_than_there_are_devices(devices, monkeypatch):
    alive, most = [], []

    def network(windows):
        most.append(sum(one() is not None for one in alive))
        logits = windows * 2
        alive.append(weakref.ref(logits))
        return logits

    passes, inputs = Passes([network] * 4, axes=(0, 1), rotation=Rotation((0, 1))), _random(1, 1, 4, 10)
    names = [CPU, None][:devices]  # no device of its own stands in for another one
    passes.devices = [names[n % devices] for n in range(4)]
    torch.testing.assert_close(StreamingInferer((4, 4))(inputs, passes), 2 * inputs)
    assert len(most) % 32 == 0
    assert max(most) == devices - 1


def test_all_devices_start_before_the_first_is_waited_for():
    log = []

    def network(name):
        return lambda x: log.append(name) or torch.ones_like(x)

    class Logits(torch.Tensor):
        """Says when it is fetched from its device."""

        def __getitem__(self, key):
            log.append("fetched")
            return self.as_subclass(torch.Tensor)[key]

    def device(name):
        made = network(name)
        return lambda x: made(x).as_subclass(Logits)

    passes = Passes([device("a"), device("b")] * 2)
    passes.devices = [CPU, None] * 2
    assert StreamingInferer((2,) * 2)(torch.zeros(1, 1, 2, 2), passes).unique().tolist() == [1.0]
    assert log == ["a", "b", "fetched", "a", "fetched", "b", "fetched", "fetched"]


@pytest.mark.parametrize("fails_at", range(1, 13))
def test_too_little_memory_on_the_way_goes_on_from_there_with_half_the_windows(fails_at):
    inputs, calls, done = _random(1, 1, 4, 32), [], []

    def network(x):
        calls.append(len(x))
        if len(calls) == fails_at and len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * x

    inferer = StreamingInferer((4, 4), 0.0, batch=4, axis=0, progress=lambda *told: done.append(told))
    found = inferer(inputs, Passes([network], axes=(0, 1)))  # two groups of four windows, four passes
    torch.testing.assert_close(found, 2 * inputs)
    sizes = calls[: fails_at - 1] + calls[fails_at:]
    assert sum(sizes) == 8 * 4  # no window is seen in a pass twice
    assert set(sizes[fails_at - 1 :]) <= {2} or fails_at > 8
    assert done == [(4, 8), (8, 8)]


def test_a_device_that_holds_another_pass_is_emptied_before_the_batch_is_halved():
    inputs, calls = _random(1, 1, 4, 8), []

    def network(x):
        calls.append(len(x))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * x

    passes = Passes([network, network])
    passes.devices = [CPU, None]
    torch.testing.assert_close(StreamingInferer((4, 4), 0.0, batch=2, axis=0)(inputs, passes), 2 * inputs)
    assert calls == [2, 2, 2]


def test_slices_of_several_planes_go_through_all_passes_together():
    inputs, calls = _random(1, 1, 5, 4, 7), []
    passes = Passes([lambda x: calls.append(len(x)) or 2 * x] * 2, axes=(0,))
    found = StreamingInferer((5, 4, 1), batch=3)(inputs, passes)
    torch.testing.assert_close(found, 2 * inputs)
    assert calls == [3] * 4 + [3] * 4 + [1] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sums", ["cpu", "cuda"])
def test_networks_on_a_gpu_with_sums_there_or_on_the_cpu(sums):
    inputs = _random(1, 1, 9, 10, 11)
    network = nn.Conv3d(1, 4, 3, padding=1).eval()
    options = {"axes": (0, 2), "sides": 0, "side_pairs": ((1, 2),), "rotation": Rotation((0, 1))}
    expected = StreamingInferer((4, 4, 8))(inputs, Passes([network], **options))
    passes = Passes([network.cuda()] * 2, **options)
    found = StreamingInferer((4, 4, 8), batch=3)(inputs.to(sums), passes)
    assert found.device.type == sums
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)  # TF32
