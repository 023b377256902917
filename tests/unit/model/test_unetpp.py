import pytest
import torch

from pipeline.core import ConfigError
from pipeline.model import build_network, count_parameters
from pipeline.model.unetpp import average_heads

SMALL = {"features": (4, 6, 8, 10), "dropout": 0.0}


@pytest.mark.parametrize(
    ("dims", "deep_supervision", "parameters"),
    [(2, True, 9_041_700), (2, False, 9_041_601), (3, True, 26_198_372), (3, False, 26_198_273)],
)
def test_parameters_are_the_papers(dims, deep_supervision, parameters):
    with torch.device("meta"):
        network = build_network("unetpp", dims, 1, 1, deep_supervision=deep_supervision)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize(("depth", "parameters"), [(1, 100_961), (2, 511_105), (3, 2_204_961), (4, 9_041_601)])
def test_names_carry_the_network_of_each_depth(depth, parameters):
    with torch.device("meta"):
        state = build_network("unetpp", 2, 1, 1, deep_supervision=True).state_dict()
    kept = 0
    for key, value in state.items():
        part, node = key.split(".")[:2]
        level, column = (int(n) for n in node[1:].split("_"))
        if (part == "heads" and column == depth) or (part != "heads" and level + column <= depth):
            kept += value.numel()
    assert kept == parameters


def test_a_shallow_network_is_part_of_a_deep_one():
    deep = build_network("unetpp", 2, 1, 2, seed=0, deep_supervision=True, **SMALL)
    shallow = build_network("unetpp", 2, 1, 2, features=SMALL["features"][:3], dropout=0.0).eval()
    keys = shallow.state_dict().keys()
    shallow.load_state_dict({key: deep.state_dict()[key] for key in keys})
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    third, second, first = deep(x)
    assert first.shape == second.shape == third.shape
    assert torch.equal(shallow(x), second)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_heads_are_all_at_full_resolution(dims, norm):
    size = (16, 8, 8)[:dims]
    network = build_network("unetpp", dims, 2, 3, deep_supervision=True, norm=norm, **SMALL)
    heads = network(torch.zeros(2, 2, *size))
    assert [tuple(logits.shape) for logits in heads] == [(2, 3, *size)] * 3
    assert network.eval()(torch.zeros(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("down", ["pool", "stride"])
@pytest.mark.parametrize("up", ["transposed", "nearest", "linear"])
def test_anisotropic_plan(down, up):
    strides, kernels = [1, [1, 2, 2], [2, 2, 2], [1, 2, 1]], [[1, 3, 3], [1, 3, 3], 3, 3]
    network = build_network(
        "unetpp", 3, 1, 2, strides=strides, kernel_sizes=kernels, down=down, up=up, deep_supervision=True, **SMALL
    )
    assert network.divisor == (2, 8, 4)
    assert [tuple(logits.shape) for logits in network(torch.zeros(1, 1, 2, 16, 4))] == [(1, 2, 2, 16, 4)] * 3
    assert network.nodes["x0_2"].unit1.conv.kernel_size == (1, 3, 3)


def test_without_deep_supervision_one_head_and_one_tensor():
    network = build_network("unetpp", 2, 1, 2, **SMALL)
    assert list(network.heads) == ["x0_3"]
    assert isinstance(network(torch.zeros(1, 1, 8, 8)), torch.Tensor)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_gradients_reach_every_parameter(deep_supervision):
    options = {"deep_supervision": deep_supervision, "activation": "prelu", **SMALL}
    network = build_network("unetpp", 2, 1, 2, seed=0, **options)
    outputs = network(torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    sum(logits.square().sum() for logits in (outputs if deep_supervision else (outputs,))).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_heads_loss_reaches_no_deeper_node():
    network = build_network("unetpp", 2, 1, 2, seed=0, deep_supervision=True, activation="prelu", **SMALL)
    heads = network(torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    heads[-1].square().sum().backward()  # head of depth 1
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {"x0_0", "x1_0", "x0_1"}


def test_fast_is_the_deepest_head_and_accurate_the_mean_of_probabilities():
    network = build_network("unetpp", 2, 1, 3, seed=0, deep_supervision=True, mode="accurate", **SMALL)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    heads = network(x)
    accurate = network.eval()(x)
    mean = torch.stack([logits.softmax(1) for logits in heads]).mean(0)
    torch.testing.assert_close(accurate.exp(), mean)
    torch.testing.assert_close(accurate.softmax(1), mean)
    network.mode = "fast"
    assert torch.equal(network(x), heads[0])


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
    mean = torch.stack([logits.sigmoid() for logits in network(x)]).mean(0)
    torch.testing.assert_close(network.eval()(x).sigmoid(), mean)


def test_accurate_needs_heads_to_average():
    with pytest.raises(ConfigError, match="mode: expected fast where deep_supervision is off, got accurate"):
        build_network("unetpp", 2, 1, 2, mode="accurate")
