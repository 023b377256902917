import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import blocks
from pipeline.model.blocks import (
    BlockHead,
    Style,
    conv_stage,
    conv_unit,
    convolution,
    head,
    instance_norm,
    into_blocks,
    norm_layer,
    takes_instance_norm,
    upsampling,
)
from pipeline.model.network_options import Stage


def test_unit_order_and_padding():
    unit = conv_unit(2, 4, (1, 3), Style(2, norm="instance", activation="leaky_relu", bias=True, dropout=0.25))
    assert list(dict(unit.named_children())) == ["conv", "norm", "activation", "dropout"]
    assert unit.conv.padding == (0, 1)
    assert unit.activation.negative_slope == 0.01
    assert unit.dropout.p == 0.25
    assert unit(torch.zeros(1, 2, 5, 7)).shape == (1, 4, 5, 7)


def test_unit_leaves_out_what_the_style_leaves_out():
    unit = conv_unit(1, 2, (3, 3, 3), Style(3, norm="none"))
    assert list(dict(unit.named_children())) == ["conv", "activation"]
    assert unit.conv.bias is None


def test_unit_by_hand():
    unit = conv_unit(1, 1, (1, 3), Style(2, norm="none", bias=True))
    with torch.no_grad():
        unit.conv.weight.copy_(torch.tensor([1.0, -2.0, 0.5]).reshape(1, 1, 1, 3))
        unit.conv.bias.fill_(1.0)
    out = unit(torch.tensor([[[[4.0, 1.0, 2.0]]]]))
    # zero padding, cross-correlation: 0-8+0.5+1, 4-2+1+1, 1-4+0+1; then ReLU
    assert out.flatten().tolist() == [0.0, 4.0, 0.0]


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (5, 1), (320, 8)])
def test_group_norm_divides_the_channels(channels, groups):
    assert norm_layer("group", 3, channels).num_groups == groups


def test_instance_norm_learns_scale_and_shift():
    assert norm_layer("instance", 2, 4).affine
    assert isinstance(norm_layer("none", 2, 4), nn.Identity)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "elu", "gelu", "silu"])
def test_every_activation_keeps_large_values_and_damps_negative_ones(activation):
    layer = conv_unit(1, 1, (1, 1), Style(2, norm="none", activation=activation)).activation
    high, low = layer(torch.tensor([20.0, -20.0])).tolist()
    assert math.isclose(high, 20.0, rel_tol=1e-4)
    assert -6.0 < low <= 0.0


@pytest.mark.parametrize("down", ["pool", "stride"])
def test_stage_steps_down_per_axis(down):
    stage = conv_stage(2, Stage(4, (1, 3, 3), (1, 2, 2)), Style(3), convs=3, down=down)
    assert stage(torch.zeros(2, 2, 3, 8, 4)).shape == (2, 4, 3, 4, 2)
    assert [name for name, _ in stage.named_children()][-3:] == ["unit1", "unit2", "unit3"]
    assert hasattr(stage, "pool") == (down == "pool")


def test_stage_without_step_has_no_pool():
    stage = conv_stage(1, Stage(4, (3, 3), (1, 1)), Style(2), down="pool")
    assert not hasattr(stage, "pool")


def test_pooling_takes_the_maximum():
    pool = conv_stage(1, Stage(1, (1, 1), (1, 2)), Style(2), down="pool").pool
    assert pool(torch.tensor([[[[1.0, 5.0, 2.0, 3.0]]]])).flatten().tolist() == [5.0, 3.0]


@pytest.mark.parametrize("mode", ["transposed", "nearest", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
def test_upsampling_multiplies_each_axis_by_its_stride(mode, dims):
    stride = (1, 2, 4)[:dims]
    lower, upper = Stage(6, (3,) * dims, stride), Stage(3, (3,) * dims, (1,) * dims)
    up = upsampling(lower, upper, Style(dims), mode)
    size = (5, 3, 2)[:dims]
    expected = tuple(n * step for n, step in zip(size, stride, strict=True))
    assert up(torch.zeros(2, 6, *size)).shape == (2, 3, *expected)


def test_head_is_linear_with_bias():
    layer = head(3, 4, 2)
    assert layer.kernel_size == (1, 1, 1)
    assert layer.bias.shape == (2,)


# Instance norm and activation in one step give what PyTorch's layers give one after the other.


def layer_and_image(dims: int, dtype: torch.dtype, channels_last: bool) -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](5, affine=True)
    norm.weight.data = torch.rand(5, generator=generator) + 0.5
    norm.bias.data = torch.randn(5, generator=generator)
    image = torch.randn((3, 5, 7, 6, 4)[: dims + 2], generator=generator).mul(3).add(2).to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=(torch.channels_last, torch.channels_last_3d)[dims - 2])
    return norm, image.requires_grad_()


@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_values_and_gradients_are_those_of_the_layers(dims: int, channels_last: bool, slope: float) -> None:
    norm, image = layer_and_image(dims, torch.float32, channels_last)
    wanted = nn.functional.leaky_relu(norm(image), slope)
    found = instance_norm(image, norm, slope)
    torch.testing.assert_close(found, wanted)
    assert found.stride() == image.stride()
    inputs = (image, norm.weight, norm.bias)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad(wanted, inputs, upstream)
    for gradient, value in zip(torch.autograd.grad(found, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-5)


def test_gradients_are_exact() -> None:
    norm, image = layer_and_image(3, torch.float64, True)
    norm.double()
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: instance_norm(x, norm, 0.01), (image, norm.weight, norm.bias)
    )


def test_bfloat16_is_rounded_once() -> None:
    norm, image = layer_and_image(3, torch.bfloat16, True)
    exact = nn.functional.leaky_relu(norm(image.float()), 0.01)
    found = instance_norm(image, norm, 0.01)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "gelu"])
@pytest.mark.parametrize("activate", [True, False])
def test_a_unit_gives_what_its_layers_give(activation: str, activate: bool) -> None:
    unit = conv_unit(2, 6, (3, 3, 3), Style(3, norm="instance", activation=activation), activate=activate)  # type: ignore[arg-type]
    nn.init.normal_(unit.norm.weight)
    image = torch.randn(2, 2, 5, 6, 7)
    wanted = nn.Sequential(*unit)(image.clone())
    torch.testing.assert_close(unit(image), wanted, rtol=1e-4, atol=1e-5)


def test_a_unit_whose_activation_was_taken_out() -> None:
    unit = conv_unit(1, 3, (3, 3), Style(2, norm="instance"))
    unit.activation = nn.Identity()
    assert unit(torch.randn(1, 1, 8, 8)).min() < -0.1


def test_what_is_left_to_pytorch() -> None:
    image = torch.ones(2, 3, 4, 4)
    assert takes_instance_norm(nn.InstanceNorm2d(3, affine=True), image)
    assert not takes_instance_norm(nn.InstanceNorm2d(3), image)
    assert not takes_instance_norm(nn.BatchNorm2d(3), image)
    assert not takes_instance_norm(nn.InstanceNorm2d(3, affine=True), image.to("meta"))
    assert not takes_instance_norm(nn.InstanceNorm2d(3, affine=True), image.half())
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        conv_unit(1, 3, (1, 1), Style(2, norm="instance"))(torch.ones(1, 1, 1, 1))


class _Convolutions(TorchDispatchMode):
    """Notes size and padding of every convolution that PyTorch is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.append((tuple(args[0].shape[2:]), tuple(args[4])))
        return func(*args, **(kwargs or {}))


def _seen(layer, size, *, gradients=True, dtype=torch.bfloat16):
    """Output size, and what PyTorch was given."""
    images = torch.zeros(1, layer.in_channels, *size)
    with (
        _Convolutions() as noted,
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        output = layer(images)
    return tuple(output.shape[2:]), noted.seen


@pytest.fixture
def _bf16(monkeypatch):
    monkeypatch.setattr(blocks, "_adds_up_in_bf16", lambda x: False)  # as if the processor had it


# Which are wrong in PyTorch follows from oneDNN's loop over planes: those where the kernel is longer than the image.
@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize(
    ("kernel", "stride", "size", "given"),
    [
        (3, 1, (2, 4, 4), ((4, 4, 4), (0, 1, 1))),
        (3, 1, (3, 4, 4), ((3, 4, 4), (1, 1, 1))),
        (5, 1, (4, 6, 6), ((8, 6, 6), (0, 2, 2))),
        (5, 2, (3, 6, 6), ((7, 6, 6), (0, 2, 2))),
        (7, 1, (6, 8, 8), ((12, 8, 8), (0, 3, 3))),
        (3, 2, (4, 4, 2), ((4, 4, 4), (1, 1, 1))),  # one column of stride 2: two are computed
        (1, 2, (4, 4, 2), ((4, 4, 4), (0, 0, 0))),
        (3, 2, (2, 2, 2), ((4, 2, 4), (0, 1, 1))),
    ],
)
def test_bf16_pads_explicitly_where_the_padding_of_onednn_is_wrong(kernel, stride, size, given):
    layer = convolution(3, 2, 2, kernel, stride=stride, padding=kernel // 2)
    assert _seen(layer, size) == (tuple(math.ceil(n / stride) for n in size), [given])


@pytest.mark.usefixtures("_bf16")
def test_fp32_and_prediction_leave_the_padding_to_pytorch():
    layer, plain = convolution(3, 2, 2, 3, padding=1), ((2, 4, 4), [((2, 4, 4), (1, 1, 1))])
    assert _seen(layer, (2, 4, 4), dtype=torch.float32) == plain
    assert _seen(layer, (2, 4, 4), gradients=False) == plain


def test_a_stride_is_taken_before_a_kernel_of_1_with_few_channels():
    assert _seen(convolution(2, 4, 8, 1, stride=2), (5, 6), dtype=torch.float32) == ((3, 3), [((3, 3), (0, 0))])
    assert _seen(convolution(2, 16, 8, 1, stride=2), (5, 6), dtype=torch.float32)[1] == [((5, 6), (0, 0))]
    assert _seen(convolution(2, 4, 8, 1, stride=2), (5, 6), gradients=False)[1] == [((5, 6), (0, 0))]


def test_parameters_are_those_of_pytorch():
    ours, own = convolution(3, 2, 4, (1, 3, 3), bias=False), nn.Conv3d(2, 4, (1, 3, 3), bias=False)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    assert isinstance(ours, nn.Conv3d)
    assert isinstance(convolution(2, 1, 1, 1), nn.Conv2d)


GRADIENTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pipeline.core.machine import keep_freed_memory
from convolution_gradients import Shape, errors
with keep_freed_memory():
    for shape in json.loads(sys.argv[2]):
        print(max(errors(Shape(*(tuple(n) if isinstance(n, list) else n for n in shape)), ours=True)), flush=True)
"""


@pytest.mark.parametrize("isa", ["AVX512_CORE", "DEFAULT"])
def test_gradients_are_right_in_memory_full_of_large_numbers(isa):
    shapes = [
        ((n, 4, 5), (16, 32), (kernel,) * 3, (stride,) * 3, (kernel // 2,) * 3, False, last, "bf16")
        for n, kernel, stride in [(2, 3, 1), (4, 5, 1), (3, 5, 2), (2, 3, 2), (5, 3, 1)]
        for last in (True, False)
    ]
    shapes += [((4, 4, 2), (16, 32), (1,) * 3, (2,) * 3, (0,) * 3, False, True, "bf16")]
    shapes += [((32, 32), (n, 8), (1, 1), (2, 2), (0, 0), False, True, "fp32") for n in (2, 4, 7, 12)]
    # oneDNN reads the variable once: only a process that begins can be limited. Damage of the heap ends it.
    command = [sys.executable, "-c", GRADIENTS, str(Path(__file__).parents[3] / "benchmarks"), json.dumps(shapes)]
    done = subprocess.run(
        command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [float(line) for line in done.stdout.split()]
    assert len(found) == len(shapes)
    assert [
        error for error, shape in zip(found, shapes, strict=True) if error > (0.01 if shape[-1] == "bf16" else 1e-5)
    ] == []


def _on_a_gpu(shape: tuple[int, ...], channels_last: bool) -> tuple[nn.Module, torch.Tensor]:
    """A norm and an image that say they are on a GPU, without one: sizes and strides, no values."""
    norm = nn.InstanceNorm3d(shape[1], affine=True, device="cuda")
    order = torch.channels_last_3d if channels_last else torch.contiguous_format
    return norm, torch.empty(shape, device="cuda", dtype=torch.bfloat16, memory_format=order)


def test_on_a_gpu_only_large_images_with_channels_last_are_taken_from_pytorch() -> None:
    with FakeTensorMode():
        assert takes_instance_norm(*_on_a_gpu((2, 16, 64, 64, 64), channels_last=True))  # 8 MiB a sample
        assert not takes_instance_norm(*_on_a_gpu((2, 16, 64, 64, 64), channels_last=False))
        assert not takes_instance_norm(*_on_a_gpu((2, 16, 32, 32, 32), channels_last=True))  # 1 MiB a sample


def test_voxels_of_a_block_become_channels():
    image = torch.arange(32.0).reshape(1, 2, 4, 4)
    blocks = into_blocks(image, (2, 2))
    assert blocks.shape == (1, 8, 2, 2)
    assert blocks[0, :, 1, 0].tolist() == [8, 9, 12, 13, 24, 25, 28, 29]  # rows 2 and 3, columns 0 and 1
    assert into_blocks(image, (1, 4)).shape == (1, 8, 4, 1)
    assert blocks.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("block", [(2, 2), (1, 2, 3)])
def test_a_block_head_is_a_transposed_convolution(block):
    head = BlockHead(len(block), 3, 4, block)
    x = torch.randn(2, 3, *(3, 4, 5)[: len(block)])
    assert torch.allclose(head(x), head.layer(x), atol=1e-6)
