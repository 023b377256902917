from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.core.labels import LabelTable
from pipeline.infer import labelling
from pipeline.infer.labelling import PlaneLabels, PlaneLogits, decode, winners
from pipeline.preprocess.interpolation import resample

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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("classes", [1, 9, 33])
def test_winners_are_the_highest_logits_and_of_ties_the_lowest_class(threads, classes, monkeypatch):
    monkeypatch.setattr(labelling, "_ALONE", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    # Few different numbers, so that there are ties in nearly every voxel.
    logits = torch.randint(3, (5, 7, classes), generator=torch.Generator().manual_seed(0)).float()
    expected = [[row.index(max(row)) for row in plane] for plane in logits.tolist()]
    with ThreadPoolExecutor(threads) as pool:
        assert winners(logits, pool).tolist() == expected


# Between voxels: blocks of any size, voxels one by one, and both beside each other give the same labels.


@pytest.mark.parametrize("few", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("block", [1, 1000, 2**19])
@pytest.mark.parametrize("target", [(10, 13, 25), (12, 4, 30), (7, 9, 20), (14, 9, 3), (7, 1, 11), (3, 50, 50)])
def test_blocks_and_single_voxels_give_the_winners_of_resampled_logits(target, block, few, monkeypatch):
    monkeypatch.setattr(labelling, "_BLOCK", block)
    monkeypatch.setattr(labelling, "_FEW_SINGLE", few)
    # Noise beside a part where one class wins: some blocks are unsure, others are not.
    logits = torch.randn(20, 7, 9, 11, generator=torch.Generator().manual_seed(3))
    logits[4, :, 5:] += 20
    labels, planes = PlaneLabels((7, 9, 11), target), logits.movedim(0, -1).contiguous()
    found = torch.cat([part for first in range(0, 7, 3) for _, part in labels.add(planes[first : first + 3])])
    assert torch.equal(found.long(), torch.as_tensor(resample(logits, target, 1)).argmax(0))


def test_logits_in_double_precision_are_decided_in_it():
    planes = torch.zeros(2, 1, 1, 9, dtype=torch.float64)
    planes[0, ..., 2], planes[1, ..., 7] = 1.0, 1.0 + 1e-12  # the middle between them belongs to class 7, just so
    (_, found), *_ = PlaneLabels((2, 1, 1), (3, 1, 1)).add(planes)
    assert found.flatten().tolist() == [2, 7, 7]


@pytest.mark.parametrize("orders", [(0, 1, 1), (1, 0, 1), (0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("target", [(9, 11, 5), (4, 3, 9)])
@pytest.mark.parametrize("classes", [3, 12])
def test_logits_of_the_nearest_voxel_along_some_axes(orders, target, classes):
    shape = (6, 7, 5)
    logits = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(1))
    expected = resample(logits, target, orders)
    labels, soft = PlaneLabels(shape, target, (), orders), PlaneLogits(shape, target, orders)
    planes = logits.permute(1, 2, 3, 0)
    found, given = torch.empty(target, dtype=torch.uint8), torch.empty((*target, classes))
    for first in range(0, shape[0], 2):
        for start, part in labels.add(planes[first : first + 2]):
            found[start : start + len(part)] = part
        for start, part in soft.add(planes[first : first + 2]):
            given[start : start + len(part)] = part
    torch.testing.assert_close(given.permute(3, 0, 1, 2), expected)
    assert torch.equal(found.long(), expected.argmax(dim=0))
