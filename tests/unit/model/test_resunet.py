import pytest
import torch
from networks import silent_parameters
from torch import nn

from pipeline.core.errors import ConfigError, DataError
from pipeline.model.blocks import ResidualBlock, Style, preactivated_block, preactivated_unit
from pipeline.model.cost import count_parameters
from pipeline.model.network_options import Stage
from pipeline.model.spec import build_network

NARROW = {"features": (4, 6, 8)}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dims", "channels", "parameters"), [(2, (3, 1), 8_220_993), (3, (1, 2), 23_777_538)])
def test_parameters_are_the_papers(dims, channels, parameters):
    with torch.device("meta"):
        network = build_network("resunet", dims, *channels)
    assert count_parameters(network) == parameters


def test_the_structure_is_the_papers():
    with torch.device("meta"):
        network = build_network("resunet", 2, 3, 1)
    blocks = [*network.encoder, *network.decoder]
    assert list(dict(network.encoder[0].units.unit1.named_children())) == ["conv"]
    orders = {tuple(dict(unit.named_children())) for block in blocks for unit in block.units}
    assert orders == {("conv",), ("norm", "activation", "conv")}
    assert [block.shortcut.stride for block in blocks] == [(1, 1)] + [(2, 2)] * 3 + [(1, 1)] * 3
    assert [block.shortcut.in_channels for block in network.decoder] == [192, 384, 768]
    assert count_parameters(network.upsamplings) == 0


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("width", "down"), [(4, False), (6, False), (4, True)])
def test_a_zeroed_last_convolution_leaves_the_shortcut(norm, width, down):
    block = preactivated_block(4, Stage(width, (3, 3), (2, 2)), Style(2, norm=norm, bias=True), down=down)
    nn.init.zeros_(block.units.unit2.conv.weight)
    nn.init.zeros_(block.units.unit2.conv.bias)
    assert isinstance(block.shortcut, nn.Identity) == (width == 4 and not down)
    x = noise(2, 4, 8, 8)
    given = x.clone()
    assert torch.equal(block(x), block.shortcut(given))
    assert torch.equal(x, given)


def test_unit_by_hand():
    unit = preactivated_unit(1, 1, (1, 3), Style(2, norm="none", bias=True))
    with torch.no_grad():
        unit.conv.weight.copy_(torch.tensor([1.0, -2.0, 0.5]).reshape(1, 1, 1, 3))
        unit.conv.bias.fill_(1.0)
    x = torch.tensor([2.0, -5.0, 4.0, 6.0]).reshape(1, 1, 1, 4)
    assert unit(x).flatten().tolist() == [-3.0, 5.0, -4.0, -7.0]  # of 2, 0, 4, 6 between zeros
    assert x.min() == -5.0


def test_activation_follows_the_sum():
    block = ResidualBlock(nn.Tanh(), nn.Identity(), nn.ReLU())
    x = torch.tensor([-2.0, 3.0])
    torch.testing.assert_close(block(x), torch.tensor([0.0, 3.0 + torch.tensor(3.0).tanh().item()]))


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_gradients_reach_every_parameter(deep_supervision, norm):
    options = {"deep_supervision": deep_supervision, "norm": norm, "activation": "prelu", **NARROW}
    network = build_network("resunet", 2, 4, 2, seed=0, **options)  # the first shortcut is an identity
    assert silent_parameters(network, noise(2, 4, 8, 16)) == []


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("up", ["nearest", "linear"])
def test_a_batch_is_its_cases(dims, up):
    network = build_network("resunet", dims, 3, 2, seed=0, up=up, **NARROW).eval()
    x = noise(2, 3, *(8, 12, 4)[:dims])
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(x[:1]), network(x[1:])])
    assert together.shape == (2, 2, *x.shape[2:])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_all_decoder_levels_but_the_lowest_have_a_head():
    network = build_network("resunet", 2, 1, 2, seed=0, norm="none", deep_supervision=True, features=(4, 6, 8, 10))
    x = noise(1, 1, 16, 8)
    heads = network(x)
    assert [tuple(logits.shape) for logits in heads.values()] == [(1, 2, 16, 8), (1, 2, 8, 4)]
    assert list(heads) == ["level0", "level1"]
    assert torch.equal(network.eval()(x), heads["level0"])


def test_anisotropic_stages():
    options = {"strides": [1, [1, 2, 2], [2, 2, 1]], "kernel_sizes": [[1, 3, 3], 3, 5], "norm": "instance"}
    network = build_network("resunet", 3, 1, 3, **options, **NARROW)
    assert network.divisor == (2, 4, 2)
    assert network(torch.zeros(1, 1, 4, 8, 6)).shape == (1, 3, 4, 8, 6)
    assert network.encoder[0].units.unit2.conv.padding == (0, 1, 1)


def test_dropout_acts_in_training_only():
    network = build_network("resunet", 2, 1, 2, seed=0, norm="none", dropout=0.5, **NARROW)
    x = torch.ones(1, 1, 8, 8)
    torch.manual_seed(0)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_convs_per_stage_counts_the_units_of_a_block():
    network = build_network("resunet", 2, 1, 2, convs_per_stage=3, **NARROW)
    assert [len(block.units) for block in (*network.encoder, *network.decoder)] == [3] * 5


def test_illegal_input_is_refused():
    with torch.device("meta"):
        network = build_network("resunet", 2, 3, 1)
        assert network.divisor == (8, 8)
        with pytest.raises(DataError, match="axis 0 is 12, nearest legal 8 and 16"):
            network(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ConfigError, match="up: expected one of nearest, linear, got 'transposed'"):
        build_network("resunet", 2, 1, 2, up="transposed")
