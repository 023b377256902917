import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from networks import silent_parameters
from nnunet_reference import nested_shapes, reference_network

from pipeline.core.errors import ConfigError
from pipeline.model.blocks import Style
from pipeline.model.cost import count_parameters
from pipeline.model.nnunet import BasicBlock, nnunet_options, nnunet_weights
from pipeline.model.spec import build_network

# Shapes as dynamic-network-architectures builds them from plans of nnU-Net; the file names the version.
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nnunet_state_dicts.json").read_text())["networks"]
SMALL = {"features": (4, 6, 8, 8), "convs_decoder": (2, 1, 1)}
NAMES = ["nnunet_plain", "nnunet_resenc"]


def narrow(architecture):
    """The same architecture with few channels and blocks."""
    small = deepcopy(architecture)
    arguments = small["arch_kwargs"]
    arguments["features_per_stage"] = [4 + 2 * min(n, 2) for n in range(arguments["n_stages"])]
    for name in ("n_conv_per_stage", "n_blocks_per_stage"):
        if name in arguments:
            arguments[name] = [1, 2] + [1] * (arguments["n_stages"] - 2)
    return small


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("plan", GOLDEN)
def test_names_and_shapes_are_nnunets(plan):
    golden = GOLDEN[plan]
    name, dims, options = nnunet_options(golden["architecture"])
    with torch.device("meta"):
        network = build_network(name, dims, golden["in_channels"], golden["out_channels"], **options)
    assert nested_shapes(network.state_dict()) == golden["shapes"]


@pytest.mark.parametrize("plan", GOLDEN)
def test_weights_of_the_installed_package_give_the_same_logits(plan):
    pytest.importorskip("dynamic_network_architectures")
    golden = GOLDEN[plan]
    architecture, channels = narrow(golden["architecture"]), (golden["in_channels"], golden["out_channels"])
    torch.manual_seed(0)
    reference = reference_network(architecture, *channels)
    name, dims, options = nnunet_options(architecture)
    network = build_network(name, dims, *channels, **options)
    network.load_state_dict(nnunet_weights(reference.state_dict()))
    x = image(1, channels[0], *network.legal_size((1,) * dims))
    for ours, theirs in zip(network(x).values(), reference(x), strict=True):
        assert torch.equal(ours, theirs)
    with torch.device("meta"):
        full = reference_network(golden["architecture"], *channels)
    assert nested_shapes(full.state_dict()) == golden["shapes"]


@pytest.mark.parametrize(
    ("name", "dims", "parameters"),
    [
        ("nnunet_plain", 2, 10_709_378),
        ("nnunet_plain", 3, 31_194_050),
        ("nnunet_resenc", 2, 34_530_178),
        ("nnunet_resenc", 3, 102_348_226),
    ],
)
def test_parameters_of_the_default_plan(name, dims, parameters):
    with torch.device("meta"):
        network = build_network(name, dims, 1, 2)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_gradients_reach_every_parameter(name, deep_supervision, norm):
    options = {"deep_supervision": deep_supervision, "norm": norm, "activation": "prelu", **SMALL}
    network = build_network(name, 2, 1, 2, seed=0, **options)
    assert silent_parameters(network, image(2, 1, 16, 32)) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_level_of_the_decoder_has_a_head(name):
    network = build_network(name, 2, 1, 3, seed=0, deep_supervision=True, **SMALL)
    heads = network(image(1, 1, 16, 32))
    sizes = {key: tuple(logits.shape) for key, logits in heads.items()}
    assert sizes == {"level0": (1, 3, 16, 32), "level1": (1, 3, 8, 16), "level2": (1, 3, 4, 8)}
    logits = network.eval()(image(1, 1, 16, 32))
    assert torch.equal(logits, heads["level0"])


@pytest.mark.parametrize("name", NAMES)
def test_the_only_head_keeps_its_number(name):
    network = build_network(name, 2, 1, 3, **SMALL)
    assert list(network.decoder.seg_layers) == ["2"]
    supervised = build_network(name, 2, 1, 3, deep_supervision=True, **SMALL)
    assert list(supervised.decoder.seg_layers) == ["0", "1", "2"]
    assert isinstance(network(image(1, 1, 16, 16)), torch.Tensor)


@pytest.mark.parametrize("name", NAMES)
def test_anisotropic_plan(name):
    kernels, strides = [[1, 3, 3], [1, 3, 3], 3, 3], [1, [1, 2, 2], [2, 2, 2], [1, 2, 1]]
    network = build_network(name, 3, 2, 3, kernel_sizes=kernels, strides=strides, seed=0, **SMALL)
    assert network.divisor == (2, 8, 4)
    assert network(image(1, 2, 4, 8, 8)).shape == (1, 3, 4, 8, 8)
    assert network.decoder.transpconvs[0].kernel_size == (1, 2, 1)
    assert network.decoder.stages[-1].convs[0].conv.kernel_size == (1, 3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_cases(name):
    network = build_network(name, 3, 1, 2, seed=0, **SMALL).eval()
    x = image(2, 1, 8, 8, 16)
    with torch.no_grad():
        alone = torch.cat([network(x[:1]), network(x[1:])])
        torch.testing.assert_close(network(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "stride", "shortcut"),
    [
        (3, (1, 1), lambda x, block: x),
        (3, (2, 1), lambda x, block: (x[:, :, ::2] + x[:, :, 1::2]) / 2),
        (
            5,
            (1, 1),
            lambda x, block: block.skip[0].norm(torch.einsum("oi,bihw->bohw", block.skip[0].conv.weight[..., 0, 0], x)),
        ),
    ],
)
def test_a_block_whose_last_convolution_is_zero_is_its_shortcut(channels, stride, shortcut):
    block = BasicBlock(3, channels, (3, 3), stride, Style(2, "instance", "relu", bias=True))
    with torch.no_grad():
        block.conv2.conv.weight.zero_()
        block.conv2.conv.bias.zero_()
    x = image(2, 3, 4, 6)
    torch.testing.assert_close(block(x), shortcut(x, block).relu())


@pytest.mark.parametrize(("stages", "blocks"), [(2, [1, 3]), (5, [1, 3, 4, 6, 6])])
def test_blocks_follow_the_number_of_stages(stages, blocks):
    network = build_network("nnunet_resenc", 2, 1, 2, features=(2,) * stages)
    assert [len(stage.blocks) for stage in network.encoder.stages] == blocks


def test_units_per_stage():
    network = build_network("nnunet_plain", 2, 1, 2, convs_per_stage=[1, 2, 3, 1], **SMALL)
    assert [len(stage[0].convs) for stage in network.encoder.stages] == [1, 2, 3, 1]
    assert [len(stage.convs) for stage in network.decoder.stages] == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("nnunet_plain", "convs_per_stage", [1, 2], "convs_per_stage: expected one entry for each of the 4 stages in"),
        (
            "nnunet_plain",
            "convs_decoder",
            [1, 2, 3, 4],
            "convs_decoder: expected one entry for each of the 3 stages of",
        ),
        ("nnunet_resenc", "blocks_per_stage", 0, "blocks_per_stage: expected a number of at least 1 or one per stage"),
    ],
)
def test_wrong_counts(name, option, value, message):
    with pytest.raises(ConfigError, match=message):
        build_network(name, 2, 1, 2, **{"features": (4, 6, 8, 8), option: value})


def test_repetitions_in_nnunets_weights_are_left_out():
    unit, twin = "encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.0.all_modules.0.weight"
    state = {unit: 1, twin: 1, f"decoder.{unit}": 1, f"decoder.{twin}": 1, "decoder.seg_layers.0.bias": 2}
    assert nnunet_weights(state) == {unit: 1, "decoder.seg_layers.0.bias": 2}


def test_options_of_a_plan():
    architecture = GOLDEN["resenc_2d"]["architecture"]
    name, dims, options = nnunet_options(architecture)
    assert (name, dims) == ("nnunet_resenc", 2)
    assert options["features"] == [32, 64, 128, 256, 512, 512, 512]
    assert options["blocks_per_stage"] == [1, 3, 4, 6, 6, 6, 6]
    assert (options["norm"], options["activation"], options["bias"]) == ("instance", "leaky_relu", True)


def test_all_foreign_layers_of_a_plan_at_once():
    architecture = deepcopy(GOLDEN["plain_2d"]["architecture"])
    architecture["network_class_name"] = "somewhere.Primus"
    architecture["arch_kwargs"] |= {"norm_op": None, "dropout_op": "torch.nn.Dropout2d"}
    with pytest.raises(ConfigError) as caught:
        nnunet_options(architecture)
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "network_class_name: expected one of PlainConvUNet",
        "arch_kwargs.norm_op: expected one of InstanceNorm2d",
        "arch_kwargs.dropout_op: expected one of null",
    ]
