import pytest
import torch
from networks import silent_parameters
from padding import forward_any_size
from torch import nn

from pipeline.core.errors import ConfigError, DataError
from pipeline.model.cost import count_parameters
from pipeline.model.spec import build_network

VALID = {"features": (3, 4, 5), "padding": "valid", "norm": "none", "bias": True}


def image(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "dims", "channels", "parameters"),
    [
        ("unet", 2, (3, 2), 31_037_698),
        ("unet2015", 2, (1, 2), 31_030_658),
        ("unet2015", 3, (1, 2), 90_292_738),
        ("unet_phseg_v5", 2, (1, 2), 31_100_354),
        ("unet_upconv", 2, (3, 2), 34_527_106),
        ("unet_upconv", 3, (3, 2), 103_539_970),
        ("unet32", 2, (1, 1), 7_759_521),
        ("unet32", 3, (1, 1), 22_575_329),
        ("wide_unet", 2, (1, 1), 9_282_246),
        ("wide_unet", 3, (1, 1), 27_006_176),
    ],
)
def test_defaults_have_the_published_parameters(name, dims, channels, parameters):
    with torch.device("meta"):
        network = build_network(name, dims, *channels)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize("name", ["unet2015", "unet_phseg_v5"])
def test_sizes_of_2015(name):
    with torch.device("meta"):
        network = build_network(name, 2, 1, 2).eval()
        sizes = []
        for stage in network.encoder:
            stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
        logits = network(torch.empty(1, 1, 572, 188))
    assert sizes == [(568, 184), (280, 88), (136, 40), (64, 16), (28, 4)]
    assert tuple(logits.shape) == (1, 2, 388, 4)
    assert network.divisor == (16, 16)
    assert network.margin == (92, 92)
    assert network.output_size((572, 188)) == (388, 4)
    assert network.legal_size((1, 573)) == (188, 588)


def test_an_illegal_size_names_the_nearest_legal_ones():
    with torch.device("meta"):
        network = build_network("unet2015", 2, 1, 2)
        with pytest.raises(DataError) as caught:
            network(torch.empty(1, 1, 100, 573))
    assert str(caught.value) == (
        "input size: expected (188, 188) plus multiples of (16, 16), got (100, 573) (axis 0 is 100, nearest legal 188; "
        "axis 1 is 573, nearest legal 572 and 588). Pad to (188, 588), or crop."
    )


def test_skips_are_cropped_at_their_centre():
    network = build_network("unet2015", 2, 1, 1, features=(1, 1), kernel_sizes=[3, 1], convs_per_stage=1).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.weight.zero_()
                layer.bias.zero_()
        network.encoder[0].unit1.conv.weight[0, 0, 1, 1] = 1  # the skip is the image less its border
        network.decoder[0].unit1.conv.weight[0, 0, 1, 1] = 1  # and the decoder passes its centre on
        network.heads[0].weight[:] = 1
        x = torch.arange(100.0).reshape(1, 1, 10, 10)
        assert torch.equal(network(x), x[..., 2:-2, 2:-2])
    assert network.margin == (2, 2)


def test_phseg_has_dropout_and_activations_where_the_release_has_them():
    with torch.device("meta"):
        network = build_network("unet_phseg_v5", 2, 1, 2)
    dropped = [name for name, layer in network.named_modules() if isinstance(layer, nn.Dropout)]
    assert dropped == ["encoder.3.unit2.dropout", "encoder.4.unit2.dropout"]
    assert [[type(layer) for layer in up] for up in network.upsamplings] == [[nn.ConvTranspose2d, nn.ReLU]] * 4
    assert [up.conv.out_channels for up in network.upsamplings] == [128, 128, 256, 512]
    assert network.encoder[3].unit2.dropout.p == 0.5


@pytest.mark.parametrize(
    ("name", "dims", "size"),
    [
        ("unet2015", 2, (44, 48)),
        ("unet2015", 3, (44, 44, 44)),
        ("unet_phseg_v5", 2, (44, 48)),
        ("unet_upconv", 2, (8, 12)),
        ("unet_upconv", 3, (4, 8, 8)),
        ("unet32", 2, (8, 12)),
        ("unet32", 3, (4, 8, 8)),
        ("wide_unet", 2, (8, 12)),
        ("wide_unet", 3, (4, 8, 8)),
    ],
)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_gradients_reach_every_parameter(name, dims, size, deep_supervision):
    options = {"features": (2, 3, 4), "activation": "prelu", "deep_supervision": deep_supervision}
    network = build_network(name, dims, 2, 3, seed=0, **options)
    x = image(2, 2, *size)
    assert silent_parameters(network, x) == []
    outputs = network(x)
    heads = outputs.values() if deep_supervision else (outputs,)
    assert all(tuple(logits.shape) == (2, 3, *network.output_size(size)) for logits in heads)


@pytest.mark.parametrize("name", ["unet2015", "unet_phseg_v5", "unet_upconv", "unet32", "wide_unet"])
def test_cases_of_a_batch_do_not_meet_in_evaluation(name):
    network = build_network(name, 2, 1, 2, seed=0, features=(4, 6, 8)).double().eval()
    x = image(2, 1, *network.legal_size((50, 50))).double()
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]), rtol=0, atol=1e-10)


def test_presets_take_the_options_of_stages():
    options = {"features": (4, 6, 8), "norm": "group", "strides": [1, [1, 2, 2], 2], "kernel_sizes": [[1, 3, 3], 3, 3]}
    network = build_network("unet2015", 3, 1, 2, seed=0, **options)
    assert network.divisor == (2, 4, 4)
    size = network.legal_size((1, 1, 1))
    assert network(torch.zeros(1, 1, *size)).shape[2:] == network.output_size(size)


def test_nearest_interpolation_with_valid_convolutions():
    network = build_network("unet_upconv", 2, 1, 2, seed=0, features=(3, 4, 5), padding="valid", norm="none").eval()
    size = network.legal_size((1, 1))
    assert network(torch.zeros(1, 1, *size)).shape[2:] == network.output_size(size)


def test_linear_interpolation_needs_padding():
    with pytest.raises(ConfigError, match="up: expected transposed or nearest where padding is valid, got linear"):
        build_network("unet2015", 2, 1, 2, up="linear")


def test_skips_that_have_no_centre_are_refused():
    with pytest.raises(
        ConfigError, match="padding valid at level 3: expected skips larger by an even number"
    ) as caught:
        build_network("unet2015", 2, 1, 2, down="stride")
    assert "Take down: pool" in str(caught.value)
    network = build_network("unet2015", 2, 1, 2, seed=0, features=(3, 4, 5), down="stride", strides=3).eval()
    size = network.legal_size((1, 1))
    assert network(torch.zeros(1, 1, *size)).shape[2:] == network.output_size(size)


def test_full_heads_are_the_native_ones_interpolated():
    options = {"features": (3, 4, 5, 6), "norm": "none", "deep_supervision": True}
    native = build_network("unet", 2, 1, 2, seed=0, **options)
    full = build_network("unet", 2, 1, 2, seed=0, head_size="full", **options)
    x = image(1, 1, 16, 24)
    fine, coarse = native(x).values()
    outputs = full(x)
    assert list(outputs) == ["level0", "level1"]
    assert torch.equal(outputs["level0"], fine)
    assert coarse.shape == (1, 2, 8, 12)
    torch.testing.assert_close(outputs["level1"], nn.Upsample(scale_factor=2, mode="bilinear")(coarse))


def heads_of_one_case(head_size, features, size):
    options = {**VALID, "features": features, "deep_supervision": True, "head_size": head_size}
    network = build_network("unet", 2, 1, 2, seed=0, **options)
    decoded = {}
    for level, stage in enumerate(network.decoder):
        stage.register_forward_hook(lambda module, inputs, output, level=level: decoded.update({level: output}))
    outputs = network(image(1, 1, *size))
    return network, outputs, [network.heads[n](decoded[n]) for n in range(len(network.heads))]


def test_native_heads_of_valid_convolutions_lie_over_the_final_output():
    network, outputs, whole = heads_of_one_case("native", (3, 4, 5, 6), (108, 116))
    final = network.output_size((108, 116))
    assert tuple(outputs["level0"].shape[2:]) == final
    assert whole[1].shape[2:] == tuple(n // 2 + 2 for n in final)  # two more pixels of the image on either side
    assert torch.equal(outputs["level1"], whole[1][..., 1:-1, 1:-1])


def test_full_heads_of_valid_convolutions_lie_over_the_final_output():
    network, outputs, whole = heads_of_one_case("full", (3, 4, 5, 6, 7), (204, 188))
    assert [tuple(logits.shape[2:]) for logits in outputs.values()] == [network.output_size((204, 188))] * 3
    wide = nn.Upsample(scale_factor=4, mode="bilinear")(whole[2])
    torch.testing.assert_close(outputs["level2"], wide[..., 6:-6, 6:-6])  # 2 + 2 * 2 pixels beyond the final output


def test_native_heads_between_pixels_are_refused():
    with pytest.raises(ConfigError) as caught:
        build_network("unet2015", 2, 1, 2, deep_supervision=True, head_size="native")
    assert caught.value.problems == (
        "deep_supervision: expected heads that can be cropped to the final output, voxel by voxel, got level 2, which "
        "reaches (6, 6) voxels beyond it in steps of (4, 4). Set head_size: full, or take fewer stages.",
    )


def test_any_size_goes_through_mirrored():
    network = build_network("unet2015", 2, 1, 2, seed=0, features=(3, 4, 5)).eval()
    x = image(1, 1, 30, 25)
    with torch.no_grad():
        logits = forward_any_size(network, x)
        mirrored = nn.functional.pad(x, (21, 22, 21, 21), mode="reflect")  # 20 on either side, then up to 68 and 72
        expected = network(mirrored)[..., 1:31, 1:26]
    assert network.margin == (20, 20)
    assert mirrored.shape[2:] == (72, 68)
    torch.testing.assert_close(logits, expected)


def test_one_case_at_the_smallest_valid_size_can_be_trained_with_batch_norm():
    network = build_network("unet2015", 2, 1, 2, seed=0, features=(3, 4, 5), norm="batch")
    assert network(image(1, 1, 44, 44)).shape == (1, 2, 4, 4)
