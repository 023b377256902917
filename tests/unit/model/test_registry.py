import pytest
import torch
from networks import TINY, batch, tiny
from safetensors.torch import load_file, save_file

from pipeline.core.errors import ConfigError
from pipeline.model.registry import list_networks
from pipeline.model.spec import build_network

NAMES = [info.name for info in list_networks()]
DIMS = {info.name: info.dims[-1] for info in list_networks()}


def test_rows_of_the_list():
    rows = {info.name: info for info in list_networks()}
    assert {"unet", "unetpp"} <= rows.keys()
    assert rows["unet"].dims == rows["unetpp"].dims == (2, 3)
    assert rows["unet"].defaults["features"] == (64, 128, 256, 512, 1024)
    assert rows["unetpp"].defaults["dropout"] == 0.5
    assert "1505.04597" in rows["unet"].source
    assert "1807.10165" in rows["unetpp"].source
    assert all(info.summary for info in rows.values())


@pytest.mark.parametrize("info", list_networks(), ids=NAMES)
def test_listed_defaults_build_the_default_network(info):
    dims = info.dims[0]
    with torch.device("meta"):
        default = build_network(info.name, dims, 1, 2).state_dict()
        listed = build_network(info.name, dims, 1, 2, **info.defaults).state_dict()
    assert {name: value.shape for name, value in default.items()} == {n: v.shape for n, v in listed.items()}


@pytest.mark.parametrize("dims", [2, 3])
def test_one_word_changes_the_network(dims):
    settings = {"dims": dims, "in_channels": 2, "out_channels": 3, "features": (4, 8, 16), "deep_supervision": True}
    x = torch.zeros(1, 2, *(8, 12, 4)[:dims])
    for name in ("unet", "unetpp"):
        network = build_network(name, norm="instance", **settings)
        assert network.divisor == (4,) * dims
        assert isinstance(network(x), dict)
        assert network.eval()(x).shape == (1, 3, *x.shape[2:])


def test_wrong_name_is_corrected():
    with pytest.raises(ConfigError, match=r"name: expected one of unet, .*unetpp.*got 'unet\+\+'. Did you mean unet"):
        build_network("unet++", 2, 1, 2)


def test_all_wrong_numbers_at_once():
    with pytest.raises(ConfigError) as caught:
        build_network("unet", 4, 0, -1)
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "dims: expected 2 or 3 for unet",
        "in_channels: expected at least 1",
        "out_channels: expected at least 1",
    ]


def test_wrong_option_is_corrected():
    with pytest.raises(ConfigError, match="options of network unetpp") as caught:
        build_network("unetpp", 2, 1, 2, mod="fast", activation="rely")
    assert "Did you mean mode?" in str(caught.value)
    assert "Did you mean relu?" in str(caught.value)


def test_wrong_values_are_named_in_plain_words():
    wrong = {
        "unet": ({"features": [4]}, "features: expected at least 2 items, got [4]. Correct the value."),
        "unet32": ({"dropout": 1.5}, "dropout: expected less than 1, got 1.5. Correct the value."),
        "wide_unet": ({"norm:batch": None}, "norm:batch: expected a name and a value, got one word. Write a blank"),
    }
    for name, (options, message) in wrong.items():
        with pytest.raises(ConfigError) as caught:
            build_network(name, 2, 1, 2, **options)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_the_weights_and_nothing_else(name):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    dims = DIMS[name]
    first = build_network(name, dims, 1, 2, seed=1, **TINY[name]).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = build_network(name, dims, 1, 2, seed=1, **TINY[name]).state_dict()
    other = build_network(name, dims, 1, 2, seed=2, **TINY[name]).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_first_weights_may_be_those_of_pytorch():
    first = build_network("unet", 2, 1, 2, seed=1, initialization="pytorch", features=(4, 8))
    for layer in first.modules():
        if isinstance(layer, torch.nn.Conv2d):
            bound = (layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]) ** -0.5
            assert 0.5 * bound < layer.weight.abs().max() <= bound
    he = build_network("unet", 2, 1, 2, seed=1, features=(4, 8))
    weights = [network.state_dict()["encoder.1.unit2.conv.weight"] for network in (he, first)]
    assert 2 < weights[0].std() / weights[1].std() < 3  # sqrt(2) against sqrt(1/3)


def test_without_a_seed_the_global_generator_decides():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(build_network("unet", 2, 1, 2, features=(4, 8)).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_safetensors_bit_for_bit(name, tmp_path):
    network = tiny(name, DIMS[name])
    x = batch(network)
    network(x)  # moves the running statistics
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    twin = build_network(name, DIMS[name], 1, 2, seed=5, **TINY[name])
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(network.eval()(x), twin.eval()(x))


def test_options_stay_with_the_network():
    network = build_network("unet", 2, 1, 2, features=[4, 8], norm="group")
    again = build_network("unet", 2, 1, 2, **network.options.model_dump(mode="json"))
    assert again.options == network.options
