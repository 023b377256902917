"""What a device has to offer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.model import device
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import PLAIN, Execution, execute, moved, recompute_activations, tried_kernels
from pipeline.model.spec import build_network


def test_free_memory_counts_what_pytorch_holds_but_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (8_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda place: 3_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda place: 1_000)
    assert device.free_bytes(torch.device("cuda", 0)) == 10_000
    monkeypatch.setattr(device, "available_bytes", lambda: 5)
    assert device.free_bytes(torch.device("cpu")) == 5
    assert device.free_bytes(torch.device("mps")) is None


def test_kernels_are_tried_in_blocks_for_gpus_only() -> None:
    gpu, tries = torch.device("cuda", 0), lambda: torch.backends.cudnn.benchmark
    assert not tries()
    with tried_kernels(torch.device("cpu")), tried_kernels(None), tried_kernels(gpu, worth=False):
        assert not tries()
    with tried_kernels(gpu):
        with tried_kernels(gpu):
            assert tries()
        assert tries()  # a block of another thread has ended, say
    assert not tries()
    with pytest.raises(KeyError), tried_kernels(gpu):
        raise KeyError
    assert not tries()


def test_who_wants_kernels_tried_keeps_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with tried_kernels(torch.device("cuda", 0)):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


def test_only_on_the_way_to_a_gpu_nobody_waits() -> None:
    calls: list[tuple[str, bool]] = []

    class Noted(torch.Tensor):
        def to(self, device: torch.device, non_blocking: bool = False) -> torch.Tensor:  # type: ignore[override]
            calls.append((device.type, non_blocking))
            return self

    for name in ("cpu", "cuda"):
        moved(Noted(), torch.device(name))
    assert calls == [("cpu", False), ("cuda", True)]


# Ways of executing a network differ in speed and memory, not in what comes out.

CPU = torch.device("cpu")


def gradients(network: SegmentationNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network.zero_grad()
    output = network.train()(images)
    heads = [output] if isinstance(output, torch.Tensor) else list(output.values())
    sum(head.square().mean() for head in heads).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"features": (4, 8), "norm": "instance", "deep_supervision": True, "dropout": 0.3}),
        ("unetpp", {"features": (4, 8, 8), "norm": "instance", "deep_supervision": True}),
        ("resunet", {"features": (4, 8), "norm": "instance"}),
    ],
)
def test_recomputed_activations_give_the_same_gradients(name: str, options: dict[str, object]) -> None:
    network = build_network(name, 2, 1, 2, seed=0, **options)
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = gradients(network, images)
    names = list(network.state_dict())
    kept: list[int] = []
    recompute_activations(network)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        found = gradients(network, images)
    assert list(network.state_dict()) == names
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)


def test_recomputing_keeps_less() -> None:
    sizes = []
    for recompute in (False, True):
        network = build_network("unet", 2, 1, 2, seed=0, features=(4, 8, 16), norm="instance")
        if recompute:
            recompute_activations(network)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            network.train()(torch.randn(1, 1, 64, 64))
        sizes.append(sum(kept))
    assert sizes[1] < 0.6 * sizes[0]


def test_compiled_networks_give_the_same_logits_and_predict_any_size() -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.ones(3))
    except Exception as error:  # no compiler, or no headers of Python
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    options = {"features": (4, 8), "norm": "instance", "deep_supervision": False}
    plain, fused = (build_network("unet", 2, 1, 2, seed=0, **options) for _ in range(2))
    execute(plain, CPU, PLAIN)
    execute(fused, CPU, Execution(compiled="fused"))
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for key, gradient in gradients(plain, images).items():
        torch.testing.assert_close(gradients(fused, images)[key], gradient, rtol=1e-4, atol=1e-5)
        break
    assert list(fused.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        larger = torch.randn(1, 1, 24, 32)
        torch.testing.assert_close(fused.eval()(larger), plain.eval()(larger))


def test_channels_first_is_left_alone() -> None:
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8))
    execute(network, CPU, Execution(channels_last=False))
    assert all(p.is_contiguous() for m in network.modules() if isinstance(m, nn.Conv3d) for p in m.parameters())
    images = torch.zeros(2, 3, 4, 4, 4)
    assert Execution(channels_last=False).images(images) is images
    assert PLAIN.images(images).stride()[1] == 1
    assert str(Execution(compiled="graphs")) == "channels last, graphs"
