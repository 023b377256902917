"""What a device has to offer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.core.errors import VolsegError
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


# Choosing a device asks and does not use: opening a GPU takes memory there, and in some clusters the only place.


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*_: object, **__: object) -> None:
        raise AssertionError("a GPU was used")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("_lazy_init", "init", "mem_get_info", "current_device", "set_device"):
        monkeypatch.setattr(torch.cuda, name, used)
    for name in ("zeros", "empty", "ones", "tensor"):
        monkeypatch.setattr(torch, name, used)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "chosen"),
    [(None, "cuda"), ("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_choosing_a_device_opens_none(name: str | None, chosen: str) -> None:
    assert str(device.choose_device(name)) == chosen
    assert [str(place) for place in device.choose_devices("cuda:all")] == ["cuda:0", "cuda:1"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "gpu", "cuda:x", "mps:1", "xla", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(VolsegError, match="device: expected one of cpu, cuda:0, cuda:1"):
        device.choose_device(name)


def test_without_a_gpu_its_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.choose_device(None) == torch.device("cpu")
    with pytest.raises(VolsegError, match=r"device: expected one of cpu.*, got 'cuda'"):
        device.choose_device("cuda")


# Running out of memory has many names.


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried 9"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    ],
)
def test_too_little_memory_is_known_in_all_wordings(error: Exception) -> None:
    assert device.out_of_memory(error)
    said = r"memory of cuda:0: expected enough for a step, got too little\. Lower sample\.batch_size\."
    with pytest.raises(VolsegError, match=said), device.enough_memory("cuda:0", "a step", "Lower sample.batch_size"):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory"), KeyError()],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert not device.out_of_memory(error)
    with pytest.raises(type(error)), device.enough_memory("cuda:0", "a step", "Lower sample.batch_size"):
        raise error


@pytest.mark.parametrize(
    "words", ["CUDA-capable device(s) is/are busy or unavailable", "all CUDA-capable devices are busy or unavailable"]
)
def test_a_gpu_that_another_process_holds_is_told(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(f"CUDA error: {words}\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    monkeypatch.setattr(nn.Module, "to", refuse)
    gpu = torch.device("cuda", 0)
    said = r"^device cuda:0: expected a GPU that is free, got one .*another process .*`nvidia-smi` .*--device"
    with pytest.raises(VolsegError, match=said):
        device.free_bytes(gpu)  # what a training asks first
    with pytest.raises(VolsegError, match=said):
        device.to_device(nn.ReLU(), gpu)  # and a prediction
    with pytest.raises(VolsegError, match=said), device.enough_memory(gpu, "a step", "Lower sample.batch_size"):
        refuse()


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
