"""Where it is worth looking: boxes and masks computed by hand."""

import numpy as np
import pytest
import torch

from pipeline.core.box import Box
from pipeline.infer.roi import SearchRegion, body_mask, coarse_shape, organ_box


def test_what_differs_from_the_background_in_some_channel_is_body():
    image = torch.zeros(2, 4, 4, 4)
    image[0] = -1.5
    image[0, 1, 2, 3] = -1.4
    image[1, 0, 0, 0] = 7.0
    assert body_mask(image).nonzero().tolist() == [[0, 0, 0], [1, 2, 3]]
    assert not body_mask(torch.full((1, 3, 3, 3), 9.0)).any()


def test_the_box_of_coarse_organs_holds_all_of_their_voxels():
    labels = torch.zeros(5, 4, 3, dtype=torch.uint8)
    labels[1:3, 2:4, 1:3] = 2
    # Half the voxels: 1 to 3 are 2 to 6; of 7 fine voxels along the second axis 2 to 4 are 3.5 to 7.
    assert organ_box(labels, (10, 7, 6)) == Box((2, 3, 2), (6, 7, 6))
    assert organ_box(torch.zeros(5, 4, 3), (10, 7, 6)) is None
    labels[...] = 0
    labels[0, 0, 0] = 1
    assert organ_box(labels, (10, 7, 6)) is None  # a voxel alone is noise


def test_coarse_grids_have_half_the_voxels():
    assert coarse_shape((100, 33, 1)) == (50, 16, 1)


def test_margins_end_where_the_image_does():
    assert Box((5, 1, 0), (8, 9, 3)).grown((2, 2, 4), (10, 10, 10)) == Box((3, 0, 0), (10, 10, 7))


@pytest.mark.parametrize(
    ("box", "shape", "target", "expected"),
    [
        (((2,), (6,)), (10,), (10,), ((2,), (6,))),
        (((2,), (6,)), (10,), (20,), ((5,), (11,))),  # centres 2.25 to 4.75: those of 4 and 11 lie at 1.75 and 5.25
        (((0,), (10,)), (10,), (20,), ((0,), (20,))),
        (((2,), (6,)), (10,), (5,), ((1,), (3,))),  # centres 2.5 and 4.5
    ],
)
def test_on_another_grid_interpolation_stays_inside_the_box(box, shape, target, expected):
    assert Box(*box).resized(shape, target) == Box(*expected)


def test_faces_count_where_the_image_goes_on():
    labels = np.zeros((6, 6, 6), np.uint8)
    box = Box((0, 2, 2), (4, 6, 5))
    labels[0, 5, 3] = 1  # on faces where the image ends
    labels[5, 1, 1] = 1  # outside
    assert not box.touches(labels)
    for place in ((3, 4, 3), (1, 2, 3), (1, 3, 2), (1, 3, 4)):
        labels[place] = 1
        assert box.touches(labels)
        labels[place] = 0


def test_a_region_as_json():
    box = Box((1, 2, 3), (4, 5, 6))
    assert SearchRegion("organs", 8, 6, box).to_json() == {
        "looked_at": "organs",
        "windows": 8,
        "skipped": 0.75,
        "box": [[1, 2, 3], [4, 5, 6]],
        "why": None,
    }
