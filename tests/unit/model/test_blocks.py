import math

import pytest
import torch
from torch import nn

from pipeline.model.blocks import Style, conv_stage, conv_unit, head, norm_layer, upsampling
from pipeline.model.options import Stage


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
