import pytest
import torch
from networks import silent_parameters

from pipeline.core import ConfigError
from pipeline.model import build_network, count_parameters, multiply_adds
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
