"""Colour pictures: one file, three channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.data.check import check_dataset
from pipeline.data.colours import colour_channels
from pipeline.data.inputs import find_inputs
from pipeline.data.itk import write_picture
from pipeline.data.layouts import open_dataset
from pipeline.data.reader import VolumeReader
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_header, read_image, read_label_map

PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)  # row 2, column 1 is (33, 34, 35)
LABEL = np.pad(np.ones((2, 2), np.uint8), ((1, 1), (1, 2)))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_red_green_and_blue_are_channels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(PIXELS, path)
    header = open_header(path)
    assert (header.volumes, header.is_colour, header.grid.shape) == (3, True, (5, 4, 1))
    image = read_image(colour_channels(path))
    assert image.array[:, 1, 2, 0].tolist() == [33, 34, 35]
    assert image.grid.spacing_mm == pytest.approx((1, 1, 1), rel=1e-6)
    reader = VolumeReader()
    array, _ = reader.get_data(reader.read([str(source) for source in colour_channels(path)]))
    np.testing.assert_array_equal(array, image.array)


def test_opacity_is_dropped_if_it_says_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([PIXELS, np.full((4, 5), 200, np.uint8)])
    sources = colour_channels(write(tmp_path / "opaque.png", opaque))
    assert [source.name for source in sources] == [f"opaque.png#channel={n}of3" for n in (1, 2, 3)]
    assert read_image(sources).array[2, 1, 2, 0] == 35
    opaque[0, 0, 3] = 0
    faded = colour_channels(write(tmp_path / "faded.png", opaque))
    with pytest.raises(
        VolumeError, match=r"faded.png: alpha channel: expected one opacity .*, got opacity from 0 to 200\. Save the"
    ):
        read_image(faded)


def test_grey_pictures_volumes_and_damaged_files_are_no_colours(tmp_path: Path, nifti, ramp) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    files = (write(tmp_path / "grey.png", LABEL), nifti("a.nii", ramp), tmp_path / "damaged.png", tmp_path / "no.png")
    assert [colour_channels(file) for file in files] == [()] * 4


def test_a_model_of_one_channel_refuses_colours(tmp_path: Path) -> None:
    (case,) = find_inputs([write(tmp_path / "a.png", PIXELS)], 1).cases
    message = r"a.png: shape: expected one number per pixel, got the three colours of a picture\. Save it in greyscale"
    with pytest.raises(VolumeError, match=message):
        read_image(case.images)


def test_label_maps_may_be_greys_stored_as_colours(tmp_path: Path) -> None:
    grey = read_label_map(write(tmp_path / "grey.png", np.dstack([LABEL] * 3)))
    np.testing.assert_array_equal(grey.array[..., 0], LABEL.T)
    coloured = write(tmp_path / "a.png", np.dstack([LABEL, LABEL, 2 * LABEL]))
    message = r"a.png: label map: expected one number per pixel, got colours in 4 pixels\. Save it in greyscale"
    with pytest.raises(VolumeError, match=message):
        read_label_map(coloured)


def test_every_layout_takes_colour_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.png", PIXELS)
        write(tmp_path / "labels" / f"{name}.png", LABEL)
    (tmp_path / "list.csv").write_text("case,image,label\na,images/a.png,labels/a.png\n")
    for path, cases in ((tmp_path, 2), (tmp_path / "list.csv", 1)):
        dataset = open_dataset(path)
        assert dataset.channels == ("R", "G", "B")
        assert len(dataset.cases) == cases
        assert dataset.cases[0].images == colour_channels(tmp_path / "images" / "a.png")
        assert dataset.cases[0].files == (tmp_path / "images/a.png", tmp_path / "labels/a.png")
        assert not check_dataset(dataset).count("error")


def test_a_grey_picture_among_coloured_ones_is_named(tmp_path: Path) -> None:
    for name, pixels in (("a", PIXELS), ("b", PIXELS[..., 0])):
        write(tmp_path / "images" / f"{name}.png", pixels)
        write(tmp_path / "labels" / f"{name}.png", LABEL)
    report = check_dataset(open_dataset(tmp_path))
    assert [problem.case for problem in report.problems if problem.code == "channels"] == ["b"]
    assert "case b: image channels: expected 3 files, got 1." in next(p.message for p in report.problems)


def test_pictures_to_predict_are_cases_whatever_their_numbers(tmp_path: Path) -> None:
    for name in ("eye_0001", "eye_0002", "b"):
        write(tmp_path / f"{name}.png", PIXELS)
    assert [case.id for case in find_inputs([tmp_path], 3).cases] == ["b", "eye_0001", "eye_0002"]
    ((case, problem),) = find_inputs([write(tmp_path / "grey" / "grey.png", LABEL)], 3).failed
    assert case == "grey"
    assert "channels: expected 3 files ending in _0000, _0001, _0002, got grey.png." in problem
