import numpy as np
import pytest
import torch
from members import member_of, plan_of
from restoring import restore_labels
from torch import nn

from pipeline.core.grid import ORIENTATIONS, Box, Grid, reorient_array
from pipeline.core.volume import Image
from pipeline.infer.labelling import PlaneLogits, decode
from pipeline.infer.segment import SearchRegion, body_mask, coarse_shape, organ_box
from pipeline.infer.segment import restore_average as put_average_back
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.interpolation import resample
from pipeline.stages.predict import Predictor


def _one_hot(index, classes):
    return torch.nn.functional.one_hot(torch.from_numpy(index.astype(np.int64)), classes).movedim(-1, 0).float()


def _trace(source, orientation="RAS", start=(0, 0, 0), stop=None, shape=None):
    reoriented = source.reoriented(orientation)
    stop = stop or reoriented.shape
    crop = reoriented.cropped(start, stop)
    return GridHistory(source, orientation, start, stop, crop.resized(shape or crop.shape))


def restore_average(parts, planes=2, axis=0, painting=()):
    """The same for several models."""

    def rows(logits, trace):
        values = logits.movedim(0, -1).movedim(axis, 0)
        order = [axis, *(other for other in range(3) if other != axis)]
        slabs = PlaneLogits(*([shape[n] for n in order] for shape in (logits.shape[1:], trace.cropped.shape)))
        for first in range(0, len(values), planes):
            yield from slabs.add(values[first : first + planes])

    return put_average_back([(rows(logits, trace), trace) for logits, trace in parts], axis, painting=painting)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_label_maps_come_back_from_all_48_orientations(orientation):
    source = Grid.from_spacing((5, 7, 6), (1.0, 2.0, 3.0), orientation)
    label = np.random.default_rng(0).integers(0, 4, source.shape).astype(np.uint8)
    trace = _trace(source, "RAS", (1, 0, 2), tuple(n - 1 for n in source.reoriented("RAS").shape))
    box = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
    prepared = reorient_array(label, orientation, "RAS")[box]
    restored = restore_labels(_one_hot(prepared, 4), trace)
    outside = np.ones(source.shape, dtype=bool)
    reorient_array(outside, orientation, "RAS")[box] = False
    assert restored.shape == source.shape
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored[~outside], label[~outside])
    assert not restored[outside].any()


def test_linear_logits_meet_half_way_between_the_voxels():
    # Two prepared voxels, eight restored ones: the border between class 1 and 2 lies in the middle.
    trace = _trace(Grid((8, 1, 1), np.eye(4)), shape=(2, 1, 1))
    logits = np.array([[0.0, 0.0], [4.0, -2.0], [1.0, 7.0]], dtype=np.float32).reshape(3, 2, 1, 1)
    # Class 1 falls from 4 to -2 and class 2 rises from 1 to 7; they cross a quarter of the way: between voxels 2 and 3.
    assert restore_labels(logits, trace).ravel().tolist() == [1, 1, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("shape", [(4, 9, 5), (20, 6, 8), (10, 3, 8), (10, 12, 3)])
@pytest.mark.parametrize("planes", [1, 4, 99])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_give_what_one_piece_gives(shape, planes, axis):
    source = Grid.from_spacing((14, 12, 12), (1, 1, 1), "ILP")
    trace = _trace(source, "RAS", (1, 0, 3), (11, 12, 11), shape)
    logits = np.random.default_rng(1).normal(size=(5, *shape)).astype(np.float32)
    whole = resample(logits, (10, 12, 8), 1)
    expected = np.zeros(trace.reoriented.shape, dtype=np.uint8)
    expected[1:11, 0:12, 3:11] = np.asarray(whole).argmax(axis=0)
    restored = restore_labels(logits, trace, planes, axis)
    np.testing.assert_array_equal(restored, reorient_array(expected, "RAS", "ILP"))


def test_ties_go_to_the_lower_class_and_many_classes_need_16_bits():
    grid = Grid((2, 2, 2), np.eye(4))
    assert not restore_labels(torch.ones(3, 2, 2, 2), _trace(grid)).any()
    logits = torch.zeros(300, 2, 2, 2)
    logits[299] = 1.0
    restored = restore_labels(logits, _trace(grid))
    assert restored.dtype == np.uint16
    assert (restored == 299).all()
    assert restore_labels(logits[:256], _trace(grid)).dtype == np.uint8


def test_regions_are_resampled_before_they_are_painted():
    # Disc falls from 4 to -2 over eight voxels, cup rises from -3 to 1: they cross 0 at 2/3 and 3/4 of the way.
    trace = _trace(Grid((8, 1, 1), np.eye(4)), shape=(2, 1, 1))
    logits = np.array([[4.0, -2.0], [-3.0, 1.0]], dtype=np.float32).reshape(2, 2, 1, 1)
    painting = (((0,), 1), ((1,), 2))
    for planes in (1, 2):
        restored = restore_labels(logits, trace, planes, painting=painting)
        assert restored.ravel().tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
    assert restored.dtype == np.uint8
    many = restore_labels(logits, trace, painting=(((0,), 300), ((1,), 2)))
    assert many.dtype == np.uint16  # one channel per region, yet many classes
    assert many.ravel().tolist() == [300] * 5 + [2] * 3


def test_result_is_contiguous_and_the_logits_stay_as_they_are():
    source = Grid.from_spacing((3, 4, 5), (1, 1, 1), "SPL")
    trace = _trace(source, shape=(9, 5, 2))
    logits = torch.randn(2, 9, 5, 2, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    assert restore_labels(logits, trace).flags.c_contiguous
    assert torch.equal(logits, before)


def test_autocast_does_not_touch_the_logits():
    trace = _trace(Grid((9, 9, 9), np.eye(4)), shape=(5, 5, 5))
    logits = torch.randn(4, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = restore_labels(logits, trace)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(restore_labels(logits, trace), expected)


def test_inference_tensors_are_taken():
    with torch.inference_mode():
        logits = torch.zeros(2, 3, 3, 3)
        logits[1, 1] = 1.0
    restored = restore_labels(logits, _trace(Grid((3, 3, 3), np.eye(4))))
    assert restored[1].all()
    assert restored.sum() == 9


def test_logits_that_are_not_finite_are_refused():
    trace = _trace(Grid((4, 4, 4), np.eye(4)))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="logits: expected finite numbers"):
            restore_labels(torch.full((2, 4, 4, 4), bad), trace)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_logits_on_a_gpu_give_the_labels_of_the_cpu():
    trace = _trace(Grid.from_spacing((70, 21, 30), (1, 1, 1), "LPS"), shape=(20, 30, 13))
    logits = torch.randn(4, 20, 30, 13, generator=torch.Generator().manual_seed(0))
    differ = restore_labels(logits.cuda(), trace) != restore_labels(logits, trace)
    assert differ.mean() < 1e-4  # rounding may decide near ties


def _mean_probabilities(parts, shape, regions=False):
    """The plain way: everything at full size, in the orientation of the traces."""
    total = 0
    for logits, trace in parts:
        box = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
        whole = torch.zeros((len(logits), *shape))
        whole[0] = 0 if regions else 1
        sized = torch.as_tensor(np.asarray(resample(logits, trace.cropped.shape, 1)))
        whole[(slice(None), *box)] = torch.sigmoid(sized) if regions else torch.softmax(sized, 0)
        total = total + whole / len(parts)
    return total


@pytest.mark.parametrize(("planes", "axis"), [(1, 0), (3, 1), (99, 2)])
@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_of_models_on_other_grids_are_averaged_on_the_source(planes, axis, regions):
    source = Grid.from_spacing((14, 12, 10), (1, 1, 2), "ILP")
    generator = torch.Generator().manual_seed(0)
    shape = source.reoriented("RAS").shape
    parts = []
    for start, stop, prepared in (((1, 0, 3), (11, 10, 12), (5, 9, 4)), ((0, 0, 0), shape, (20, 6, 8))):
        trace = _trace(source, "RAS", start, stop, prepared)
        parts.append((3 * torch.randn((3, *prepared), generator=generator), trace))
    mean = _mean_probabilities(parts, shape, regions)
    painting = (((0,), 1), ((1,), 2), ((0, 2), 3)) if regions else ()
    expected = decode(mean - 0.5, painting) if regions else mean.argmax(0)
    found = restore_average(parts, planes, axis, painting)
    np.testing.assert_array_equal(reorient_array(found, "ILP", "RAS"), expected.numpy())
    assert (found.shape, found.dtype) == (source.shape, np.uint8)
    assert len(np.unique(found)) > 2


def test_a_sure_model_outvotes_an_unsure_one_whatever_the_scale_of_its_logits():
    trace = _trace(Grid((2, 1, 1), np.eye(4)))
    unsure = torch.tensor([[0.0, 0.0], [0.2, 0.2]]).reshape(2, 2, 1, 1)  # class 1 with 0.55
    sure = torch.tensor([[2.0, 100.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)  # class 0 with 0.88 and 1
    assert restore_average([(unsure, trace), (sure, trace)]).ravel().tolist() == [0, 0]
    shouting = 100 * unsure  # its logits would outvote any number of others, its probability of 1 does not
    less = torch.tensor([[2.0, 4.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    assert restore_average([(shouting, trace), (less, trace)]).ravel().tolist() == [1, 1]
    assert restore_average([(shouting, trace), (less, trace), (less, trace)]).ravel().tolist() == [0, 0]


def test_models_that_do_not_belong_together_are_refused():
    one = Grid((4, 4, 4), np.eye(4))
    logits = torch.zeros(2, 4, 4, 4)
    for other in (
        (logits, _trace(one, "LPS")),
        (torch.zeros(2, 5, 4, 4), _trace(Grid((5, 4, 4), np.eye(4)))),
    ):
        with pytest.raises(ValueError, match="models: expected one image, orientation and label table"):
            restore_average([(logits, _trace(one)), other])


# Coarse to fine: windows where the organs are, and everywhere where the coarse pass may be wrong.


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
        monkeypatch.setattr("pipeline.infer.segment.organ_box", lambda labels, shape: Box((6, 8, 8), (12, 14, 12)))
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
