"""DICOM series: every voxel at its place in the world, whatever scanners and archives do to slices."""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from itertools import permutations, product
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from effort import tries
from generated_dicom import AXIAL, JPEG_LOSSLESS, SECRET, compressed, enhanced, make_slices, save
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from pipeline.core.grid import Grid, flip_world, reorient_array
from pipeline.core.volume import Image, LabelMap
from pipeline.data import dicom_file, dicom_reader
from pipeline.data.dicom import inspect, is_dicom, open_series
from pipeline.data.reader_process import Readers
from pipeline.data.volume_file import VolumeError, series_source, wanted_series
from pipeline.data.volumes import open_volume, position_doubts, read_image

RNG = np.random.default_rng(5)
ARRAY = RNG.integers(-1000, 3000, (5, 4, 6)).astype(np.int16)  # (K, J, I)


def require_places(image: Image, array: NDArray[Any], positions: NDArray[Any]) -> None:
    """Every voxel of (K, J, I) stands in the image where its position (K, J, I, 3), LPS, says."""
    index = image.grid.to_voxel(positions * [-1, -1, 1])
    nearest = np.rint(index).astype(int)
    assert np.abs(index - nearest).max() < 1e-4
    assert image.array.shape[1:] == tuple(np.ptp(nearest.reshape(-1, 3), axis=0) + 1)
    np.testing.assert_array_equal(image.array[0][tuple(np.moveaxis(nearest, -1, 0))], array)


def positions(slices: list[pydicom.Dataset]) -> NDArray[np.float64]:
    """LPS positions (K, J, I, 3) of all pixels, by the equation of PS3.3 C.7.6.2.1.1."""
    found = []
    for one in slices:
        row, column = np.array(one.ImageOrientationPatient, dtype=float).reshape(2, 3)
        j, i = np.indices((one.Rows, one.Columns))
        down, across = (float(mm) for mm in one.PixelSpacing)
        place = np.array(one.ImagePositionPatient, dtype=float)
        found.append(place + i[..., None] * across * row + j[..., None] * down * column)
    return np.array(found)


def codes(path: Path) -> list[tuple[str, list[str]]]:
    return [(series.verdict, [finding.code for finding in series.findings]) for series in inspect(path).series]


def refusal(source: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_image(source, case="p1")
    text = str(caught.value)
    assert text.startswith(f"case p1: {str(source).split('#')[0]}: ")
    assert ": expected " in text
    assert SECRET not in text
    return text


DIRECTIONS = [
    (np.eye(3)[a] * s, np.eye(3)[b] * t) for a, b in permutations(range(3), 2) for s, t in product((1, -1), repeat=2)
]


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("number", range(24))
def test_all_48_signed_permutations_of_directions(number: int, backwards: bool, tmp_path: Path) -> None:
    row, column = DIRECTIONS[number]
    step = np.cross(row, column) * (-2.5 if backwards else 2.5)
    slices = make_slices(ARRAY, axes=(row, column), spacing_mm=(0.7, 1.1, 2.5), step=step)
    path = save(slices, tmp_path / "series")
    require_places(read_image(path), ARRAY, positions(slices))
    assert codes(path) == [("usable", [])]


@pytest.mark.parametrize("spacing_between", [None, -2.0, 0.0, 99.0])
def test_positions_count_and_not_the_order_of_files_or_the_spacing_between_slices(
    spacing_between: float | None, tmp_path: Path
) -> None:
    rotation = _rotation(20, 35, -50)
    tags = {} if spacing_between is None else {"SpacingBetweenSlices": spacing_between}
    slices = make_slices(ARRAY, axes=(rotation[:, 0], rotation[:, 1]), spacing_mm=(0.5, 0.8, 3.0), **tags)
    shuffled = [slices[n] for n in (3, 0, 4, 1, 2)]
    require_places(read_image(save(shuffled, tmp_path / "s")), ARRAY, positions(slices))


def _rotation(*degrees: float) -> NDArray[np.float64]:
    found = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        found = turn @ found
    return found


def test_pixels_that_are_not_square_keep_their_sides(tmp_path: Path) -> None:
    path = save(make_slices(ARRAY, spacing_mm=(0.5, 2.0, 3.0)), tmp_path / "s")
    volume = open_volume(path)
    assert volume.grid.shape == (6, 4, 5)
    assert volume.grid.spacing_mm == pytest.approx((0.5, 2.0, 3.0))
    assert volume.grid.orientation == "LPS"


def test_the_axial_ct_is_what_simpleitk_makes_of_it(real_data: Path) -> None:
    path = real_data / "dicom" / "ct_20_slices"
    image = read_image(path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([plane.file for plane in open_series(path).series.planes])
    other = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(other.GetDirection()).reshape(3, 3) * other.GetSpacing()
    affine[:3, 3] = other.GetOrigin()
    assert image.grid.difference_mm(Grid(image.grid.shape, flip_world(affine))) < 1e-4
    np.testing.assert_array_equal(image.array[0], sitk.GetArrayFromImage(other).T)


@pytest.mark.parametrize("name", ["mr_flair", "mr_hippocampus_crop"])
def test_the_mr_is_what_highdicom_makes_of_it(name: str, real_data: Path) -> None:
    path = real_data / "dicom" / name
    image = read_image(path)
    other = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in path.iterdir()])
    grid = Grid(other.spatial_shape, flip_world(other.affine))
    assert image.grid.difference_mm(grid.reoriented(image.grid.orientation)) < 1e-4
    array = reorient_array(other.array, grid.orientation, image.grid.orientation)
    np.testing.assert_array_equal(image.array[0], array)


# Tilted gantries.


def tilted(degrees: float, drift: tuple[float, float], size: tuple[int, int, int] = (24, 60, 50)) -> dict[str, Any]:
    """Slices 2.5 mm apart along their normal, shifted against each other within their plane."""
    rotation = _rotation(10, -20, 5)
    row, column, normal = rotation.T
    shift = math.tan(math.radians(degrees)) * 2.5 * (drift[0] * row + drift[1] * column)
    return {"axes": (row, column), "spacing_mm": (1.0, 1.25, 2.5), "step": normal * 2.5 + shift}


@pytest.mark.parametrize("drift", [(0.0, 1.0), (0.0, -1.0), (0.6, 0.8), (-1.0, 0.0)])
def test_a_tilted_series_is_straightened(drift: tuple[float, float], tmp_path: Path) -> None:
    geometry = tilted(15, drift)
    empty = np.zeros((24, 60, 50), np.int16)
    places = positions(make_slices(empty, **geometry))
    # A plane in space: interpolation between neighbours gives it exactly.
    weights = np.array([3.0, -2.0, 5.0])
    exact = places @ weights
    slices = make_slices(np.rint(exact * 20).astype(np.int16), **geometry, slopes=[0.05] * 24)
    path = save(slices, tmp_path / "s")
    image = read_image(path)
    world = image.grid.to_world(np.moveaxis(np.indices(image.grid.shape), 0, -1)) * [-1, -1, 1]
    inside = _inside(world, geometry, empty.shape, slices)
    assert inside.sum() > 0.9 * empty.size
    assert np.abs(image.array[0] - world @ weights)[inside].max() < 0.05
    assert codes(path) == [("usable with correction", ["tilted"])]
    assert [(doubt.severity, doubt.code) for doubt in open_volume(path).doubts] == [("warning", "dicom_tilted")]
    assert "tilted by 15.0 degrees" in open_volume(path).doubts[0].got


def _inside(
    world: NDArray[Any], geometry: dict[str, Any], shape: tuple[int, ...], slices: list[pydicom.Dataset]
) -> NDArray[np.bool_]:
    """Where a position lies between the pixels of its slice."""
    matrix = np.column_stack([np.array(geometry["axes"]).T * geometry["spacing_mm"][:2], geometry["step"]])
    first = np.array(slices[0].ImagePositionPatient, dtype=float)
    index = (world - first) @ np.linalg.inv(matrix).T
    return np.asarray(((index >= -1e-6) & (index <= np.array(shape[::-1]) - 1 + 1e-6)).all(axis=-1))


@pytest.mark.parametrize(
    ("degrees", "drift"), [(15, (0.0, 1.0)), (-22, (0.0, 1.0)), (12, (0.7, -0.7)), (30, (0.0, 1.0))]
)
def test_a_tilted_sphere_keeps_its_volume_and_its_mask_lies_on_the_slices(
    degrees: float, drift: tuple[float, float], tmp_path: Path
) -> None:
    geometry, radius = tilted(degrees, drift), 22.0
    places = positions(make_slices(np.zeros((24, 60, 50), np.int16), **geometry))
    center = places.reshape(-1, 3).mean(axis=0)
    distance = np.linalg.norm(places - center, axis=-1)
    # Soft at its border, as scanners show it: half way where the radius is.
    sphere = np.clip(radius - distance + 0.5, 0, 1)
    path = save(make_slices(np.rint(sphere * 1000).astype(np.int16), **geometry), tmp_path / "s")
    opened = open_series(path)
    image = opened.image()
    mask = LabelMap((image.array[0] > 500).astype(np.uint8), image.grid)
    expected_ml = 4 / 3 * math.pi * radius**3 / 1000
    assert mask.volumes_ml()[1] == pytest.approx(expected_ml, rel=0.01)
    found = opened.on_slices(mask)
    assert found.shape == (24, 60, 50)
    # The slices are sorted along their normal, as they were made; a voxel of them has the volume of any other.
    assert found.sum() * 1.0 * 1.25 * 2.5 / 1000 == pytest.approx(expected_ml, rel=0.01)
    truth = distance < radius
    assert 2 * (found.astype(bool) & truth).sum() / (found.sum() + truth.sum()) > 0.98
    # No slice lies beside its place by more than the half pixel that whole pixels cost, and none of them on one side.
    apart = [np.argwhere(found[k]).mean(axis=0) - np.argwhere(truth[k]).mean(axis=0) for k in range(6, 18)]
    assert np.abs(apart).max() < 0.55
    assert np.abs(np.mean(apart, axis=0)).max() < 0.1


def test_a_mask_of_straight_slices_is_the_same_voxels(tmp_path: Path) -> None:
    slices = make_slices(ARRAY, step=(0, 0, -2.0))  # stored from the head down
    opened = open_series(save(slices, tmp_path / "s"))
    labels = RNG.integers(0, 9, opened.grid.shape).astype(np.uint8)
    found = opened.on_slices(LabelMap(labels, opened.grid))
    assert [plane.instance for plane in opened.series.planes] == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(found, labels.T)
    assert [plane.sop for plane in opened.series.planes] == [one.SOPInstanceUID for one in reversed(slices)]


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    opened = open_series(save(make_slices(ARRAY), tmp_path / "s"))
    other = Grid(opened.grid.shape, np.eye(4))
    with pytest.raises(ValueError, match="mask grid: expected that of the series"):
        opened.on_slices(LabelMap(np.zeros(other.shape, np.uint8), other))


# Slices that are missing, there twice, or of something else.


def test_missing_slices_are_refused_by_number(tmp_path: Path) -> None:
    array = np.tile(np.arange(10, dtype=np.int16)[:, None, None] * 10, (1, 3, 4))
    slices = make_slices(array)
    path = save([one for n, one in enumerate(slices) if n not in (3, 4, 7)], tmp_path / "s")
    assert "got 3 of 10 slices missing, number 4, 5, 8 (number 1 is the image 1)" in refusal(path)
    assert codes(path) == [("refused", ["missing"])]
    image = read_image(series_source(path, allow_gaps=True))
    np.testing.assert_allclose(image.array[0].T, array, atol=1e-5)
    require_places(Image(np.rint(image.array), image.grid), array, positions(slices))
    doubts = open_volume(series_source(path, allow_gaps=True)).doubts
    assert [(doubt.code, doubt.advice) for doubt in doubts] == [("dicom_missing", "What lies between is interpolated")]
    mask = LabelMap(np.arange(10, dtype=np.uint8) * np.ones(image.grid.shape, np.uint8), image.grid)
    opened = open_series(series_source(path, allow_gaps=True))
    assert opened.on_slices(mask)[:, 0, 0].tolist() == [0, 1, 2, 5, 6, 8, 9]


def test_uneven_slices_are_refused_or_interpolated(tmp_path: Path) -> None:
    heights = [0.0, 2.0, 4.0, 7.0, 9.0, 11.0, 13.0]
    slices = make_slices(np.tile(np.array(heights, np.int16)[:, None, None] * 10, (1, 3, 4)))
    for one, height in zip(slices, heights, strict=True):
        one.ImagePositionPatient = [0, 0, height]
    path = save(slices, tmp_path / "s")
    assert "expected slices at even distances within 0.1 mm, got slices from 2 to 3 mm apart" in refusal(path)
    image = read_image(series_source(path, allow_gaps=True))
    z = image.grid.to_world([[0, 0, k] for k in range(image.grid.shape[2])])[:, 2]
    np.testing.assert_allclose(image.array[0, 0, 0], z * 10, atol=1e-3)
    assert z[0] == 0
    assert z[-1] == pytest.approx(13)


def test_half_of_the_slices_missing_is_no_gap(tmp_path: Path) -> None:
    slices = make_slices(np.zeros((40, 3, 3), np.int16))
    path = save([*slices[:4], *slices[-4:]], tmp_path / "s")
    assert "32 of 40 slices missing, number 5, 6, 7" in refusal(series_source(path, allow_gaps=True))


def test_identical_copies_are_dropped_and_others_are_refused(tmp_path: Path) -> None:
    slices = make_slices(ARRAY)
    path = save(slices, tmp_path / "s")
    copy = make_slices(ARRAY)[2]
    copy.SOPInstanceUID, copy.InstanceNumber = generate_uid(), 12
    copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    save([copy], path, first=10)
    assert codes(path) == [("usable with correction", ["duplicate"])]
    require_places(read_image(path), ARRAY, positions(slices))
    assert open_volume(path).doubts[0].got == "1 images twice (number 12)"
    copy.PixelData = bytes(copy.PixelData[:-2]) + b"\1\1"
    save([copy], path, first=10)
    assert "expected one image per position, got different images 3 and 12 at one" in refusal(path)
    copy.PixelData, copy.RescaleSlope, copy.RescaleIntercept = slices[2].PixelData, 2.0, 0.0
    save([copy], path, first=10)
    assert "got different images 3 and 12 at one" in refusal(path)


def test_a_scout_is_left_out(tmp_path: Path) -> None:
    slices = make_slices(ARRAY)
    path = save(slices, tmp_path / "s")
    scout = make_slices(ARRAY[:1], axes=((1, 0, 0), (0, 0, -1)))
    save(scout, path, first=20)
    assert codes(path) == [("usable with correction", ["scout"])]
    require_places(read_image(path), ARRAY, positions(slices))
    assert open_volume(path).doubts[0].got == "1 of 6 slices of another"
    scout[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    save(scout, path, first=20)
    assert open_volume(path).doubts[0].got == "1 files of localizer images (scouts)"
    require_places(read_image(path), ARRAY, positions(slices))


def test_three_planes_of_a_localizer_are_no_volume(tmp_path: Path) -> None:
    for n, axes in enumerate((AXIAL, ((1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0, 0, -1)))):
        path = save(make_slices(ARRAY[:3], axes=axes), tmp_path / "s", first=10 * n)
    assert "expected slices of one size and orientation, got 3 kinds, of 3, 3, 3 slices" in refusal(path)


def test_jitter_within_the_tolerance_is_no_matter(tmp_path: Path) -> None:
    slices = make_slices(ARRAY)
    for one, off in zip(slices, (0.0, 0.02, -0.02, 0.02, 0.0), strict=True):
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x + off, y - off, z + off]
    path = save(slices, tmp_path / "s")
    assert codes(path) == [("usable", [])]
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY.T)
    slices[2].ImagePositionPatient = [-10, 20, 34.3]
    save(slices, path)
    assert "expected slices at even distances within 0.1 mm" in refusal(path)
    slices[2].ImagePositionPatient = [-9.5, 20, 34]
    save(slices, path)
    assert "got slices up to 0.5 mm beside their place" in refusal(path)


# Values.


def test_every_slice_has_its_own_scale(tmp_path: Path) -> None:
    slopes, intercepts = [1.0, 0.5, 0.123456789, 3.0, 2.0], [-1024.0, 0.0, 0.25, 10.0, -1.5]
    path = save(make_slices(ARRAY, slopes=slopes, intercepts=intercepts), tmp_path / "s")
    image = read_image(path)
    assert image.array.dtype == np.float32
    exact = ARRAY * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    np.testing.assert_array_equal(image.array[0].T, exact.astype(np.float32))
    assert codes(path) == [("usable", ["mixed_slopes"])]


def test_a_pet_whose_first_slice_is_empty(tmp_path: Path) -> None:
    array = ARRAY.copy()
    array[0] = 0
    path = save(make_slices(array, slopes=[0.0, 0.1, 0.2, 0.3, 0.4], Modality="PT"), tmp_path / "s")
    image = read_image(series_source(path, "PT"))
    assert not image.array[0, :, :, 0].any()
    np.testing.assert_array_equal(image.array[0, :, :, 1], (array[1].T * 0.1).astype(np.float32))


def test_bits_that_are_not_used_are_dropped(tmp_path: Path) -> None:
    signed = RNG.integers(-2048, 2047, (5, 4, 6)).astype(np.int16)
    for name, array, kind in (("s", signed, 1), ("u", signed + 2048, 0)):
        stored = ((array & 0xFFF) | (RNG.integers(0, 16, array.shape) << 12)).astype(np.uint16)  # with overlays
        tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": kind}
        path = save(make_slices(stored, **tags), tmp_path / name)
        np.testing.assert_array_equal(read_image(path).array[0].T, array)
    big = [compressed(one, SYNTAXES["big_endian"], tmp_path) for one in make_slices(stored, **tags)]
    np.testing.assert_array_equal(read_image(save(big, tmp_path / "b")).array[0].T, signed + 2048)
    high = make_slices(((signed + 2048) << 4).astype(np.uint16), BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_image(save(high, tmp_path / "h")).array[0].T, signed + 2048)


@pytest.mark.parametrize("slope", ["", "1e300", "x"])
def test_a_scale_that_is_none(slope: str, tmp_path: Path) -> None:
    slices = make_slices(ARRAY, slopes=[1.0] * 5)
    path = save(slices, tmp_path / "s")
    content = (path / "IM00002").read_bytes()
    element = b"\x28\x00\x53\x10DS" + (4).to_bytes(2, "little") + b"1.0 "
    assert element in content
    text = slope.encode() + b" " * (len(slope) % 2)
    other = b"\x28\x00\x53\x10DS" + len(text).to_bytes(2, "little") + text
    (path / "IM00002").write_bytes(content.replace(element, other))
    if slope:
        assert "expected a finite rescale slope and intercept" in refusal(path)
    else:  # an empty one is none: 1
        np.testing.assert_array_equal(read_image(path).array[0], ARRAY.T)


SYNTAXES = {
    "jpegls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg_lossless": JPEG_LOSSLESS,
    "deflated": "1.2.840.10008.1.2.1.99",
    "big_endian": "1.2.840.10008.1.2.2",
    "implicit": "1.2.840.10008.1.2",
}


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.filterwarnings("ignore")
def test_compressed_pixels_are_exact(name: str, tmp_path: Path) -> None:
    array = RNG.integers(-1000, 3000, (3, 40, 50)).astype(np.int16)
    slices = make_slices(array, slopes=[1.0] * 3, intercepts=[-24.0] * 3)
    path = save([compressed(one, SYNTAXES[name], tmp_path) for one in slices], tmp_path / "s")
    np.testing.assert_array_equal(read_image(path).array[0].T, array - 24)
    plain = name in ("big_endian", "implicit")
    assert codes(path) == [("usable", [] if plain else ["compressed"])]


@pytest.mark.parametrize("syntax", ["", "jpegls", "rle"])
def test_an_enhanced_file_of_several_frames(syntax: str, tmp_path: Path) -> None:
    array = RNG.integers(-1000, 3000, (5, 40, 50)).astype(np.int16)
    rotation = _rotation(20, 35, -50)
    slopes, axes = [1.0, 2.0, 0.5, 1.0, 3.0], (rotation[:, 0], rotation[:, 1])
    slices = make_slices(array, axes=axes, slopes=slopes, intercepts=[-1.0] * 5)
    one = enhanced(slices, (3, 0, 4, 1, 2))
    if syntax:
        one.compress(SYNTAXES[syntax], generate_instance_uid=False)
    path = save([one], tmp_path / "s")
    exact = array * np.array(slopes)[:, None, None] - 1
    for source in (path, path / "IM00000"):
        require_places(read_image(source), exact.astype(np.float32), positions(slices))
    assert codes(path)[0][1] == [*(["compressed"] if syntax else []), "multi_frame", "mixed_slopes"]


# What holds no volume.


@pytest.mark.parametrize(
    ("tags", "code", "words"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary_capture", "got secondary captures"),
        ({"Modality": "SR"}, "no_image", "expected images, got other objects"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", "got localizer images"),
        ({"PhotometricInterpretation": "RGB"}, "colour", "expected one grey value per pixel, got colours"),
        ({"ImagePositionPatient": None}, "position", "got slices without position"),
        ({"ImageOrientationPatient": None, "PixelSpacing": None}, "position", "without orientation and spacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.1, 1, 0]}, "orientation", "expected unit vectors at right angles"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "orientation", "expected unit vectors at right angles"),
        ({"PixelSpacing": [0, 1]}, "position", "a spacing of 0 x 1 mm"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "scale", "got a table of values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_volume_is_refused_by_name(tags: dict[str, Any], code: str, words: str, tmp_path: Path) -> None:
    path = save(make_slices(ARRAY, **tags), tmp_path / "s")
    assert codes(path) == [("refused", [code])]
    assert words in refusal(path)


def test_a_video_codec_is_refused(tmp_path: Path) -> None:
    slices = make_slices(ARRAY)
    for one in slices:
        one.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
        one.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.102")
    assert "expected a compression that is read, got one that is not" in refusal(save(slices, tmp_path / "s"))


def test_one_slice_is_a_volume_if_its_thickness_is_known(tmp_path: Path) -> None:
    path = save(make_slices(ARRAY[:1], spacing_mm=(1, 1, 4)), tmp_path / "s")
    assert open_volume(path / "IM00000").grid.spacing_mm == (1, 1, 4)
    assert open_volume(path).doubts[0].got == "one, 4 mm thick"
    path = save(make_slices(ARRAY[:1], SliceThickness=None), tmp_path / "t")
    assert "expected several slices, got one, without thickness" in refusal(path)


# Folders, archives, choices.


def study(folder: Path) -> Path:
    """A CT of two reconstructions, an MR and a localizer, in one folder with other files."""
    save(make_slices(ARRAY, seed="a"), folder / "1")
    save(make_slices(ARRAY + 1, seed="b", SeriesNumber=8), folder / "2")
    save(make_slices(ARRAY + 2, seed="c", SeriesNumber=9, Modality="MR"), folder / "3")
    save(
        make_slices(ARRAY[:2], seed="d", SeriesNumber=10, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), folder / "4"
    )
    (folder / "readme.txt").write_text("x")
    return folder


def test_the_series_is_chosen_by_modality_or_number(tmp_path: Path) -> None:
    path = study(tmp_path / "study")
    assert [(series.number, series.modality, series.verdict) for series in inspect(path).series] == [
        (1, "CT", "usable"),
        (2, "CT", "usable"),
        (3, "MR", "usable"),
        (4, "CT", "refused"),
    ]
    assert inspect(path).others == 1
    for series, shift in (("MR", 2), ("3", 2), ("2", 1), ("1", 0)):
        np.testing.assert_array_equal(read_image(series_source(path, series)).array[0].T, ARRAY + shift)
    assert "expected one CT series that can be used, got 2 (number 1, 2)" in refusal(series_source(path, "CT"))
    assert "expected one series that can be used, got 3 (number 1, 2, 3)" in refusal(path)
    assert "expected a PT series, got 4 series of CT, MR" in refusal(series_source(path, "PT"))
    assert "expected a number from 1 to 4, got 9" in refusal(series_source(path, "9"))
    assert "DICOM series 4: expected a volume, got localizer images" in refusal(series_source(path, "4"))


def test_sources_name_series() -> None:
    assert series_source(Path("a/b")) == Path("a/b")
    assert wanted_series("a/b") == ("any", False)
    for series, gaps, text in (
        ("2", False, "a#series=2"),
        ("", True, "a#series=any+gaps"),
        ("CT", True, "a#series=CT+gaps"),
    ):
        assert str(series_source(Path("a"), series, allow_gaps=gaps)) == text
        assert wanted_series(text) == (series or "any", gaps)


def test_archives_are_read_without_being_unpacked(tmp_path: Path) -> None:
    path = study(tmp_path / "study")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(path.rglob("*")):
            opened.write(file, file.relative_to(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    assert codes(archive) == codes(path)
    assert inspect(archive).others == 1
    np.testing.assert_array_equal(read_image(series_source(archive, "MR")).array[0].T, ARRAY + 2)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_an_archive_whose_names_lead_out_of_it_is_refused(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(zipfile.ZipInfo(name), b"x")
    assert "got a file name that leads out of the archive" in refusal(archive)


@pytest.mark.long
def test_an_archive_may_hold_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more bytes than a reader may take for nothing: 1.1 GB in the long form, else the limit is lowered."""
    frames = tries(4, 540)
    if frames == 4:
        readers = Readers("pipeline.data.dicom_reader", dicom_reader._answer)
        readers.starts = False  # where the limit was changed
        monkeypatch.setattr(dicom_reader, "_READERS", readers)
        monkeypatch.setattr(dicom_file, "_IN_MEMORY_BYTES", 1 << 20)
    array = np.zeros((frames, 1024, 1024), np.int16)
    array[:, 3, 5] = np.arange(frames)
    slices = make_slices(array, slopes=[1.0] * frames, intercepts=[0.0] * frames)
    folder = save([enhanced(slices, range(frames))], tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        opened.write(folder / "IM00000", "IM00000")
    (found,) = inspect(tmp_path / "s.zip").series
    assert found.verdict == "usable"
    assert found.stack is not None
    assert found.stack.grid.shape == (1024, 1024, frames)
    pixels = dicom_reader.read_pixels(tmp_path / "s.zip", "IM00000", [0, frames - 1], (1024, 1024))
    np.testing.assert_array_equal(pixels, array[[0, -1]])
    digests = [
        dicom_reader.pixel_digest(archive, file, 1)
        for archive, file in ((tmp_path / "s.zip", "IM00000"), (None, str(folder / "IM00000")))
    ]
    assert digests[0] == digests[1]


def test_archives_that_are_none_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK\3\4" + b"x" * 100)
    assert "expected one that can be read, got an error (BadZipFile)" in refusal(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("IM1.dcm", bytes(40 << 20))
    monkeypatch.setattr(dicom_file, "_MOST_ARCHIVE_BYTES", 1 << 20)
    monkeypatch.setattr(dicom_reader, "_READERS", Readers("pipeline.data.dicom_reader", dicom_reader._answer))
    monkeypatch.setattr(dicom_reader._READERS, "starts", False)  # where the limit was changed
    assert "more than 0 GiB, unpacked" in refusal(archive)
    assert archive.stat().st_size < 1 << 20


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.dicom.MOST_FILES", 4)
    path = save(make_slices(ARRAY), tmp_path / "s")
    assert "folder: expected at most 4 files, got more. Give the folder of one study." in refusal(path)


def test_a_dicomdir_names_its_files(tmp_path: Path) -> None:
    from pydicom.fileset import FileSet

    slices = make_slices(ARRAY, PatientID="P1", StudyDate="20200101", StudyTime="120000", StudyID="1")
    files = FileSet()
    for one in slices:
        files.add(one)
    files.write(tmp_path / "disc")
    for path in (tmp_path / "disc" / "DICOMDIR", tmp_path / "disc"):
        np.testing.assert_array_equal(read_image(path).array[0].T, ARRAY)
    first = next(file for file in (tmp_path / "disc").rglob("*") if file.is_file() and file.name != "DICOMDIR")
    first.unlink()
    found = inspect(tmp_path / "disc" / "DICOMDIR")
    assert (found.missing, found.series[0].images) == (1, 4)


def test_files_without_preamble_or_identifiers(tmp_path: Path, real_data: Path) -> None:
    path = save(make_slices(ARRAY), tmp_path / "s")
    for file in list(path.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.SOPInstanceUID = ""
        del dataset.file_meta
        with (path / f"{file.name}.dcm").open("wb") as stream:
            pydicom.dcmwrite(stream, dataset, implicit_vr=True, little_endian=True)
        file.unlink()
    np.testing.assert_array_equal(read_image(path).array[0].T, ARRAY)
    shutil.copytree(path, tmp_path / "two" / "a")
    shutil.copytree(path, tmp_path / "two" / "b")
    assert codes(tmp_path / "two") == [("usable", []), ("usable", [])]


def test_what_is_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    study(tmp_path / "study")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x" * 200)
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    fifo = tmp_path / "other" / "fifo"
    os.mkfifo(fifo)
    found = {name: is_dicom(tmp_path / name) for name in ("study", "study/1/IM00000", "other", "a.nii.gz", "none")}
    assert found == {"study": True, "study/1/IM00000": True, "other": False, "a.nii.gz": False, "none": False}
    assert "expected DICOM images, got 1 other files" in refusal(series_source(tmp_path / "other", "1"))
    assert stat.S_ISFIFO(fifo.stat().st_mode)


# Damage.


def test_a_damaged_file_is_left_out_and_the_gap_is_seen(tmp_path: Path) -> None:
    path = save(make_slices(ARRAY), tmp_path / "s")
    content = (path / "IM00002").read_bytes()
    (path / "IM00002").write_bytes(content[:200])
    assert "1 of 5 slices missing, number 3 (number 1 is the image 1); 1 files are damaged" in refusal(path)
    (path / "IM00002").write_bytes(content[:-10])
    assert "expected" in refusal(path)


@pytest.mark.parametrize("kept", [0, 200])
def test_a_damaged_file_at_an_end_leaves_no_gap_and_is_told(kept: int, tmp_path: Path) -> None:
    path = save(make_slices(ARRAY), tmp_path / "s")
    for number, file in enumerate(sorted(path.iterdir())):
        file.rename(path / f"{number}.dcm")
    assert position_doubts(path) == ()
    last = path / "4.dcm"
    last.write_bytes(last.read_bytes()[:kept])
    (doubt,) = position_doubts(path)
    assert (doubt.severity, doubt.code, doubt.got) == ("warning", "dicom_files", "1 that are damaged or missing")
    assert read_image(path).array.shape[-1] == 4


@pytest.mark.parametrize("name", ["jpegls", "jpeg2000", "rle", "jpeg_lossless"])
@pytest.mark.filterwarnings("ignore")
def test_compressed_pixels_that_are_cut_are_refused(name: str, tmp_path: Path) -> None:
    array = RNG.integers(-1000, 3000, (3, 64, 64)).astype(np.int16)
    slices = [compressed(one, SYNTAXES[name], tmp_path) for one in make_slices(array)]
    frame = pydicom.encaps.get_frame(slices[1].PixelData, 0, number_of_frames=1)
    slices[1].PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2]])
    path = save(slices, tmp_path / "s")
    assert "pixels of image 2: expected readable pixels" in refusal(path)


def test_this_process_loads_no_decoder(tmp_path: Path) -> None:
    path = save(make_slices(ARRAY), tmp_path / "s")
    code = (
        "import sys; from pipeline.data.volumes import read_image\n"
        f"read_image({str(path)!r})\n"
        "print(sorted({'pydicom', 'SimpleITK', 'openjpeg', 'jpeg_ls'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_where_no_process_can_be_started_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(make_slices(ARRAY), tmp_path / "s")
    readers = Readers("pipeline.data.dicom_reader")
    readers.starts = False
    monkeypatch.setattr(dicom_reader, "_READERS", readers)
    assert "needs a process of its own, which cannot be started here" in refusal(path)


def test_the_hash_follows_the_series_and_its_files(tmp_path: Path) -> None:
    path = study(tmp_path / "study")
    one, two = (open_series(series_source(path, number)).content_hash() for number in ("1", "2"))
    assert one != two
    (path / "more.txt").write_text("x")
    assert open_series(series_source(path, "1")).content_hash() == one
    save(make_slices(ARRAY + 5, seed="a"), path / "1")
    assert open_series(series_source(path, "1")).content_hash() != one


def test_elements_that_may_name_the_patient_are_read_only_where_they_are_asked_for(tmp_path: Path) -> None:
    tags = {"PatientComments": "x" * 5000, "PatientID": "Müller", "SpecificCharacterSet": "ISO_IR 100"}
    path = save(make_slices(ARRAY, **tags), tmp_path / "s") / "IM00000"
    found = dicom_reader.read_attributes(None, str(path), ("PatientID", "PatientComments", "PatientSex", "StudyID"))
    # What is not there, and what is longer than any name, is left out.
    assert {name: element["Value"] for name, element in found.items()} == {"PatientID": ["Müller"], "StudyID": [SECRET]}
