import math

import pytest
import torch
from networks import silent_parameters
from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.base import start_outputs_at
from pipeline.model.cost import count_parameters
from pipeline.model.network_options import Stage
from pipeline.model.sizes import SizeRule
from pipeline.model.spec import build_network
from pipeline.model.unet import head_margins, valid_size_rule

PAPER = {"norm": "none", "bias": True}
UNETPP_BASELINE = {**PAPER, "features": (32, 64, 128, 256, 512)}
WIDE = {**PAPER, "features": (35, 70, 140, 280, 560)}
UPCONV = {"bias": True, "up": "nearest"}


@pytest.mark.parametrize(
    ("dims", "channels", "options", "parameters"),
    [
        (2, (3, 2), {}, 31_037_698),
        (2, (1, 2), PAPER, 31_030_658),
        (3, (1, 2), PAPER, 90_292_738),
        (2, (3, 2), UPCONV, 34_527_106),
        (3, (3, 2), UPCONV, 103_539_970),
        (2, (1, 1), UNETPP_BASELINE, 7_759_521),
        (3, (1, 1), UNETPP_BASELINE, 22_575_329),
        (2, (1, 1), WIDE, 9_282_246),
        (3, (1, 1), WIDE, 27_006_176),
    ],
)
def test_published_variants_have_their_parameters(dims, channels, options, parameters):
    with torch.device("meta"):
        network = build_network("unet", dims, *channels, **options)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("down", ["pool", "stride"])
@pytest.mark.parametrize("up", ["transposed", "nearest", "linear"])
def test_logits_have_the_size_of_the_input(dims, down, up):
    network = build_network("unet", dims, 2, 5, features=(4, 6, 8), down=down, up=up)
    assert network(torch.zeros(2, 2, *(4, 8, 12)[:dims])).shape == (2, 5, *(4, 8, 12)[:dims])


ANISOTROPIC = {
    "features": (4, 6, 8, 10),
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
}


@pytest.mark.parametrize("down", ["pool", "stride"])
def test_anisotropic_plan(down):
    network = build_network("unet", 3, 1, 3, deep_supervision=True, down=down, **ANISOTROPIC)
    assert network.divisor == (2, 8, 8)
    heads = network(torch.zeros(2, 1, 6, 16, 8))
    assert [tuple(logits.shape) for logits in heads.values()] == [(2, 3, 6, 16, 8), (2, 3, 6, 8, 4)]
    kernels = [tuple(stage.unit1.conv.kernel_size) for stage in network.encoder]
    assert kernels == [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(("dims", "block"), [(2, 2), (3, 2), (3, (1, 2, 2))])
def test_blocks_of_voxels_are_taken_as_one(dims, block, deep_supervision):
    options = {"features": (4, 6, 8, 10), "down": "stride", "deep_supervision": deep_supervision}
    network = build_network("unet", dims, 2, 5, block=block, **options)
    steps = (block,) * dims if isinstance(block, int) else block
    size = tuple(16 * n for n in (1, 2, 1)[:dims])
    assert network.divisor == tuple(8 * step for step in steps)
    assert tuple(network.encoder[0].unit1.conv.weight.shape[:2]) == (4, 2 * math.prod(steps))
    image = torch.randn(2, 2, *size)
    logits = network.eval()(image)
    assert logits.shape == (2, 5, *size)
    start_outputs_at(network, 0.1)
    assert torch.equal(network.heads[0].layer.bias, torch.full((5,), math.log(0.1 / 0.9)))
    heads = network.train()(image)
    if deep_supervision:
        coarse = (2, 5, *(n // (2 * step) for n, step in zip(size, steps, strict=True)))
        assert [tuple(each.shape) for each in heads.values()] == [(2, 5, *size), coarse]


def test_blocks_do_not_go_with_valid_convolutions():
    with pytest.raises(ConfigError, match="block: expected 1 where padding is valid, got 2"):
        build_network("unet", 3, 1, 2, block=2, padding="valid")
    with pytest.raises(ConfigError, match=r"block: expected one number or 2, got 3"):
        build_network("unet", 2, 1, 2, block=(1, 2, 2))


@pytest.mark.parametrize(("stages", "heads"), [(2, 1), (3, 1), (4, 2), (5, 3)])
def test_all_decoder_levels_but_the_lowest_have_a_head(stages, heads):
    network = build_network("unet", 2, 1, 2, deep_supervision=True, features=(4,) * stages)
    outputs = network(torch.zeros(2, 1, 32, 16))
    assert list(outputs) == [f"level{n}" for n in range(heads)]
    assert [tuple(logits.shape[2:]) for logits in outputs.values()] == [(32 >> n, 16 >> n) for n in range(heads)]


def test_evaluation_gives_the_finest_head_alone():
    network = build_network("unet", 2, 1, 2, seed=0, norm="none", deep_supervision=True, features=(4, 6, 8, 10))
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    finest, coarser = network(x).values()
    assert coarser.shape == (1, 2, 8, 8)
    logits = network.eval()(x)
    assert isinstance(logits, torch.Tensor)
    assert torch.equal(logits, finest)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("up", ["transposed", "linear"])
def test_gradients_reach_every_parameter(deep_supervision, up):
    network = build_network(
        "unet", 2, 1, 2, seed=0, up=up, deep_supervision=deep_supervision, features=(4, 4, 4, 4), activation="prelu"
    )
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    assert silent_parameters(network, x) == []


def test_convs_per_stage():
    network = build_network("unet", 2, 1, 2, features=(4, 8), convs_per_stage=3)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3 * 3 + 1


def test_dropout_acts_in_training_only():
    network = build_network("unet", 2, 1, 2, seed=0, norm="none", dropout=0.5, features=(4, 8))
    x = torch.ones(1, 1, 8, 8)
    torch.manual_seed(0)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_a_shift_by_the_divisor_shifts_the_logits():
    network = build_network("unet", 2, 1, 2, seed=0, norm="none", features=(4, 6, 8)).eval()
    x = torch.zeros(1, 1, 64, 64)
    x[..., 30:34, 30:34] = torch.arange(16.0).reshape(4, 4)
    with torch.no_grad():
        moved = network(x.roll((4, 8), dims=(2, 3)))
        expected = network(x).roll((4, 8), dims=(2, 3))
    torch.testing.assert_close(moved[..., 24:48, 24:48], expected[..., 24:48, 24:48], rtol=1e-5, atol=1e-5)


def test_per_axis_entries_must_fit_dims():
    with pytest.raises(ConfigError, match=r"strides\.1: expected one number or 2, got \(1, 2, 2\)"):
        build_network("unet", 2, 1, 2, features=(4, 8), strides=[1, [1, 2, 2]])


def levels(count, kernel=(3,), stride=(2,)):
    return [Stage(1, kernel, (1,) * len(kernel) if n == 0 else stride) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "step", "smallest", "border"),
    # Backwards from the bottom: 3 for two levels (3 → 6 → 2), 4 for more (4 → 8 → 4 → 8 → 4), or each level would end.
    [(2, 2, 18, 8), (3, 4, 44, 20), (4, 8, 92, 44), (5, 16, 188, 92)],
)
def test_rule_of_two_convolutions_and_pooling(count, step, smallest, border):
    assert valid_size_rule(levels(count)) == SizeRule((step,), (smallest,), border=(border,))


def test_rule_per_axis():
    stages = [Stage(1, (1, 3), (1, 1)), Stage(1, (3, 3), (1, 2)), Stage(1, (3, 3), (2, 2))]
    rule = valid_size_rule(stages, convs=1)
    # axis 0, kernels 1, 3, 3: bottom 2 → 4 - 2 = 2 → 2; up from the bottom 2 + 2 = 4, 8 + 2 = 10, 10
    # axis 1, kernels 3, 3, 3: bottom 3 → 6 - 2 = 4 → 8 - 2 = 6, but 2 → 2 → 2 is enough: 4, 8 + 2 = 10, 20 + 2 = 22
    assert rule == SizeRule((2, 4), (10, 22), border=(4, 10))


def test_convolutions_of_a_step_up_count():
    # bottom 4 → 8 - 2 - 4 = 2, input (4 + 4) * 2 + 4 = 20
    assert valid_size_rule(levels(2), up_convs=1) == SizeRule((2,), (20,), border=(9,))


def test_a_lone_value_is_not_legal():
    rule = valid_size_rule(levels(2, (1, 1), (2, 2)))
    assert rule == SizeRule((2, 2), (2, 2), lone_cell=False, border=(0, 0))
    assert rule.legal_size((1, 1)) == (2, 4)


def test_strided_convolutions_of_odd_stride_have_a_centre():
    # bottom 2 after two convolutions (4 before the second, 12 before the strided one), 16 at the input; 6 - 4 = 2
    assert valid_size_rule(levels(2, stride=(3,)), strided=True) == SizeRule((3,), (16,), border=(7,))


@pytest.mark.parametrize(("stride", "surplus"), [(2, 5), (4, 7)])
def test_strided_convolutions_of_even_stride_have_none(stride, surplus):
    with pytest.raises(ConfigError, match=f"padding valid at level 0: .* along axis 0 .*, got {surplus}"):
        valid_size_rule(levels(2, stride=(stride,)), strided=True)


def test_strides_larger_than_kernels_leave_skips_too_small():
    with pytest.raises(ConfigError, match="got -2"):
        valid_size_rule(levels(2, kernel=(1,), stride=(3,)), strided=True)


def test_reach_of_heads():
    assert head_margins(levels(5)) == [(0,), (2,), (6,), (14,)]
    assert head_margins(levels(3), convs=1, up_convs=1) == [(0,), (2,)]
    stages = [Stage(1, (1, 3), (1, 1)), Stage(1, (3, 3), (1, 2)), Stage(1, (3, 3), (2, 2)), Stage(1, (3, 3), (2, 2))]
    assert head_margins(stages) == [(0, 0), (0, 2), (2, 6)]
