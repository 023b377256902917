"""The stand-in for a GPU refuses and notes what CUDA would; and all tests of a GPU pass with it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in
import torch
from gpu_tensor import OnGpu, watch
from torch import nn

TESTS = Path(__file__).parents[1]
KIB = 1024

with_stand_in = pytest.mark.stand_in


@pytest.mark.timeout(1800)  # all of them, in one process
def test_the_tests_of_a_gpu_pass_with_its_stand_in(gpu_stand_in: dict[str, str]) -> None:
    marks = ("mark.gpu", "mark.stand_in")
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if any(mark in path.read_text() for mark in marks)]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu or stand_in",
        "-p",
        "no:cacheprovider",
        *map(str, files),
    ]
    done = subprocess.run(command, env={**os.environ, **gpu_stand_in}, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@with_stand_in
def test_tensors_are_on_the_gpu_that_was_asked_for() -> None:
    made = [
        torch.zeros(2, device="cuda:1"),
        torch.ones(2).to("cuda:1"),
        torch.tensor([1, 2], device="cuda:1"),
        torch.arange(2, device="cuda:1"),
    ]
    assert {str(tensor.device) for tensor in made} == {"cuda:1"}
    assert [tensor.tolist() for tensor in made] == [[0, 0], [1, 1], [1, 2], [0, 1]]
    assert str(torch.zeros(2, device="cuda").device) == "cuda:0"
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.cuda.set_device(2)


@with_stand_in
def test_what_cuda_refuses_is_refused() -> None:
    one, other, host = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1"), torch.ones(3)
    for refused in (host, other):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            one + refused
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([one, torch.tensor(1.0)[None]])
    with pytest.raises(RuntimeError, match="same device"):
        host[one.long()]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        one.numpy()
    assert (one + torch.tensor(2.0)).tolist() == [3, 3, 3]  # a number
    assert one[torch.tensor([0])].tolist() == [1]  # copied, with a wait
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(2, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.randn(2, generator=torch.Generator("cuda"))


@with_stand_in
def test_each_gpu_draws_by_a_generator_of_its_own() -> None:
    torch.manual_seed(1)
    host = torch.randn(3)
    torch.manual_seed(1)
    first = torch.randn(3, device="cuda"), nn.functional.dropout(torch.ones(30, device="cuda"))
    assert torch.equal(torch.randn(3), host)
    torch.manual_seed(1)
    again = torch.randn(3, device="cuda"), nn.functional.dropout(torch.ones(30, device="cuda"))
    assert [one.tolist() for one in again] == [one.tolist() for one in first]
    own = torch.Generator("cuda").manual_seed(1)
    assert torch.randn(3, device="cuda", generator=own).tolist() == first[0].tolist()
    assert torch.randn(3, device="cuda", generator=own).tolist() != first[0].tolist()


@with_stand_in
@pytest.mark.parametrize(
    ("wait", "work"),
    [
        ("value read", lambda x: float(x.sum())),
        ("value read", lambda x: bool((x > 0).any())),
        ("nonzero", lambda x: x.nonzero()),
        ("indexed by a mask", lambda x: x[x > 0]),
        ("indexed by a tensor of the CPU", lambda x: x[torch.tensor([0])]),
        ("bincount", lambda x: torch.bincount(x.long())),
        ("unique", lambda x: x.unique()),
        ("copied to the CPU", lambda x: x.cpu()),
        ("copied to the GPU", lambda x: x + torch.ones(4).to(x.device)),
        ("copied to the GPU", lambda x: torch.tensor([1.0], device=x.device)),
        ("copied to the GPU", lambda x: torch.ones(2**15).to(x.device, non_blocking=True)),
        ("synchronize", lambda x: torch.cuda.synchronize()),
        ("event", lambda x: torch.cuda.Event().synchronize()),
        ("", lambda x: x + 1.5 * torch.full((4,), 2.0, device=x.device)),
        ("", lambda x: x.masked_fill(x > 0, 1.0)),
        ("", lambda x: x.__setitem__(x > 0, 1.0)),
        ("", lambda x: torch.ones(2**15).pin_memory().to(x.device, non_blocking=True)),
        ("", lambda x: x.to("cpu", non_blocking=True)),
        ("", lambda x: x.to("cuda:1")),
        ("", lambda x: nn.functional.one_hot(x.long(), 5)),
    ],
)
def test_waits_of_the_host_are_noted(wait: str, work: object) -> None:
    given = torch.ones(4, device="cuda")
    with watch() as seen:
        work(given)  # type: ignore[operator]
    assert list(seen.waits_of()) == ([f":: {wait}"] if wait else [])
    with torch.inference_mode(), watch() as seen:
        work(given)  # type: ignore[operator]
    assert list(seen.waits_of()) == ([f":: {wait}"] if wait else [])


@with_stand_in
def test_copies_between_memory_formats_are_noted_with_their_bytes() -> None:
    image = torch.ones(1, 4, 2, 2, 2, device="cuda")
    with watch() as seen:
        last = image.contiguous(memory_format=torch.channels_last_3d)
        last.contiguous(memory_format=torch.channels_last_3d)
        last.contiguous()
        last.to("cuda:1")
        torch.ones(8).to("cuda")
    found = {event.what: (count, seen.copied_bytes[event]) for event, count in seen.copies.items()}
    assert found == {
        "channels first to channels last": (1, 128),
        "channels last to channels first": (1, 128),
        "to another GPU": (1, 128),
        "to the GPU": (1, 32),
    }


@with_stand_in
def test_a_convolution_copies_what_is_in_another_memory_format_than_its_image_or_weights() -> None:
    image, weights = torch.ones(1, 2, 2, 2, 2, device="cuda"), torch.ones(2, 2, 1, 1, 1, device="cuda")
    last = image.contiguous(memory_format=torch.channels_last_3d)
    for given, copied in ((image, {}), (last, {})):
        with watch() as seen:
            nn.functional.conv3d(given, weights)
        assert seen.copies == copied  # weights of one voxel are in both formats
    weights = torch.ones(2, 2, 2, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last_3d)
    with watch() as seen:
        nn.functional.conv3d(image, weights)
    assert [(event.what, seen.copied_bytes[event]) for event in seen.copies] == [
        ("channels first to channels last", 64)
    ]
    assert seen.launches == {"MainThread": 1}


@with_stand_in
def test_memory_is_taken_while_a_tensor_or_a_view_of_it_is_there() -> None:
    before = stand_in.allocated(), stand_in.allocated(1)
    tensor = torch.zeros(KIB, device="cuda")
    other = tensor.to("cuda:1")
    part = tensor[5:8].view(3)
    small = torch.zeros(1, device="cuda")
    assert stand_in.allocated() - before[0] == 4 * KIB + 512
    assert stand_in.allocated(1) - before[1] == 4 * KIB
    del tensor, small, other
    assert stand_in.allocated() - before[0] == 4 * KIB
    del part
    assert (stand_in.allocated(), stand_in.allocated(1)) == before
    stand_in.reset_peak()
    (torch.zeros(KIB, device="cuda") + 1).mul_(2)
    assert stand_in.peak() - before[0] == 8 * KIB
    with stand_in.gpu_memory(before[0] + 10 * KIB):
        assert torch.cuda.mem_get_info() == (10 * KIB, before[0] + 10 * KIB)
        kept = torch.zeros(KIB, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(2 * KIB, device="cuda")
        assert torch.cuda.mem_get_info()[0] == 6 * KIB
    assert kept.numel() == KIB


@with_stand_in
def test_a_network_keeps_its_parameters_where_it_moves_and_learns_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Conv3d(2, 1, 1))
    moved = copy.deepcopy(plain)
    parameters = list(moved.parameters())
    moved.to("cuda")
    assert [id(one) for one in moved.parameters()] == [id(one) for one in parameters]
    assert all(isinstance(one, OnGpu) and one.is_leaf and one.requires_grad for one in parameters)
    images = torch.randn(2, 1, 5, 5, 5)
    for network, device in ((plain, "cpu"), (moved, "cuda")):
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            network(images.to(device)).square().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
    for one, other in zip(plain.state_dict().values(), moved.state_dict().values(), strict=True):
        torch.testing.assert_close(other.cpu(), one)
