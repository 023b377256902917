import json
from pathlib import Path

import pytest
import torch
from networks import silent_parameters

from pipeline.core.errors import ConfigError
from pipeline.model.cost import count_parameters
from pipeline.model.dense import DenseBlock, Scale
from pipeline.model.spec import build_network

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dense_unet_parameters.json").read_text())
NARROW = {"stem_features": 6, "growth": 2, "blocks": (1, 2, 3), "bottleneck": 2, "last_features": (5, 4)}
SMALL = {"features": (4, 6, 8, 10), "layers_per_stage": (2, 1, 2, 1), "growth": 3}


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_parameters_of_the_published_network_with_scale_layers():
    with torch.device("meta"):
        network = build_network("dense_unet167", 2, 3, 3, scale_layers=True)
    assert count_parameters(network) == 49_747_779


def test_parameters_and_channels_of_the_published_network():
    with torch.device("meta"):
        network = build_network("dense_unet167", 2, 3, 3)
        widths = {}
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _m, _x, y, name=name: widths.update({name: y.shape[1:]}))
        logits = network(torch.empty(1, 3, 64, 64))
    assert count_parameters(network) == 49_527_843
    assert logits.shape == (1, 3, 64, 64)
    blocks = [tuple(widths[f"blocks.{n}"]) for n in range(4)]
    assert blocks == [(384, 16, 16), (768, 8, 8), (2112, 4, 4), (2208, 2, 2)]
    assert [widths[f"transitions.{n}"][0] for n in range(3)] == [192, 384, 1056]
    assert tuple(widths["stem"]) == (96, 32, 32)
    decoder = [tuple(widths[f"decoder.{n}"]) for n in range(5)]
    assert decoder == [(768, 4, 4), (384, 8, 8), (96, 16, 16), (96, 32, 32), (64, 64, 64)]


@pytest.mark.parametrize("scale_layers", [False, True])
def test_gradients_reach_every_parameter_of_dense_unet167(scale_layers):
    network = build_network("dense_unet167", 2, 2, 3, seed=0, scale_layers=scale_layers, **NARROW)
    assert silent_parameters(network, image(2, 2, 32, 32)) == []


def test_skips_are_added():
    network = build_network("dense_unet167", 2, 1, 2, seed=0, **NARROW).eval()
    given = []
    for stage in network.decoder:
        stage.register_forward_pre_hook(lambda _m, x: given.append(x[0]))
    outputs = {}
    for name in ("stem", "blocks.0", "line", "last", "decoder.0", "decoder.1", "decoder.2"):
        network.get_submodule(name).register_forward_hook(
            lambda _m, _x, y, name=name: outputs.update({name: y.clone()})
        )
    network(image(1, 1, 32, 32))
    doubled = {name: y.repeat_interleave(2, 2).repeat_interleave(2, 3) for name, y in outputs.items()}
    assert torch.equal(given[0], doubled["last"] + outputs["line"])
    assert torch.equal(given[1], doubled["decoder.0"] + outputs["blocks.0"])
    assert torch.equal(given[2], doubled["decoder.1"] + outputs["stem"])
    assert torch.equal(given[3], doubled["decoder.2"])


@pytest.mark.parametrize(("blocks", "divisor"), [((2,), 4), ((1, 1, 1), 16), ((1, 1, 1, 1), 32)])
def test_legal_sizes_of_dense_unet167(blocks, divisor):
    network = build_network("dense_unet167", 2, 1, 2, **{**NARROW, "blocks": blocks})
    assert network.divisor == (divisor, divisor)
    assert network(torch.zeros(2, 1, divisor, 2 * divisor)).shape == (2, 2, divisor, 2 * divisor)


def test_scale_layers_are_at_first_the_identity():
    plain = build_network("dense_unet167", 2, 1, 2, seed=0, **NARROW).eval()
    scaled = build_network("dense_unet167", 2, 1, 2, seed=0, scale_layers=True, **NARROW).eval()
    x = image(1, 1, 16, 32)
    assert torch.equal(plain(x), scaled(x))


def test_scale_by_hand():
    scale = Scale(2)
    with torch.no_grad():
        scale.weight.copy_(torch.tensor([2.0, 3.0]))
        scale.bias.copy_(torch.tensor([0.0, 1.0]))
    assert torch.equal(scale(torch.ones(1, 2, 1, 2)), torch.tensor([[[[2.0, 2.0]], [[4.0, 4.0]]]]))


def test_dropout_precedes_the_last_normalization():
    network = build_network("dense_unet167", 2, 1, 2, seed=0, **NARROW)
    assert [type(layer).__name__ for layer in network.decoder[-1]] == ["Conv2d", "Dropout", "BatchNorm2d", "ReLU"]
    assert network.decoder[-1][1].p == 0.3


def test_a_dense_layer_sees_all_layers_before():
    block = DenseBlock([torch.nn.Identity(), torch.nn.Identity()])
    x = torch.tensor([[[1.0], [2.0]]])
    assert block(x).flatten().tolist() == [1, 2] * 4  # 2 channels, then 2 more, then all 4 of these again


@pytest.mark.parametrize("key", GOLDEN)
def test_parameters_of_the_default_dense_unet(key):
    with torch.device("meta"):
        network = build_network("dense_unet", int(key[0]), 1, 2, deep_supervision=key.endswith("supervised"))
    assert count_parameters(network) == GOLDEN[key]


def test_parameters_of_a_dense_unet_by_hand():
    options = {"features": (4, 8), "layers_per_stage": 2, "growth": 3, "norm": "none", "bias": False}
    network = build_network("dense_unet", 2, 1, 2, **options)
    # entry 3x3, two layers 3x3, compression 1x1; the decoder's stage sees 8 channels
    first, second = 9 * (1 * 4 + 4 * 3 + 7 * 3) + 10 * 4, 9 * (4 * 8 + 8 * 3 + 11 * 3) + 14 * 8
    decoder, up, logits = 9 * (8 * 4 + 4 * 3 + 7 * 3) + 10 * 4, 8 * 4 * 4 + 4, 4 * 2 + 2
    assert count_parameters(network) == first + second + decoder + up + logits


def test_growth_is_a_quarter_of_the_features_unless_given():
    network = build_network("dense_unet", 2, 1, 2, features=(8, 16, 18))
    assert [stage.block.layers[3].conv.out_channels for stage in network.encoder] == [2, 4, 4]
    assert [stage.compression.conv.in_channels for stage in network.encoder] == [16, 32, 34]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("down", "up"), [("pool", "transposed"), ("stride", "nearest"), ("pool", "linear")])
def test_logits_have_the_size_of_the_input(dims, down, up):
    network = build_network("dense_unet", dims, 2, 5, down=down, up=up, **SMALL)
    assert network(torch.zeros(2, 2, *(8, 16, 8)[:dims])).shape == (2, 5, *(8, 16, 8)[:dims])


@pytest.mark.parametrize("down", ["pool", "stride"])
def test_anisotropic_plan(down):
    kernels, strides = [[1, 3, 3], [1, 3, 3], 3, 3], [1, [1, 2, 2], [2, 2, 2], [1, 2, 1]]
    network = build_network(
        "dense_unet", 3, 1, 2, kernel_sizes=kernels, strides=strides, down=down, deep_supervision=True, **SMALL
    )
    assert network.divisor == (2, 8, 4)
    heads = network(torch.zeros(2, 1, 4, 8, 8))
    assert [tuple(logits.shape) for logits in heads.values()] == [(2, 2, 4, 8, 8), (2, 2, 4, 4, 4)]
    assert network.encoder[1].block.layers[0].conv.kernel_size == (1, 3, 3)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("up", ["transposed", "linear"])
def test_gradients_reach_every_parameter_of_dense_unet(deep_supervision, up):
    options = {"deep_supervision": deep_supervision, "up": up, "activation": "prelu", **SMALL}
    network = build_network("dense_unet", 2, 1, 2, seed=0, **options)
    assert silent_parameters(network, image(2, 1, 16, 16)) == []


@pytest.mark.parametrize(("name", "options"), [("dense_unet", SMALL), ("dense_unet167", NARROW)])
def test_a_batch_is_its_cases(name, options):
    network = build_network(name, 2, 1, 2, seed=0, **options).eval()
    x = image(2, 1, 16, 32)
    with torch.no_grad():
        alone = torch.cat([network(x[:1]), network(x[1:])])
        torch.testing.assert_close(network(x), alone, rtol=1e-4, atol=1e-5)


def test_evaluation_gives_the_finest_head_alone():
    network = build_network("dense_unet", 2, 1, 2, seed=0, norm="none", deep_supervision=True, **SMALL)
    heads = network(image(1, 1, 16, 16))
    assert list(heads) == ["level0", "level1"]
    assert torch.equal(network.eval()(image(1, 1, 16, 16)), heads["level0"])


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("dense_unet", "layers_per_stage", [1, 2], "layers_per_stage: expected one entry for each of the 5 stages"),
        ("dense_unet", "growth", 0, "growth: expected a number of at least 1 or one per stage, got 0"),
        ("dense_unet167", "features", [8, 16], "features: expected one of .*blocks"),
    ],
)
def test_wrong_options(name, option, value, message):
    with pytest.raises(ConfigError, match=message):
        build_network(name, 2, 1, 2, **{option: value})
