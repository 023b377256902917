import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.core.labels import LabelTable
from pipeline.evaluate.overlap import overlaps

TABLE = LabelTable({1: "a", 2: "b", 3: "c"})
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 3))] * 2))


def scores(reference, prediction):
    return [(str(found.dice), str(found.iou)) for found in overlaps(reference, prediction, TABLE)]


@settings(max_examples=60)
@given(PAIRS)
def test_dice_is_symmetric_and_bounded(pair):
    assert scores(*pair) == scores(*pair[::-1])
    for found in overlaps(*pair, TABLE):
        assert found.status == "true_negative" or 0 <= found.iou <= found.dice <= 1


@settings(max_examples=60)
@given(PAIRS, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_dice_does_not_depend_on_the_axes(pair, order, flips):
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    assert scores(*pair) == scores(*(array[steps].transpose(order) for array in pair))


@settings(max_examples=60)
@given(PAIRS, st.permutations([1, 2, 3]))
def test_dice_does_not_depend_on_the_numbering(pair, order):
    renumber = np.array([0, *order], dtype=np.uint8)
    expected, got = scores(*pair), scores(*(renumber[array] for array in pair))
    assert [got[new - 1] for new in order] == expected


@settings(max_examples=30)
@given(PAIRS)
def test_dice_of_itself_is_1_where_there_is_anything(pair):
    for found in overlaps(pair[0], pair[0], TABLE):
        assert (found.status, found.dice) == ("scored", 1.0) or found.status == "true_negative"
