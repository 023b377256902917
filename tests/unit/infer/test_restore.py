import numpy as np
import pytest
import torch
from restoring import restore_labels

from pipeline.core.grid import ORIENTATIONS, Grid, reorient_array
from pipeline.infer.labelling import PlaneLogits, decode
from pipeline.infer.restore import restore_average as put_average_back
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.resample import resample


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
