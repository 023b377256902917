import pytest
import torch
from networks import silent_parameters
from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.spec import NetworkSpec, build_network
from pipeline.model.unetpp import average_heads

SMALL = {"features": (4, 6, 8, 10), "dropout": 0.0}
HEADS = ("x0_3", "x0_2", "x0_1")
NODES = ("x0_1", "x0_2", "x0_3", "x1_1", "x1_2", "x2_1")


def depth_of(node):
    return sum(int(n) for n in node[1:].split("_"))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "dims", "deep_supervision", "parameters"),
    [
        ("unetpp", 2, True, 9_041_700),
        ("unetpp", 2, False, 9_041_601),
        ("unetpp", 3, True, 26_198_372),
        ("unetpp", 3, False, 26_198_273),
        ("unetplus", 2, False, 8_728_257),
        ("unetplus", 3, False, 25_258_241),
    ],
)
def test_parameters_are_the_papers(name, dims, deep_supervision, parameters):
    with torch.device("meta"):
        network = build_network(name, dims, 1, 1, deep_supervision=deep_supervision)
    assert count_parameters(network) == parameters


def test_unetplus_is_unetpp_without_the_long_connections():
    with torch.device("meta"):
        plus = build_network("unetplus", 2, 1, 2, **SMALL)
        same = build_network("unetpp", 2, 1, 2, dense=False, **SMALL)
        dense = build_network("unetpp", 2, 1, 2, **SMALL)
    shapes = {name: value.shape for name, value in plus.state_dict().items()}
    assert shapes == {name: value.shape for name, value in same.state_dict().items()}
    seen = {name: (plus.nodes[name].unit1.conv.in_channels, dense.nodes[name].unit1.conv.in_channels) for name in NODES}
    assert seen == {
        "x0_1": (8, 8),
        "x0_2": (8, 12),
        "x0_3": (8, 16),
        "x1_1": (12, 12),
        "x1_2": (12, 18),
        "x2_1": (16, 16),
    }


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_heads_are_all_at_full_resolution(dims, norm):
    size = (16, 8, 8)[:dims]
    network = build_network("unetpp", dims, 2, 3, deep_supervision=True, norm=norm, **SMALL)
    heads = network(torch.zeros(2, 2, *size))
    assert {name: tuple(logits.shape) for name, logits in heads.items()} == dict.fromkeys(HEADS, (2, 3, *size))
    assert tuple(heads) == HEADS
    assert network.eval()(torch.zeros(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("down", ["pool", "stride"])
@pytest.mark.parametrize("up", ["transposed", "nearest", "linear"])
def test_anisotropic_plan(down, up):
    strides, kernels = [1, [1, 2, 2], [2, 2, 2], [1, 2, 1]], [[1, 3, 3], [1, 3, 3], 3, 3]
    network = build_network(
        "unetpp", 3, 1, 2, strides=strides, kernel_sizes=kernels, down=down, up=up, deep_supervision=True, **SMALL
    )
    assert network.divisor == (2, 8, 4)
    assert [tuple(logits.shape) for logits in network(torch.zeros(1, 1, 2, 16, 4)).values()] == [(1, 2, 2, 16, 4)] * 3
    assert network.nodes["x0_2"].unit1.conv.kernel_size == (1, 3, 3)


def test_without_deep_supervision_one_head_and_one_tensor():
    network = build_network("unetpp", 2, 1, 2, **SMALL)
    assert list(network.heads) == ["x0_3"]
    assert isinstance(network(torch.zeros(1, 1, 8, 8)), torch.Tensor)


@pytest.mark.parametrize("name", ["unetpp", "unetplus"])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_gradients_reach_every_parameter(name, deep_supervision):
    network = build_network(name, 2, 1, 2, seed=0, deep_supervision=deep_supervision, activation="prelu", **SMALL)
    assert silent_parameters(network, noise(2, 1, 16, 16)) == []


@pytest.mark.parametrize("name", ["unetpp", "unetplus"])
@pytest.mark.parametrize("level", [1, 2])
def test_a_heads_loss_reaches_no_deeper_node(name, level):
    network = build_network(name, 2, 1, 2, seed=0, deep_supervision=True, activation="prelu", **SMALL)
    network(noise(1, 1, 16, 16))[f"x0_{level}"].square().sum().backward()
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {node for node in network.nodes if depth_of(node) <= level}
    assert len(reached) == (level + 1) * (level + 2) // 2


@pytest.mark.parametrize("mode", ["fast", "accurate"])
def test_a_batch_is_its_items_one_by_one(mode):
    network = build_network("unetpp", 3, 1, 2, seed=0, deep_supervision=True, norm="batch", mode=mode, **SMALL).eval()
    x = noise(2, 1, 8, 8, 8)
    torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]))


def test_fast_is_one_head_and_accurate_the_mean_of_probabilities():
    network = build_network("unetpp", 2, 1, 3, seed=0, deep_supervision=True, mode="accurate", **SMALL)
    x = noise(2, 1, 8, 8)
    heads = network(x)
    accurate = network.eval()(x)
    mean = torch.stack([logits.softmax(1) for logits in heads.values()]).mean(0)
    torch.testing.assert_close(accurate.exp(), mean)
    torch.testing.assert_close(accurate.softmax(1), mean)
    network.mode = "fast"
    assert torch.equal(network(x), heads["x0_3"])
    network.head = 2
    assert torch.equal(network(x), heads["x0_2"])


def test_the_head_that_predicts_is_the_first_and_needs_its_level_only():
    network = build_network("unetpp", 2, 1, 3, seed=0, deep_supervision=True, head=2, **SMALL)
    x = noise(2, 1, 8, 8)
    heads = network(x)
    assert tuple(heads) == ("x0_2", "x0_3", "x0_1")
    assert torch.equal(network.eval()(x), heads["x0_2"])
    assert multiply_adds(network, (8, 8), 1) == multiply_adds(network.prune(2), (8, 8), 1)


def test_average_by_hand():
    heads = (torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 9.0 + torch.log(torch.tensor(3.0))]]))
    # probabilities (1/2, 1/2) and (1/4, 3/4)
    torch.testing.assert_close(average_heads(heads).exp(), torch.tensor([[0.375, 0.625]]))


def test_average_of_sigmoids_by_hand():
    heads = (torch.tensor([[0.0]]), torch.tensor([[3.0]]).log())
    # probabilities 1/2 and 3/4, mean 5/8
    torch.testing.assert_close(average_heads(heads, "sigmoid"), torch.tensor([[5 / 3]]).log())
    extreme = average_heads((torch.tensor([[200.0]]), torch.tensor([[200.0]])), "sigmoid")
    torch.testing.assert_close(extreme, torch.tensor([[200.0]]))


def test_one_output_channel_is_a_sigmoid():
    network = build_network("unetpp", 2, 1, 1, seed=0, deep_supervision=True, mode="accurate", **SMALL)
    x = torch.ones(1, 1, 8, 8)
    mean = torch.stack([logits.sigmoid() for logits in network(x).values()]).mean(0)
    torch.testing.assert_close(network.eval()(x).sigmoid(), mean)


def test_accurate_needs_heads_to_average():
    with pytest.raises(ConfigError, match="mode: expected fast where deep_supervision is off, got accurate"):
        build_network("unetpp", 2, 1, 2, mode="accurate")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"head": 1}, "head: expected none, unless deep supervision is on and mode is fast, got 1"),
        ({"head": 1, "deep_supervision": True, "mode": "accurate"}, "head: expected none, unless deep supervision"),
        ({"head": 5, "deep_supervision": True}, "head: expected 1 to 4, as there are 5 stages, got 5"),
        ({"head": 0, "deep_supervision": True}, "head: expected at least 1, got 0. Correct the value."),
    ],
)
def test_a_head_that_is_not_there_is_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        build_network("unetpp", 2, 1, 2, **options)


# What pruning keeps, and that the rest was not needed.

PRUNED = {"features": (4, 6, 8, 10), "dropout": 0.5, "deep_supervision": True}


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
    network = with_statistics(build_network(name, dims, 2, 3, seed=0, norm=norm, **PRUNED)).eval()
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
    network = build_network("unetpp", 2, 1, 2, seed=0, norm="batch", **PRUNED)
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
    network = build_network("unetpp", 2, 1, 2, seed=0, **PRUNED)
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
    options = {**PRUNED, "strides": strides, "kernel_sizes": kernels, "mode": "accurate"}
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
        network = build_network("unetpp", 2, 1, 2, **PRUNED)
        alone = build_network("unetpp", 2, 1, 2)
    for level in (0, 4):
        with pytest.raises(ConfigError, match=f"level: expected 1 to 3, got {level}. Choose one of them"):
            network.prune(level)
    with pytest.raises(ConfigError, match="expected a network trained with deep supervision, got one trained without"):
        alone.prune(2)
