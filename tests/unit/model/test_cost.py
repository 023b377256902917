import sys
import threading
import time

import pytest
import torch
from networks import MEMBERS, batch, tiny
from torch import nn

from pipeline.core.errors import ConfigError, DataError
from pipeline.model import cost
from pipeline.model.cost import (
    LiveBytes,
    WithoutData,
    count_parameters,
    kept_bytes,
    multiply_adds,
    survey_networks,
    watch_memory,
    window_bytes,
)
from pipeline.model.registry import list_networks
from pipeline.model.spec import build_network


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        # 5x7 outputs x 4 channels out x 3 in x 9 taps
        (nn.Conv2d(3, 4, 3, padding=1), (5, 7), 35 * 4 * 3 * 9),
        # 2x3 outputs x 4 out x 3 in x 9 taps
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (4, 6), 6 * 4 * 3 * 9),
        # half the channels in for each output
        (nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1), groups=2), (2, 3, 3), 18 * 4 * 2 * 9),
        # 2x2 inputs x 3 in x 5 out x 4 taps
        (nn.ConvTranspose2d(3, 5, 2, stride=2), (2, 2), 4 * 3 * 5 * 4),
    ],
)
def test_one_layer_by_hand(layer, size, expected):
    assert multiply_adds(nn.Sequential(layer), size, layer.in_channels) == expected


def test_linear_layers_count():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    assert multiply_adds(network, (2, 3), 2) == 60


def test_tiny_unet_by_hand():
    network = build_network("unet", 2, 1, 3, features=(2, 4), convs_per_stage=1)
    expected = (
        64 * 2 * 1 * 9  # encoder, 8x8
        + 16 * 4 * 2 * 9  # encoder, 4x4
        + 16 * 4 * 2 * 4  # up-convolution
        + 64 * 2 * 4 * 9  # decoder
        + 64 * 3 * 2  # head
    )
    assert multiply_adds(network, (8, 8), 1) == expected


def test_heads_for_training_only_do_not_count():
    options = {"features": (2, 4, 8, 16)}
    plain = multiply_adds(build_network("unet", 2, 1, 3, **options), (16, 16), 1)
    assert multiply_adds(build_network("unet", 2, 1, 3, deep_supervision=True, **options), (16, 16), 1) == plain


def test_large_patches_take_no_memory_and_leave_the_network_alone():
    network = build_network("unetpp", 3, 1, 2, seed=0, norm="batch", features=(4, 8, 16))
    network.nodes["x1_0"].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    small, large = multiply_adds(network, (8, 8, 8), 1), multiply_adds(network, (512, 512, 512), 1)
    assert large == small * 64**3
    assert network.training
    assert not network.nodes["x1_0"].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_illegal_patch_is_refused():
    network = build_network("unet", 2, 1, 2, features=(4, 8))
    with pytest.raises(DataError, match="nearest legal 6 and 8"):
        multiply_adds(network, (8, 7), 1)
    assert network.training


def test_frozen_parameters_do_not_count():
    layer = nn.Conv2d(2, 3, 3)
    assert count_parameters(layer) == 2 * 3 * 9 + 3
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 54


def test_kept_memory_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU()).eval()
    image, weights, activation = 4 * 4, 2 * 9, 2 * 4 * 4  # the convolution keeps two of them, the ReLU its result
    assert kept_bytes(network, (1, 1, 4, 4)) == 4 * (image + weights + activation)
    assert kept_bytes(network, (5, 1, 4, 4), torch.bfloat16) == 2 * (5 * image + weights + 5 * activation)
    assert not network.training


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_kept_memory_is_that_of_a_step(name: str, dims: int) -> None:
    network = tiny(name, dims).train()
    images = batch(network)
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage()._cdata, tensor), lambda tensor: tensor
    ):
        network(images)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    said = kept_bytes(network, images.shape)
    assert (
        0.9 * found <= said <= 1.01 * found
    )  # instance norm has a kernel of its own on the CPU, which keeps more or less


def test_live_memory_by_hand() -> None:
    live = LiveBytes()
    with live:
        first = torch.empty(1024, device="meta")
        assert live.alive == 4096
        part = first[:10].view(5, 2)  # shares the memory
        del first
        assert live.alive == 4096
        total = part.sum() + part.double()[0, 0]  # each takes a block of 512 bytes
        del part
        assert live.alive == 512
        assert live.peak == live.peak_alive > 4096
        live.begin()
        assert live.peak == 512
    assert total.device.type == "meta"


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float32, 4 * 256 * 8), (torch.bfloat16, 2 * 256 * 8)],
)
def test_mixed_precision_is_that_of_a_gpu(dtype: torch.dtype, kept: int) -> None:
    layer, image = nn.Conv2d(1, 8, 3, padding=1, device="meta"), torch.empty(1, 1, 16, 16, device="meta")
    with WithoutData(dtype):
        made = layer(image)
        assert made.nbytes == kept
        assert made.dtype == dtype
        assert nn.functional.interpolate(made, scale_factor=2).dtype == torch.float32  # as on GPUs
        assert nn.functional.leaky_relu(made).dtype == dtype


def test_dropout_keeps_a_mask_of_bytes_as_on_a_gpu() -> None:
    live, layer = LiveBytes(), nn.Dropout(0.5)
    with live, WithoutData(torch.float32):
        image = torch.empty(1024, device="meta", requires_grad=True)
        made = layer(image)
        assert live.alive == 2 * 4096 + 1024
        assert layer.eval()(image) is image
    assert made.shape == (1024,)


def test_what_predicting_a_window_takes() -> None:
    network = build_network("unet", 2, 1, 3, features=(4, 8), convs_per_stage=1, norm="none")
    found = window_bytes(network, (1, 1, 16, 16), torch.float32)
    assert 4 * 256 * (1 + 4 + 4) <= found <= 4 * 256 * 40  # at least the image, a layer and what it makes
    assert window_bytes(network, (4, 1, 16, 16), torch.float32) > 3 * found
    assert window_bytes(network, (1, 1, 16, 16), torch.bfloat16) < found
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


# The peak is that of the work in between, whatever was there before and after.

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_of_the_cpu_is_above_the_start_and_begins_anew_when_asked():
    kept = torch.ones(64 * MIB, dtype=torch.uint8)
    with watch_memory(torch.device("cpu")) as peak:
        high = torch.ones(96 * MIB, dtype=torch.uint8)
        time.sleep(0.1)
        del high
        assert 90 <= (peak() or 0) / MIB <= 110
        assert (peak() or 0) / MIB <= 10
        high = torch.ones(32 * MIB, dtype=torch.uint8)
        assert 28 <= (peak() or 0) / MIB <= 42  # what is there when asked needs no sample
    assert kept.numel() + high.numel() == 96 * MIB
    assert "memory" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_what_was_allocated():
    device = torch.device("cuda")
    kept = torch.ones(64 * MIB, dtype=torch.uint8, device=device)
    with watch_memory(device) as peak:
        torch.ones(96 * MIB, dtype=torch.uint8, device=device)
        assert peak() == 96 * MIB
        assert peak() == 0
    assert kept.numel() == 64 * MIB


def test_elsewhere_nothing_is_claimed():
    with watch_memory(torch.device("meta")) as peak:
        assert peak() is None


def test_a_row_for_every_network_and_number_of_axes():
    rows = survey_networks(32)
    assert [(row.name, row.dims) for row in rows] == [
        (info.name, dims) for info in list_networks() for dims in info.dims
    ]
    assert all(low >= 32 for row in rows for low in row.patch_size)


def test_costs_by_hand(monkeypatch):
    # All of them take seconds, and one is looked at.
    monkeypatch.setattr(cost, "list_networks", lambda: [info for info in list_networks() if info.name == "unet"])
    row = next(row for row in survey_networks(30, in_channels=3) if (row.name, row.dims) == ("unet", 2))
    assert row.parameters == 31_037_698
    assert row.patch_size == row.output_size == (32, 32)
    first = 32 * 32 * (3 * 64 + 64 * 64) * 9  # the two convolutions at full resolution
    assert row.multiply_adds > first
    doubled = next(row for row in survey_networks(64, in_channels=3) if (row.name, row.dims) == ("unet", 2))
    assert doubled.multiply_adds == 4 * row.multiply_adds


def test_an_empty_patch_is_refused():
    with pytest.raises(ConfigError, match="patch: expected an edge of at least 1 voxel, got 0"):
        survey_networks(0)
    with pytest.raises(ConfigError, match="patch: expected an edge of at most 16384 voxels, got 16385"):
        survey_networks(16385)
