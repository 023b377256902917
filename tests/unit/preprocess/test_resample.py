import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.data.volumes import read_image
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.resample import MOST_BYTES, Resampled, _boxes, _boxes_on_device, resample_labels


def _like_skimage(volume, shape, order, anti_aliasing=False):
    return resize(volume, shape, order, mode="edge", anti_aliasing=anti_aliasing, preserve_range=True)


def _slice_by_slice(volume, shape, axis):
    """nnU-Net's resampling of thick slices: cubic in plane, then the nearest slice."""
    flat = tuple(n for a, n in enumerate(shape) if a != axis)
    slices = np.moveaxis(volume, axis, 0)
    planes = np.stack([_like_skimage(plane, flat, 3) for plane in slices])
    where = len(slices) / shape[axis] * (np.arange(shape[axis]) + 0.5) - 0.5
    grid = np.meshgrid(where, *map(np.arange, flat), indexing="ij")
    return np.moveaxis(map_coordinates(planes, np.array(grid), order=0, mode="nearest"), 0, axis)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(20, 9, 33), (5, 13, 24), (12, 30, 1)])
def test_resample_equals_the_three_dimensional_spline(shape, order):
    volume = np.random.default_rng(0).random((12, 13, 24), dtype=np.float32)
    result = resample(volume, shape, order)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, _like_skimage(volume, shape, order), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 9), (12, 3, 24), (30, 13, 7)])
@pytest.mark.parametrize("order", [1, 3])
def test_smoothing_before_downsampling_equals_that_of_skimage(shape, order):
    volume = np.random.default_rng(1).random((12, 13, 24))
    expected = _like_skimage(volume, shape, order, anti_aliasing=True)
    np.testing.assert_allclose(resample(volume, shape, order, anti_alias=True), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 21, 13), (7, 9, 5), (12, 30, 4), (12, 13, 20)])
def test_linear_equals_that_of_torch(shape):
    volume = torch.rand(2, 12, 13, 8, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.interpolate(volume[None], size=shape, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(resample(volume, shape, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("axis", "shape"), [(2, (20, 9, 11)), (0, (5, 13, 30)), (1, (12, 4, 24)), (2, (12, 13, 48))])
def test_thick_slices_are_resampled_one_by_one(axis, shape):
    volume = np.random.default_rng(0).random((12, 13, 24), dtype=np.float32)
    orders = [0 if a == axis else 3 for a in range(3)]
    np.testing.assert_allclose(resample(volume, shape, orders), _slice_by_slice(volume, shape, axis), atol=1e-5)


@pytest.mark.parametrize("name", ["Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz"])
@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_a_real_volume_is_resampled_as_by_skimage(real_data, name, factor):
    volume = read_image((real_data / name,)).array[0].astype(np.float64)
    shape = tuple(round(n * factor) for n in volume.shape)
    bound = 1e-5 * np.ptp(volume)
    np.testing.assert_allclose(resample(volume, shape, 3), _like_skimage(volume, shape, 3), rtol=0, atol=bound)


def test_labels_of_thick_slices_come_from_the_nearest_slice():
    label = np.array([1, 1, 2, 3], dtype=np.uint8).reshape(1, 1, 4)
    assert resample_labels(label, (1, 1, 6), (1, 1, 0)).ravel().tolist() == [1, 1, 1, 2, 3, 3]
    planes = np.random.default_rng(3).integers(0, 3, (6, 7, 4)).astype(np.uint8)
    flat = np.concatenate([resample_labels(planes[..., n : n + 1], (9, 5, 1)) for n in range(4)], axis=2)
    np.testing.assert_array_equal(resample_labels(planes, (9, 5, 8), (1, 1, 0)), np.repeat(flat, 2, axis=2))


def test_cubic_overshoot_is_clipped_channel_by_channel():
    step = np.zeros((2, 8, 1, 1), dtype=np.float32)
    step[0, 4:], step[1, 4:] = 1.0, 50.0
    result = resample(step, (24, 1, 1), 3)
    assert result[0].min() == 0.0
    assert result[0].max() == 1.0
    assert result[1].max() == 50.0
    np.testing.assert_allclose(result[1], 50 * result[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_come_back_as_float32_tensors(dtype):
    ramp = torch.arange(4, dtype=dtype).reshape(1, 4, 1, 1)
    result = resample(ramp, (2, 1, 1), 1)
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == [0.5, 2.5]


def test_equal_shape_is_the_identity_and_views_are_accepted():
    volume = np.random.default_rng(1).random((3, 4, 5), dtype=np.float32)[::-1, :, ::-1]
    volume.flags.writeable = False
    np.testing.assert_array_equal(resample(volume, (3, 4, 5), 3), volume)


def test_resample_leaves_its_input_as_it_is():
    volume = np.random.default_rng(2).random((2, 6, 5, 4), dtype=np.float32)
    before = volume.copy()
    resample(volume, (3, 9, 4), 3)
    np.testing.assert_array_equal(volume, before)


def _votes_of_all_values(label, shape):
    values = np.unique(label)
    votes = np.stack([resample((label == value).astype(np.float64), shape, 1) for value in values])
    return values[np.argmax(votes.round(5), axis=0)].astype(label.dtype)


@pytest.mark.parametrize("shape", [(17, 8, 20), (5, 23, 9), (9, 10, 11)])
def test_labels_are_the_argmax_of_linear_votes(shape):
    label = np.random.default_rng(3).integers(0, 4, (9, 10, 11)).astype(np.int16) * 7
    label[2:5, 2:6, 3:8] = 200
    result = resample_labels(label, shape)
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, _votes_of_all_values(label, shape))


def test_labels_as_a_tensor_come_back_as_one():
    label = np.random.default_rng(3).integers(-1, 4, (9, 10, 11)).astype(np.int8)
    result = resample_labels(torch.from_numpy(label), (17, 8, 20))
    assert result.dtype == torch.int8
    np.testing.assert_array_equal(result.numpy(), resample_labels(label, (17, 8, 20)))


def test_boxes_are_the_same_without_scipy():
    label = torch.zeros((6, 7, 8), dtype=torch.int32)
    label[1:3, 2, 4:8], label[5, 0, 0], label[2, 2, 2] = 3, -1, 9
    assert list(_boxes_on_device(label)) == list(_boxes(label))
    assert dict(_boxes(label))[3].slices == (slice(1, 3), slice(2, 3), slice(4, 8))


def test_label_ties_go_to_the_lower_value():
    label = np.array([2, 1, 3, 3], dtype=np.uint8).reshape(4, 1, 1)
    assert resample_labels(label, (2, 1, 1)).ravel().tolist() == [1, 3]


def test_ignored_voxels_vote_like_any_value():
    label = np.array([-1, -1, 0, 5], dtype=np.int8).reshape(4, 1, 1)
    assert resample_labels(label, (8, 1, 1)).ravel().tolist() == [-1, -1, -1, -1, 0, 0, 5, 5]


def test_labels_of_equal_shape_come_back_untouched():
    label = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    assert resample_labels(label, (2, 2, 2)) is label


def _meta(array, grid):
    return MetaTensor(torch.from_numpy(array), affine=torch.tensor(grid.affine))


def test_transform_keeps_the_field_of_view_and_votes_on_labels():
    grid = Grid.from_spacing((6, 4, 10), (2.0, 3.0, 1.0), "LPS")
    image = np.random.default_rng(4).random((2, 6, 4, 10), dtype=np.float32)
    label = np.random.default_rng(5).integers(0, 3, (1, 6, 4, 10)).astype(np.int8)
    data = {"id": "a", "image": _meta(image, grid), "label": _meta(label, grid)}
    result = Resampled(["image"], (1.0, 1.5, 2.0), label_keys=["label"], order=1)(data)
    target = grid.resampled((1.0, 1.5, 2.0))
    assert target.shape == (12, 8, 5)
    for key in ("image", "label"):
        assert tuple(result[key].shape[1:]) == target.shape
        np.testing.assert_allclose(np.asarray(result[key].affine), target.affine, atol=1e-9)
    np.testing.assert_array_equal(result["image"].numpy(), resample(image, target.shape, 1))
    assert result["label"].dtype == torch.int8
    np.testing.assert_array_equal(result["label"].numpy()[0], resample_labels(label[0], target.shape))
    assert data["image"].shape == (2, 6, 4, 10)
    assert result["id"] == "a"


def test_transform_takes_label_maps_stored_as_floats():
    label = np.array([0, 0, 3, 3], dtype=np.float32).reshape(1, 4, 1, 1)
    result = Resampled([], (0.5, 1, 1), label_keys=["label"])({"label": _meta(label, Grid((4, 1, 1), np.eye(4)))})
    assert result["label"].dtype == torch.float32
    assert result["label"].flatten().tolist() == [0, 0, 0, 0, 3, 3, 3, 3]


def test_transform_refuses_what_it_cannot_resample():
    grid = Grid((4, 1, 1), np.eye(4))
    with pytest.raises(ValueError, match="target spacing: expected three numbers above 0 mm"):
        Resampled("image", (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"target shape: expected three integers above 0, got \(4, 0, 1\)"):
        Resampled("image", (1.0, 1.0, 1.0), shape=(4, 0, 1))
    with pytest.raises(ValueError, match="image: expected a MetaTensor with an affine, got Tensor"):
        Resampled("image", (1, 1, 1))({"image": torch.zeros(1, 4, 1, 1)})
    halves = _meta(np.full((1, 4, 1, 1), 0.5, dtype=np.float32), grid)
    with pytest.raises(ValueError, match="label: expected whole numbers"):
        Resampled([], (2, 1, 1), label_keys=["label"])({"label": halves})
    with pytest.raises(KeyError):
        Resampled("image", (1, 1, 1))({})
    assert Resampled("image", (1, 1, 1), allow_missing_keys=True)({}) == {}


def test_what_does_not_fit_is_refused_before_and_while_it_is_made(monkeypatch):
    module = sys.modules[Resampled.__module__]  # the package has a function called preprocess
    grid = Grid.from_spacing((6, 4, 10), (150.0, 150.0, 200.0), "RAS")
    data = {"id": "wrong", "image": _meta(np.zeros((1, 6, 4, 10), np.float32), grid)}
    chain = Resampled(["image"], (1.5, 1.5, 2.0))
    message = (
        r"case wrong: image of spacing 150 x 150 x 200 mm, resampled to the model's spacing of 1.5 x 1.5 x 2 mm: "
        r"expected at most {} of memory, got 970 MB for 600 x 400 x 1000 voxels. Check the header's spacing and unit"
    )
    with pytest.raises(DataError, match=message.format("500 MB") + ", cut the image, or raise --max-memory"):
        chain({**data, MOST_BYTES: 500_000_000})
    monkeypatch.setattr(module, "available_bytes", lambda: 600_000_000)
    with pytest.raises(DataError, match=message.format("600 MB") + ", cut the image, or take a machine"):
        chain({**data, MOST_BYTES: 700_000_000})

    def too_large(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(module, "available_bytes", lambda: None)
    monkeypatch.setattr(module, "resample", too_large)
    with pytest.raises(DataError, match="expected no more than the memory holds, got 970 MB for"):
        chain(data)
    same = {"id": "a", "image": _meta(np.ones((1, 6, 4, 10), np.float32), Grid.from_spacing((6, 4, 10), (1.5, 1.5, 2)))}
    monkeypatch.undo()
    assert chain({**same, MOST_BYTES: 0})["image"].shape == (1, 6, 4, 10)  # nothing is resampled
