import pytest
import torch

from pipeline.core import DataError
from pipeline.model.sizes import SizeRule, pad_to_rule, size_rule


def test_rule_of_strides_multiplies_them_per_axis():
    rule = size_rule([(1, 1, 1), (1, 2, 2), (2, 2, 2)])
    assert rule.step == rule.smallest == (2, 4, 4)
    assert rule.is_legal((2, 4, 12))
    assert not rule.is_legal((3, 4, 12))
    assert rule.legal_size((3, 4, 13)) == (4, 4, 16)
    assert rule.legal_size((1, 1, 1)) == (2, 4, 4)


def test_rule_with_an_offset():
    rule = SizeRule(step=(16, 16), smallest=(188, 188))
    assert rule.is_legal((572, 188))
    assert rule.legal_size((100, 189)) == (188, 204)
    with pytest.raises(DataError, match=r"expected \(188, 188\) plus multiples of \(16, 16\), got \(100, 190\)"):
        rule.require((100, 190))


def test_lone_cell_is_widened_along_the_last_axis():
    rule = size_rule([(1, 1), (2, 2)], lone_cell=False)
    assert rule.legal_size((1, 2)) == (2, 4)
    assert rule.is_legal((2, 4))
    assert rule.is_legal((4, 2))
    with pytest.raises(DataError, match="a single voxel would be left at the lowest resolution"):
        rule.require((2, 2))


def test_message_names_axes_and_nearest_sizes():
    with pytest.raises(DataError) as caught:
        size_rule([(1, 1, 1), (4, 4, 4)]).require((3, 8, 10))
    assert str(caught.value) == (
        "input size: expected multiples of (4, 4, 4), got (3, 8, 10) (axis 0 is 3, nearest legal 4; "
        "axis 2 is 10, nearest legal 8 and 12). Pad to (4, 8, 12), as forward_any_size does, or crop."
    )


@pytest.mark.parametrize("size", [(4,), (4, 4, 4), (0, 4)])
def test_legal_size_refuses_what_is_no_size(size):
    with pytest.raises(DataError, match="expected 2 numbers of at least 1"):
        size_rule([(1, 1), (2, 2)]).legal_size(size)


def test_padding_repeats_the_border_and_is_undone_by_the_crop():
    x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    padded, crop = pad_to_rule(x, SizeRule((2, 8), (2, 8)))
    row = [1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    assert padded[0, 0].tolist() == [row, row]
    assert crop == (slice(0, 1), slice(2, 5))
    assert torch.equal(padded[(..., *crop)], x)


def test_padding_in_3d_and_half_precision():
    x = torch.arange(30.0, dtype=torch.bfloat16).reshape(1, 1, 2, 3, 5)
    padded, crop = pad_to_rule(x, SizeRule((4, 4, 4), (4, 4, 4)))
    assert padded.shape == (1, 1, 4, 4, 8)
    assert torch.equal(padded[(..., *crop)], x)


def test_legal_batch_is_untouched():
    x = torch.zeros(1, 1, 4, 8)
    padded, crop = pad_to_rule(x, SizeRule((4, 4), (4, 4)))
    assert padded is x
    assert crop == (slice(0, 4), slice(0, 8))
