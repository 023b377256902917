import pytest
import torch
from monai.networks.nets.vnet import VNet as MonaiVNet
from networks import silent_parameters
from torch import nn

from pipeline.core.errors import ConfigError, DataError
from pipeline.model.cost import count_parameters
from pipeline.model.spec import build_network
from pipeline.model.vnet import Repeated, VNet, VNetOptions

NARROW = {"features": (4, 6, 8), "convs_per_stage": 2, "decoder_convs": (1, 2), "kernel_sizes": 3}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_parameters_are_monais():
    with torch.device("meta"):
        network, reference = build_network("vnet", 3, 1, 2), MonaiVNet(3, 1, 2)
    assert count_parameters(network) == sum(p.numel() for p in reference.parameters()) == 45_597_898


def layers(network):
    """Convolutions and normalizations in the order they run."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    return [layer for layer in network.modules() if isinstance(layer, kinds)]


def swapped(values, axis):
    """Channels [up, skip] instead of [skip, up]."""
    return torch.cat(values.chunk(2, dim=axis)[::-1], dim=axis)


@torch.no_grad()
def adopt(network, reference):
    """Give the network the weights of MONAI's, whose decoder puts the skip connection behind the step up."""
    ours, decoder = [], []
    for stage in network.encoder:
        ours += layers(stage)
    for level in reversed(range(4)):
        ours += layers(network.upsamplings[level])
        decoder += layers(network.decoder[level])
        ours += layers(network.decoder[level])
    ours += layers(network.heads[0])
    before = {layer for up in list(network.upsamplings)[:-1] for layer in up if isinstance(layer, nn.ConvTranspose2d)}
    before.add(network.heads[0].unit.conv)
    for ours_layer, layer in zip(ours, layers(reference), strict=True):
        for key, value in layer.state_dict().items():
            if ours_layer in decoder and value.dim() > 0:
                value = swapped(value, 0)
            if value.dim() > 1 and (ours_layer in decoder or ours_layer in before):
                value = swapped(value, 0 if isinstance(layer, nn.ConvTranspose2d) else 1)
            ours_layer.state_dict()[key].copy_(value)


def test_logits_are_monais():
    torch.manual_seed(0)
    reference = MonaiVNet(2, 4, 3)  # in 2D for speed; its first shortcut repeats four channels
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    network = VNet(2, 4, 3, VNetOptions())
    adopt(network, reference)
    x = noise(1, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-5)


def test_the_first_shortcut_repeats_the_image():
    x = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert Repeated(3, 7)(x).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert isinstance(build_network("vnet", 3, 4, 2, **NARROW).encoder[0].shortcut, Repeated)
    assert isinstance(build_network("vnet", 3, 5, 2, **NARROW).encoder[0].shortcut, nn.Conv3d)


def test_zeroed_units_leave_the_shortcut():
    network = build_network("vnet", 3, 1, 2, seed=0, **NARROW).eval()
    block = network.decoder[0]
    nn.init.zeros_(block.units[-1].conv.weight)
    x = noise(1, 8, 4, 4, 4)
    assert torch.equal(block(x), nn.functional.elu(x))


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("channels", [1, 5])
def test_gradients_reach_every_parameter(deep_supervision, channels):
    options = {"deep_supervision": deep_supervision, "activation": "prelu", **NARROW}
    network = build_network("vnet", 3, channels, 3, seed=0, **options)
    assert silent_parameters(network, noise(2, channels, 8, 4, 8)) == []


def test_a_batch_is_its_cases():
    network = build_network("vnet", 3, 3, 1, seed=0, dropout=0.3, **NARROW).eval()
    x = noise(2, 3, 8, 12, 4)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(x[:1]), network(x[1:])])
    assert together.shape == (2, 1, 8, 12, 4)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_all_decoder_levels_but_the_lowest_have_a_head():
    options = {**NARROW, "features": (4, 6, 8, 10), "decoder_convs": 1, "norm": "none"}
    network = build_network("vnet", 3, 1, 2, seed=0, deep_supervision=True, **options)
    x = noise(1, 1, 8, 16, 8)
    heads = network(x)
    assert {key: tuple(logits.shape) for key, logits in heads.items()} == {
        "level0": (1, 2, 8, 16, 8),
        "level1": (1, 2, 4, 8, 4),
    }
    assert torch.equal(network.eval()(x), heads["level0"])


def test_dropout_leaves_the_last_unit_alone():
    network = build_network("vnet", 3, 1, 2, dropout=0.3, **NARROW)
    assert network.encoder[1].block.units.unit1.dropout.p == 0.3
    assert "dropout" not in dict(network.heads[0].unit.named_children())


def test_anisotropic_stages():
    options = {**NARROW, "strides": [1, [1, 2, 2], [2, 2, 1]], "kernel_sizes": [[1, 5, 5], 3, 3], "norm": "group"}
    network = build_network("vnet", 3, 1, 2, **options)
    assert network.divisor == (2, 4, 2)
    assert network(torch.zeros(1, 1, 4, 8, 6)).shape == (1, 2, 4, 8, 6)


def test_the_papers_units_per_stage():
    options = {"convs_per_stage": [1, 2, 3, 3, 3], "decoder_convs": [1, 2, 3, 3], "activation": "prelu"}
    with torch.device("meta"):
        network = build_network("vnet", 3, 1, 2, **options)
    assert [len(stage.units) for stage in network.decoder] == [1, 2, 3, 3]
    assert [len(stage.block.units) for stage in network.encoder[1:]] == [2, 3, 3, 3]


def test_wrong_options_and_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"decoder_convs: expected one entry for each of the 4 stages .*, got 2"):
        build_network("vnet", 3, 1, 2, decoder_convs=(1, 2))
    with pytest.raises(ConfigError, match="convs_per_stage: expected one entry for each of the 3 stages"):
        build_network("vnet", 3, 1, 2, features=(4, 8, 16))
    with torch.device("meta"), pytest.raises(DataError, match="axis 2 is 40, nearest legal 32 and 48"):
        build_network("vnet", 3, 1, 2)(torch.zeros(1, 1, 32, 32, 40))
