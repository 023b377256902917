import pytest
import torch
from networks import silent_parameters
from torch import nn

from pipeline.core.errors import ConfigError, DataError
from pipeline.model.attention import aligned_gate, grid_gate
from pipeline.model.blocks import Style
from pipeline.model.cost import count_parameters
from pipeline.model.spec import build_network

OKTAY, ALIGNED = "attention_unet_oktay", "attention_unet"
NARROW = {"features": (4, 6, 8, 10)}
SIZE = (16, 8, 16)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def open_gates(network):
    """Give every gate the score 100, whose sigmoid is 1 in single precision."""
    for gate in network.gates.values() if isinstance(network.gates, nn.ModuleDict) else network.gates:
        last = list(gate.psi.children())[-1] if isinstance(gate.psi, nn.Sequential) else gate.psi
        last.weight.zero_()
        last.bias.fill_(100.0)


@pytest.mark.parametrize(
    ("name", "dims", "channels", "options", "parameters"),
    [
        (OKTAY, 3, (1, 4), {}, 6_214_151),
        (OKTAY, 3, (1, 4), {"gates": False}, 5_888_004),
        (OKTAY, 3, (1, 4), {"deep_supervision": True}, 6_214_151),
        (ALIGNED, 2, (3, 2), {}, 34_878_638),
        (ALIGNED, 3, (3, 2), {}, 103_891_502),
        (ALIGNED, 2, (3, 2), {"gates": False}, 34_527_106),
    ],
)
def test_parameters_are_those_of_the_published_code(name, dims, channels, options, parameters):
    with torch.device("meta"):
        network = build_network(name, dims, *channels, **options)
    assert count_parameters(network) == parameters


def test_grid_gate_by_hand():
    gate = grid_gate(1, 1, (2, 2), Style(2, norm="none"))
    assert gate.theta.bias is None
    weights = {"theta": 0.25, "phi": 2.0, "psi": 2.0, "output.project.conv": 3.0, "output.combine.conv": 1.0}
    biases = {"phi": -3.0, "psi": -3.0, "output.project.conv": 1.0, "output.combine.conv": -3.0}
    with torch.no_grad():
        for name, value in weights.items():
            gate.get_submodule(name).weight.fill_(value)
        for name, value in biases.items():
            gate.get_submodule(name).bias.fill_(value)
    skip, gating = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.ones(1, 1, 1, 1)
    # The mean 2.5 and the signal 2 - 3 give 1.5, the score 2 * 1.5 - 3 is 0, and so α is 1/2.
    assert gate.attention(skip, gating).tolist() == [[[[0.5, 0.5], [0.5, 0.5]]]]
    assert gate(skip, gating).tolist() == [[[[0.0, 1.0], [2.5, 4.0]]]]  # relu(3 * x / 2 + 1 - 3)


def test_aligned_gate_by_hand():
    gate = aligned_gate(2, 1, Style(2, norm="none"))
    with torch.no_grad():
        gate.theta.conv.weight.copy_(torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
        gate.phi.conv.weight.fill_(1.0)
        gate.psi.conv.weight.fill_(torch.tensor(3.0).log())
        for part in (gate.theta, gate.phi, gate.psi):
            part.conv.bias.zero_()
    skip = torch.tensor([[5.0, 2.0], [3.0, 2.0]]).reshape(1, 2, 1, 2)
    gating = torch.tensor([-1.0, 0.0]).reshape(1, 1, 1, 2)
    # relu(5 - 3 - 1) = 1 scores log 3, whose sigmoid is 3/4; relu(2 - 2 + 0) = 0 scores 0.
    torch.testing.assert_close(gate(skip, gating), torch.tensor([[3.75, 1.0], [2.25, 1.0]]).reshape(1, 2, 1, 2))


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_attention_lies_between_0_and_1(norm):
    style = Style(3, norm=norm)
    skip, gating = noise(2, 4, 2, 8, 4), noise(2, 6, 2, 4, 2, seed=2)
    published = grid_gate(4, 6, (1, 2, 2), style).attention(skip, gating)
    variant = aligned_gate(4, 6, style).attention(skip, noise(2, 6, 2, 8, 4))
    for alpha in (published, variant):
        assert alpha.shape == (2, 1, 2, 8, 4)
        assert 0 < alpha.min() < alpha.max() < 1


def test_attention_is_interpolated_linearly():
    gate = grid_gate(1, 1, (2, 2), Style(2, norm="none"))
    with torch.no_grad():
        gate.theta.weight.fill_(0.25)
        for part in (gate.phi, gate.psi):
            part.weight.fill_(1.0)
            part.bias.zero_()
    skip, gating = torch.zeros(1, 1, 2, 4), torch.tensor([0.0, 3.0]).reshape(1, 1, 1, 2)
    low, high = 0.5, torch.tensor(3.0).sigmoid().item()
    row = [low, low + 0.25 * (high - low), low + 0.75 * (high - low), high]
    torch.testing.assert_close(gate.attention(skip, gating), torch.tensor([[[row, row]]]))


def test_an_open_published_gate_is_what_follows_it():
    gate = grid_gate(4, 6, (2, 2, 2), Style(3))
    nn.init.zeros_(gate.psi.weight)
    nn.init.constant_(gate.psi.bias, 100.0)
    skip = noise(2, 4, 4, 4, 4)
    assert torch.equal(gate.eval()(skip, noise(2, 6, 2, 2, 2)), gate.output(skip))


@pytest.mark.parametrize(("dims", "norm"), [(2, "batch"), (3, "none")])
def test_open_gates_make_a_unet(dims, norm):
    gated = build_network(ALIGNED, dims, 2, 3, seed=0, norm=norm, **NARROW).eval()
    plain = build_network("unet_upconv", dims, 2, 3, norm=norm, **NARROW).eval()
    plain.load_state_dict({key: value for key, value in gated.state_dict().items() if not key.startswith("gates.")})
    x = noise(1, 2, *SIZE[:dims])
    with torch.no_grad():
        assert not torch.allclose(gated(x), plain(x))
        open_gates(gated)
        assert torch.equal(gated(x), plain(x))


def test_open_published_gates_make_the_network_without_gates():
    gated = build_network(OKTAY, 3, 1, 2, seed=0, norm="none", **NARROW)
    plain = build_network(OKTAY, 3, 1, 2, norm="none", gates=False, **NARROW)
    state = gated.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    x = noise(1, 1, *SIZE)
    with torch.no_grad():
        assert not torch.allclose(gated(x), plain(x))
        open_gates(gated)
        for gate in gated.gates.values():  # skip connections are not negative, so a ReLU keeps them
            nn.init.dirac_(gate.output.project.conv.weight)
            nn.init.dirac_(gate.output.combine.conv.weight)
        assert torch.equal(gated(x), plain(x))


def test_gates_are_where_the_papers_are():
    with torch.device("meta"):
        published, variant = build_network(OKTAY, 3, 1, 2), build_network(ALIGNED, 2, 1, 2)
    assert list(published.gates) == ["level1", "level2", "level3"]
    assert [gate.phi.in_channels for gate in published.gates.values()] == [64, 128, 256]
    assert [gate.psi.conv.in_channels for gate in variant.gates] == [32, 64, 128, 256]


@pytest.mark.parametrize("name", [OKTAY, ALIGNED])
@pytest.mark.parametrize("options", [{}, {"deep_supervision": True}, {"gates": False, "down": "stride"}])
def test_gradients_reach_every_parameter(name, options):
    network = build_network(name, 3, 1, 2, seed=0, activation="prelu", **NARROW, **options)
    assert silent_parameters(network, noise(2, 1, 8, 8, 16)) == []


@pytest.mark.parametrize("name", [OKTAY, ALIGNED])
def test_a_batch_is_its_cases(name):
    network = build_network(name, 3, 2, 3, seed=0, **NARROW).eval()
    x = noise(2, 2, *SIZE)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(x[:1]), network(x[1:])])
    assert together.shape == (2, 3, *SIZE)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_published_heads_are_combined_at_full_size():
    network = build_network(OKTAY, 3, 1, 2, seed=0, norm="none", deep_supervision=True, **NARROW)
    x = noise(1, 1, *SIZE)
    heads = network(x)
    assert list(heads) == ["final", "level0", "level1", "level2"]
    assert {tuple(logits.shape) for logits in heads.values()} == {(1, 2, *SIZE)}
    final, *levels = heads.values()
    assert torch.equal(network.final(torch.cat(levels, dim=1)), final)
    assert torch.equal(network.eval()(x), final)


def test_the_variant_has_heads_at_all_levels_but_the_lowest():
    network = build_network(ALIGNED, 2, 1, 2, seed=0, norm="none", deep_supervision=True, **NARROW)
    x = noise(1, 1, 16, 8)
    heads = network(x)
    assert {key: tuple(logits.shape) for key, logits in heads.items()} == {
        "level0": (1, 2, 16, 8),
        "level1": (1, 2, 8, 4),
    }
    assert torch.equal(network.eval()(x), heads["level0"])


@pytest.mark.parametrize("name", [OKTAY, ALIGNED])
@pytest.mark.parametrize("up", ["nearest", "linear"])
def test_anisotropic_stages(name, up):
    strides, kernels = [1, [1, 2, 2], [2, 2, 2], [1, 2, 1]], [[1, 3, 3], [1, 3, 3], 3, 3]
    network = build_network(name, 3, 1, 2, strides=strides, kernel_sizes=kernels, up=up, norm="instance", **NARROW)
    assert network.divisor == (2, 8, 4)
    assert network(torch.zeros(1, 1, 2, 16, 4)).shape == (1, 2, 2, 16, 4)


def test_sizes_are_multiples_of_the_strides():
    with torch.device("meta"):
        network = build_network(OKTAY, 3, 1, 4)
        assert network.divisor == (16, 16, 16)
        assert network.legal_size((30, 16, 1)) == (32, 16, 16)
        with pytest.raises(DataError, match="axis 1 is 40, nearest legal 32 and 48"):
            network(torch.zeros(1, 1, 32, 40, 32))


def test_published_gates_need_a_level_between_top_and_bottom():
    with pytest.raises(ConfigError, match="features"):
        build_network(OKTAY, 3, 1, 2, features=(4, 8))
