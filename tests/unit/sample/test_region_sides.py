import torch

from pipeline.core.labels import LabelTable
from pipeline.sample.spatial import swap_sides

TABLE = LabelTable(
    {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"},
    9,
    {"lung_left": (1, 2), "lung_right": (3, 4, 5), "nodule": (2, 4)},
    (1, 3, 2),
)


def test_mirroring_turns_every_region_into_its_twin() -> None:
    labels = torch.tensor([[-1, 0, 1, 2], [3, 4, 5, 0]])
    mirrored = swap_sides(labels.flip(1), TABLE.side_pairs())
    left, right, nodule = (torch.isin(labels, torch.tensor(held)) for held in TABLE.region_classes())
    new_left, new_right, new_nodule = (torch.isin(mirrored, torch.tensor(held)) for held in TABLE.region_classes())
    assert torch.equal(new_left, right.flip(1))
    assert torch.equal(new_right, left.flip(1))
    assert torch.equal(new_nodule, nodule.flip(1))
    assert torch.equal(mirrored == -1, (labels == -1).flip(1))
