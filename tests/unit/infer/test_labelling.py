import pytest
import torch

from pipeline.core.labels import LabelTable
from pipeline.infer.labelling import decode

TUMOUR = LabelTable({1: "necrosis", 2: "edema", 3: "enhancing"}, None, {"whole": (1, 2, 3), "core": (1, 3), "et": (3,)})
CROSSING = LabelTable({1: "a", 2: "b", 3: "both"}, None, {"A": (1, 3), "B": (2, 3)})


def test_classes_go_to_the_highest_logit_and_ties_to_the_lower_class():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.5], [3.0, 0.0, 4.0]])
    assert decode(logits).tolist() == [1, 0, 2]


def test_regions_are_painted_in_order():
    #        nothing, whole, whole + core, all three, core alone, et alone
    logits = torch.tensor(
        [
            [-1.0, 2.0, 0.1, 5.0, -3.0, -1.0],
            [-2.0, -1.0, 0.1, 1.0, 4.0, -1.0],
            [-9.0, -0.5, -2.0, 0.5, -1.0, 0.01],
        ]
    )
    index = decode(logits, TUMOUR.painting())
    assert index.tolist() == [0, 2, 1, 3, 1, 3]
    assert TUMOUR.from_index(index.numpy()).tolist() == [0, 2, 1, 3, 1, 3]


def test_a_probability_of_exactly_one_half_is_not_there():
    logits = torch.tensor([[0.0, 1e-30, -1e-30]]).repeat(3, 1)
    assert decode(logits, TUMOUR.painting()).tolist() == [0, 3, 0]
    assert (torch.sigmoid(torch.tensor(0.0)) == 0.5).item()


def test_a_crossing_keeps_its_own_class():
    logits = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
    assert decode(logits, CROSSING.painting()).tolist() == [1, 2, 3]


@pytest.mark.parametrize("channels", [2, 4])
def test_logits_of_another_table_are_refused(channels):
    with pytest.raises(ValueError, match=f"logits: expected 3 channels, one per region, got {channels}"):
        decode(torch.zeros(channels, 2), TUMOUR.painting())
