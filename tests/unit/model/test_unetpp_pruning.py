"""What pruning keeps, and that the rest was not needed."""

import pytest
import torch
from torch import nn

from pipeline.core import ConfigError
from pipeline.model import build_network, count_parameters, multiply_adds
from pipeline.model.spec import NetworkSpec

SMALL = {"features": (4, 6, 8, 10), "dropout": 0.5, "deep_supervision": True}


def with_statistics(network):
    """Random running statistics, as a training leaves them."""
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


@pytest.mark.parametrize("name", ["unetpp", "unetplus"])
@pytest.mark.parametrize(("dims", "norm"), [(2, "batch"), (2, "none"), (3, "instance"), (3, "batch")])
def test_a_level_alone_gives_the_logits_of_its_head_bit_for_bit(name, dims, norm):
    network = with_statistics(build_network(name, dims, 2, 3, seed=0, norm=norm, **SMALL)).eval()
    heads = {}
    for head, layer in network.heads.items():
        layer.register_forward_hook(lambda layer, inputs, output, head=head: heads.update({head: output}))
    x = torch.randn(2, 2, *(16, 16, 8)[:dims], generator=torch.Generator().manual_seed(1))
    network.mode = "accurate"  # runs through every head
    network(x)
    assert len(heads) == 3
    for level in (1, 2, 3):
        assert torch.equal(network.prune(level)(x), heads[f"x0_{level}"])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_it_is_a_part_of_the_state_without_the_deeper_nodes(level):
    network = build_network("unetpp", 2, 1, 2, seed=0, norm="batch", **SMALL)
    pruned = network.prune(level)
    full, state = network.state_dict(), pruned.state_dict()
    assert state.keys() < full.keys()
    assert all(torch.equal(value, full[name]) for name, value in state.items())
    assert set(network.nodes) - set(pruned.nodes) == {
        f"x{i}_{j}" for i in range(4) for j in range(4 - i) if i + j > level
    }
    assert list(pruned.heads) == [f"x0_{level}"]
    assert pruned.training
    assert pruned.divisor == (2**level,) * 2


def test_nothing_is_shared_and_no_random_number_drawn():
    network = build_network("unetpp", 2, 1, 2, seed=0, **SMALL)
    before = torch.get_rng_state()
    pruned = network.prune(1)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert network.heads["x0_1"].weight.abs().sum() > 0
    assert all(parameter.requires_grad for parameter in pruned.parameters())


@pytest.mark.parametrize(
    ("dims", "heads", "parameters"),
    [
        (2, 1, (100_961, 511_105, 2_204_961, 9_041_601)),
        (3, 4, (294_049, 1_482_466, 6_389_667, 26_198_372)),  # counted with the heads of all levels up to it
    ],
)
def test_parameters_of_each_level(dims, heads, parameters):
    with torch.device("meta"):
        network = build_network("unetpp", dims, 1, 1, deep_supervision=True)
    head = count_parameters(network.heads["x0_1"])
    found = [count_parameters(network.prune(level)) + (min(level, heads) - 1) * head for level in (1, 2, 3, 4)]
    assert tuple(found) == parameters


def test_multiply_adds_saved_in_3d():
    with torch.device("meta"):
        network = build_network("unetpp", 3, 1, 1, deep_supervision=True)
    size = (16, 16, 16)
    full = multiply_adds(network, size, 1)
    saved = [1 - multiply_adds(network.prune(level), size, 1) / full for level in (1, 2, 3, 4)]
    assert [f"{share:.0%}" for share in saved] == ["83%", "63%", "35%", "0%"]


@pytest.mark.parametrize("name", ["unetpp", "unetplus"])
def test_options_alone_build_it_again(name):
    strides, kernels = [1, [1, 2, 2], [2, 2, 2], 2], [[1, 3, 3], [1, 3, 3], 3, 3]
    options = {**SMALL, "strides": strides, "kernel_sizes": kernels, "mode": "accurate"}
    pruned = build_network(name, 3, 1, 2, seed=0, **options).prune(2)
    described = pruned.options.model_dump(mode="json")
    assert described["features"] == [4, 6, 8]
    assert described["strides"] == strides[:3]
    assert described["kernel_sizes"] == kernels[:3]
    assert (described["deep_supervision"], described["mode"], described["head"]) == (False, "fast", None)
    spec = NetworkSpec(name=name, dims=3, in_channels=1, out_channels=2, options=described, patch_size=(2, 4, 4))
    again = spec.build()
    again.load_state_dict(pruned.state_dict())
    x = torch.randn(1, 1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.eval()(x), pruned.eval()(x))


def test_levels_that_are_not_there_are_refused():
    with torch.device("meta"):
        network = build_network("unetpp", 2, 1, 2, **SMALL)
        alone = build_network("unetpp", 2, 1, 2)
    for level in (0, 4):
        with pytest.raises(ConfigError, match=f"level: expected 1 to 3, got {level}. Choose one of them"):
            network.prune(level)
    with pytest.raises(ConfigError, match="expected a network trained with deep supervision, got one trained without"):
        alone.prune(2)
