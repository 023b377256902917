"""Coarse to fine: windows where the organs are, and everywhere where the coarse pass may be wrong."""

import numpy as np
import pytest
import torch
from members import member_of, plan_of
from torch import nn

from pipeline.core.box import Box
from pipeline.core.grid import Grid, reorient_array
from pipeline.core.volume import Image
from pipeline.infer.coarse_to_fine import SearchRegion, body_mask, coarse_shape, organ_box
from pipeline.stages.predict import Predictor


class _Bright(nn.Module):
    """Organ 1 where the neighbourhood is bright; how much a window sees of it matters at its border."""

    def __init__(self, width=3, threshold=0.5):
        super().__init__()
        self.width, self.threshold, self.calls = width, threshold, []

    def forward(self, windows):
        self.calls.append(len(windows))
        mean = nn.functional.avg_pool3d(windows, self.width, 1, self.width // 2)
        return torch.cat([torch.zeros_like(mean), mean - self.threshold], 1)


def _scan(*bright, shape=(48, 40, 44), orientation="LPI"):
    """Noise with bright boxes, in RAS order, on voxels of 1 x 2 x 2 mm."""
    array = np.random.default_rng(0).uniform(0.0, 0.2, (1, *shape)).astype(np.float32) + 0.01
    for box in bright:
        array[(0, *box)] += 1.0
    return Image(array, Grid.from_spacing(shape, (1.0, 2.0, 2.0))).reoriented(orientation)


ORGAN = (slice(12, 28), slice(6, 14), slice(8, 16))


def _predicted(image, network=None, **infer):
    model = member_of(network or _Bright(), 2, batch_size=1, **infer)
    return Predictor([model]).predict_with_region(image, "case")


def test_windows_cover_the_box_and_what_is_around_it_is_background():
    image, calls = _scan(ORGAN), _Bright(width=1)  # each voxel by itself: where its windows lie makes no difference
    whole, none = _predicted(image, _Bright(width=1))
    found, region = _predicted(image, calls, roi="organs", roi_margin_mm=8.0)
    assert none is None
    assert region.kind == "organs"
    assert region.why is None
    # 24 x 40 x 44 voxels of 2 mm; the organ is at 6 to 14 in all axes, as coarse voxels 3 to 7, the margin is 4 voxels.
    assert region.box == Box((2, 2, 4), (18, 18, 20))
    assert region.windows == 5 * 9 * 10
    assert region.skipped == 450 - 3**3  # windows of 8 voxels begin at 0, 4 and 8 of the 16 of the box
    assert sum(calls.calls) == 27 + 2 * 3 * 4  # the coarse grid has 12 x 20 x 22 voxels
    np.testing.assert_array_equal(found.array, whole.array)
    assert np.count_nonzero(found.array) > 800


def test_outside_the_box_is_background():
    # The second spot is too small for the coarse pass, where it melts into its neighbourhood.
    image = _scan(ORGAN, (slice(36, 40), slice(30, 32), slice(36, 38)))
    network = _Bright(threshold=0.3)
    whole, _ = _predicted(image, network)
    found, region = _predicted(image, network, roi="organs", roi_margin_mm=8.0)
    assert region.kind == "organs"
    both = [reorient_array(mask.array, "LPI", "RAS") for mask in (whole, found)]
    assert both[0][34:, 28:, 34:].any()
    assert not both[1][34:, 28:, 34:].any()
    near = [mask[:34, :28, :34] for mask in both]
    assert np.count_nonzero(near[0] != near[1]) < 0.01 * np.count_nonzero(near[0])  # other windows, other borders


@pytest.mark.parametrize(
    ("bright", "why"),
    [((), "the coarse pass found no organ"), ((slice(4, 40), slice(8, 14), slice(8, 12)), "reaches the end")],
)
def test_where_the_coarse_pass_may_be_wrong_everything_is_looked_at(bright, why, monkeypatch):
    image = _scan(bright) if bright else _scan()
    if bright:  # the coarse pass sees a part alone
        monkeypatch.setattr(
            "pipeline.infer.coarse_to_fine.organ_box", lambda labels, shape: Box((6, 8, 8), (12, 14, 12))
        )
    whole, _ = _predicted(image)
    found, region = _predicted(image, roi="organs", roi_margin_mm=2.0)
    assert region.kind == "none"
    assert why in region.why
    assert region.skipped == 0
    np.testing.assert_array_equal(found.array, whole.array)


def test_windows_of_background_alone_are_left_out():
    image = _scan(ORGAN)
    turned = reorient_array(image.array[0], "LPI", "RAS")
    turned[30:], turned[:, 22:] = -5.0, -5.0  # air
    network = _Bright()
    whole, _ = _predicted(image, network)
    found, region = _predicted(image, network, roi="body")
    assert (region.kind, region.box, region.why) == ("body", None, None)
    # Body voxels end at 15 of 24 and 22 of 40 (and one more by interpolation).
    assert region.skipped == 450 - 4 * 6 * 10
    assert sum(network.calls) == 450 + 240
    np.testing.assert_array_equal(found.array, whole.array)


@pytest.mark.parametrize(("shape", "kind"), [((48, 40, 44), "organs"), ((20, 10, 10), "body")])
def test_auto_looks_for_organs_where_that_costs_little(shape, kind):
    place = tuple(slice(n // 3, 2 * n // 3) for n in shape)
    _, region = _predicted(_scan(place, shape=shape), roi="auto", roi_margin_mm=12.0)
    assert region.kind == kind


def test_an_ensemble_looks_at_everything():
    image = _scan(ORGAN)
    members = [member_of(_Bright(), 2, plan_of(2), roi="organs") for _ in range(2)]
    found, region = Predictor(members).predict_with_region(image, "case")
    assert region is None
    assert found.array.any()


# Where it is worth looking: boxes and masks computed by hand.


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
