import math

import pytest
import torch
from monai.data import MetaTensor
from padding import forward_any_size, pad_to_legal, pad_to_rule
from torch import nn

from pipeline.core.errors import DataError
from pipeline.model.base import SizeRule, initialize, size_rule
from pipeline.model.blocks import Style, conv_unit
from pipeline.model.spec import build_network

SMALL = {"features": (4, 8, 16)}


@pytest.fixture(params=["unet", "unetpp"])
def name(request):
    return request.param


def test_illegal_size_is_refused_with_the_nearest(name):
    network = build_network(name, 2, 1, 2, **SMALL)
    assert network.divisor == (4, 4)
    assert network.legal_size((5, 8)) == (8, 8)
    with pytest.raises(ValueError, match=r"got \(6, 8\) \(axis 0 is 6, nearest legal 4 and 8\)"):
        network(torch.zeros(1, 1, 6, 8))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 8, 8), (1, 1, 8, 8, 8)])
def test_wrong_axes_or_channels_are_refused(name, shape):
    network = build_network(name, 2, 1, 2, **SMALL)
    with pytest.raises(DataError, match=r"network input: expected shape \(B, 1, I, J\), got"):
        network(torch.zeros(shape))


def test_batch_norm_needs_two_values_in_training(name):
    network = build_network(name, 2, 1, 2, norm="batch", **SMALL)
    with pytest.raises(DataError, match="training batch: expected two or more values per channel"):
        network(torch.zeros(1, 1, 4, 4))
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 2, 4, 4)
    assert network.eval()(torch.zeros(1, 1, 4, 4)).shape == (1, 2, 4, 4)


def test_instance_norm_needs_two_voxels_always(name):
    network = build_network(name, 2, 1, 2, norm="instance", **SMALL).eval()
    assert network.legal_size((3, 3)) == (4, 8)
    with pytest.raises(DataError, match="a single voxel would be left"):
        network(torch.zeros(2, 1, 4, 4))
    assert forward_any_size(network, torch.zeros(2, 1, 3, 3)).shape == (2, 2, 3, 3)


def test_any_size_equals_padding_by_hand(name):
    network = build_network(name, 3, 1, 2, seed=0, **SMALL).eval()
    x = torch.randn(2, 1, 5, 8, 3, generator=torch.Generator().manual_seed(1))
    padded, crop = pad_to_legal(x, network)
    assert padded.shape == (2, 1, 8, 8, 4)
    with torch.no_grad():
        logits = forward_any_size(network, x)
        assert logits.shape == (2, 2, 5, 8, 3)
        assert torch.equal(logits, network(padded)[(..., *crop)])
        assert torch.equal(network(padded), forward_any_size(network, padded))


def test_any_size_refuses_several_heads(name):
    network = build_network(name, 2, 1, 2, deep_supervision=True, features=(4, 8, 16, 32))
    with pytest.raises(DataError, match=r"got \d heads of deep supervision. Call network.eval\(\) first"):
        forward_any_size(network, torch.zeros(2, 1, 8, 9))


def test_meta_tensors_come_out_as_plain_tensors(name):
    network = build_network(name, 2, 1, 2, seed=0, **SMALL).eval()
    x = torch.ones(1, 1, 8, 8)
    for run in (network, lambda batch: forward_any_size(network, batch)):
        logits = run(MetaTensor(x))
        assert type(logits) is torch.Tensor
        assert torch.equal(logits, network(x))


def test_channels_last_and_bf16(name):
    network = build_network(name, 3, 1, 2, seed=0, norm="instance", **SMALL).eval()
    x = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = network(x)
        network = network.to(memory_format=torch.channels_last_3d)
        last = network(x.to(memory_format=torch.channels_last_3d))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.1, atol=0.15)


def test_compiles_into_one_graph(name):
    network = build_network(name, 2, 1, 2, seed=0, **SMALL).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(compiled(x), network(x))


def test_traces_without_warnings(name):
    network = build_network(name, 2, 1, 2, seed=0, **SMALL).eval()
    x = torch.ones(1, 1, 8, 8)
    traced = torch.jit.trace(network, x)
    assert torch.equal(traced(2 * x), network(2 * x))


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(64, 96, 3), 64 * 9),
        (nn.Conv3d(32, 64, (1, 3, 3), groups=2), 16 * 9),
        (nn.ConvTranspose2d(256, 64, 2, stride=2), 256),  # every output voxel sums over the input channels once
    ],
)
def test_initial_weights_follow_he(layer, inputs):
    torch.manual_seed(0)
    initialize(nn.Sequential(layer))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.03)
    assert layer.bias.abs().max() == 0


def test_initialization_keeps_the_variance_through_a_stage():
    torch.manual_seed(0)
    layers = nn.Sequential(*[part for _ in range(8) for part in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())])
    initialize(layers)
    out = layers(torch.randn(1, 64, 32, 32))
    assert 0.3 < out.square().mean().item() < 3.0


def test_initialization_makes_up_for_dropout():
    torch.manual_seed(0)
    units = nn.Sequential(*[conv_unit(64, 64, (3, 3), Style(2, norm="none", dropout=0.5)) for _ in range(8)])
    initialize(units)
    assert units[3].conv.weight.std().item() == pytest.approx(math.sqrt(2 * 0.5 / (64 * 9)), rel=0.02)
    out = units(torch.randn(1, 64, 32, 32))  # uncorrected, the mean square doubles 8 times: 256
    assert 0.3 < out.square().mean().item() < 3.0


def test_rule_of_strides_multiplies_them_per_axis():
    rule = size_rule([(1, 1, 1), (1, 2, 2), (2, 2, 2)])
    assert rule.step == rule.smallest == (2, 4, 4)
    assert rule.is_legal((2, 4, 12))
    assert not rule.is_legal((3, 4, 12))
    assert rule.legal_size((3, 4, 13)) == (4, 4, 16)
    assert rule.legal_size((1, 1, 1)) == (2, 4, 4)


def test_rule_with_an_offset():
    rule = SizeRule(step=(16, 16), smallest=(188, 188))
    assert rule.is_legal((572, 188))
    assert rule.legal_size((100, 189)) == (188, 204)
    with pytest.raises(DataError, match=r"expected \(188, 188\) plus multiples of \(16, 16\), got \(100, 190\)"):
        rule.require((100, 190))


def test_lone_cell_is_widened_along_the_last_axis():
    rule = size_rule([(1, 1), (2, 2)], lone_cell=False)
    assert rule.legal_size((1, 2)) == (2, 4)
    assert rule.is_legal((2, 4))
    assert rule.is_legal((4, 2))
    with pytest.raises(DataError, match="a single voxel would be left at the lowest resolution"):
        rule.require((2, 2))


def test_message_names_axes_and_nearest_sizes():
    with pytest.raises(DataError) as caught:
        size_rule([(1, 1, 1), (4, 4, 4)]).require((3, 8, 10))
    assert str(caught.value) == (
        "input size: expected multiples of (4, 4, 4), got (3, 8, 10) (axis 0 is 3, nearest legal 4; "
        "axis 2 is 10, nearest legal 8 and 12). Pad to (4, 8, 12), or crop."
    )


@pytest.mark.parametrize("size", [(4,), (4, 4, 4), (0, 4)])
def test_legal_size_refuses_what_is_no_size(size):
    with pytest.raises(DataError, match="expected 2 numbers of at least 1"):
        size_rule([(1, 1), (2, 2)]).legal_size(size)


def test_padding_repeats_the_border_and_is_undone_by_the_crop():
    x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    padded, crop = pad_to_rule(x, SizeRule((2, 8), (2, 8)))
    row = [1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    assert padded[0, 0].tolist() == [row, row]
    assert crop == (slice(0, 1), slice(2, 5))
    assert torch.equal(padded[(..., *crop)], x)


def test_padding_in_3d_and_half_precision():
    x = torch.arange(30.0, dtype=torch.bfloat16).reshape(1, 1, 2, 3, 5)
    padded, crop = pad_to_rule(x, SizeRule((4, 4, 4), (4, 4, 4)))
    assert padded.shape == (1, 1, 4, 4, 8)
    assert torch.equal(padded[(..., *crop)], x)


def test_legal_batch_is_untouched():
    x = torch.zeros(1, 1, 4, 8)
    padded, crop = pad_to_rule(x, SizeRule((4, 4), (4, 4)))
    assert padded is x
    assert crop == (slice(0, 4), slice(0, 8))
