import pytest

from pipeline.core import ConfigError
from pipeline.model.options import Stage
from pipeline.model.sizes import SizeRule
from pipeline.model.valid_sizes import head_margins, valid_size_rule


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
