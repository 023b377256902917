"""Pictures: stacks of TIFF and their spacing, palettes, resolutions that say nothing, and units of other formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.check import check_case
from pipeline.data.dataset import CaseFiles
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_volume, read_grid, read_image, read_label_map, write_label_map

PIXELS = (np.arange(3 * 4 * 5) % 3).astype(np.uint8).reshape(3, 4, 5)  # slice, row, column
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]
LABELS = LabelTable({1: "outer", 2: "inner"})


def _stack(path: Path, spacing: Any = None, pixels: np.ndarray = PIXELS) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))
    if spacing is not None:
        path.with_name("c.json").write_text(json.dumps(spacing))
    return path


@pytest.mark.parametrize("name", ["c.tif", "c_0000.tif", "c.tiff", "c_0003.TIFF"])
def test_a_stack_has_the_spacing_of_the_file_beside_it(tmp_path, name) -> None:
    volume = open_volume(_stack(tmp_path / name, {"spacing": [80, 7.6, 7.5], "origin": "somewhere"}))
    assert volume.grid.spacing_mm == (7.5, 7.6, 80.0)
    assert volume.grid.shape == (5, 4, 3)
    assert volume.grid.orientation == "LPS"
    assert volume.doubts == ()
    assert CaseFiles("c", (volume.path,)).files == (volume.path, tmp_path / "c.json")  # a changed spacing is a change
    np.testing.assert_array_equal(read_image(volume.path).array[0], PIXELS.T)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"spacings": [1, 2, 3]}, "spacing: expected three numbers above 0, got None"),
        ({"spacing": [1, 2]}, "got [1, 2]"),
        ({"spacing": [1, 0, 2]}, "spacing: expected three numbers above 0, got [1, 0, 2]"),
        ({"spacing": "1 2 3"}, "got '1 2 3'"),
        ({"spacing": [1, True, "2"]}, "got [1, True, '2']"),
        ([1, 2, 3], "expected"),
    ],
)
def test_a_wrong_file_beside_a_stack_is_refused(tmp_path, content, text) -> None:
    path = _stack(tmp_path / "c.tif", content)
    with pytest.raises(VolumeError) as caught:
        open_volume(path, case="c")
    assert str(caught.value).startswith(f"case c: {tmp_path / 'c.json'}: ")
    assert text in str(caught.value)
    # Beside a single slice such a file may hold anything, outlines that someone drew for one.
    single = _stack(tmp_path / "c.tif", content, PIXELS[0])
    assert open_volume(single).grid.spacing_mm == pytest.approx((1.0, 1.0, 1.0), rel=1e-6)


def test_a_stack_without_spacing_says_what_is_taken(tmp_path) -> None:
    facts = check_case(CaseFiles("c", (_stack(tmp_path / "c.tif"),), _stack(tmp_path / "l.tif")), LABELS, 1)
    assert [(problem.severity, problem.code) for problem in facts.problems] == [("warning", "spacing")]
    assert "expected a file c.json beside it, got none, so that 1 x 1 x 1 mm are taken" in facts.problems[0].message


def test_a_stack_is_written_with_its_spacing(tmp_path) -> None:
    grid = read_grid(_stack(tmp_path / "c.tif", {"spacing": [80, 7.6, 7.5]}))
    mask = LabelMap(PIXELS.T, grid)
    (tmp_path / "out").mkdir()
    write_label_map(mask, tmp_path / "out" / "c.tif")
    assert json.loads((tmp_path / "out" / "c.json").read_text()) == {"spacing": [80.0, 7.6, 7.5]}
    back = read_label_map(tmp_path / "out" / "c.tif")
    np.testing.assert_array_equal(back.array, mask.array)
    assert back.grid.spacing_mm == (7.5, 7.6, 80.0)
    (tmp_path / "out" / "d.json").write_text("[]")
    with pytest.raises(VolsegError, match=r"d.json: file: expected the spacing of a stack, got another file"):
        write_label_map(mask, tmp_path / "out" / "d.tif")
    with pytest.raises(VolumeError, match="expected one slice, got 3 slices"):
        write_label_map(mask, tmp_path / "out" / "d.png")


@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("\\u00B5m", 1e-3), ("mm", 1.0), ("inch", 25.4)])
def test_imagej_says_its_unit_in_words(tmp_path, unit, mm) -> None:
    pages = [Picture.fromarray(page) for page in PIXELS]
    description = f"ImageJ=1.54f\nimages=3\nslices=3\nunit={unit}\nspacing=2.5\n"
    tags = {"description": description, "x_resolution": 4.0, "y_resolution": 2.0, "resolution_unit": 1}
    pages[0].save(tmp_path / "c.tif", save_all=True, append_images=pages[1:], **tags)
    volume = open_volume(tmp_path / "c.tif")
    assert volume.grid.spacing_mm == pytest.approx((0.25 * mm, 0.5 * mm, 2.5 * mm))
    assert volume.doubts == ()


@pytest.mark.parametrize("unit", ["pixel", "", "furlong"])
def test_imagej_without_a_unit_says_no_spacing(tmp_path, unit) -> None:
    tags = {"description": f"ImageJ=1.54f\nunit={unit}\n", "x_resolution": 4.0, "y_resolution": 2.0}
    Picture.fromarray(PIXELS[0]).save(tmp_path / "c.tif", resolution_unit=1, **tags)
    assert read_grid(tmp_path / "c.tif").spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_labels_of_a_palette_are_its_indices(tmp_path, bits) -> None:
    picture = Picture.fromarray(PIXELS[0])
    picture.putpalette(PALETTE)
    picture.save(tmp_path / "a.png", bits=bits)
    label_map = read_label_map(tmp_path / "a.png")
    np.testing.assert_array_equal(label_map.array[:, :, 0], PIXELS[0].T)
    assert read_image([f"{tmp_path / 'a.png'}#channel={n}of3" for n in (1, 2, 3)]).array.max() == 128  # as an image


def test_palettes_with_transparency_in_tiff_and_in_stacks(tmp_path) -> None:
    pages = [Picture.fromarray(page) for page in PIXELS]
    for page in pages:
        page.putpalette(PALETTE + [0] * (768 - len(PALETTE)))
    pages[0].save(tmp_path / "a.png", transparency=0)
    pages[0].save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_label_map(tmp_path / name).array[:, :, 0], PIXELS[0].T)
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.tif").array, PIXELS.T)


def test_grey_with_opacity_is_refused_in_words(tmp_path) -> None:
    Picture.fromarray(np.full((8, 9, 2), 200, np.uint8), "LA").save(tmp_path / "a.png")
    with pytest.raises(VolumeError, match=r"pixels: expected grey levels or colours, got grey with opacity\. Save"):
        open_volume(tmp_path / "a.png")


def test_a_truncated_palette_is_refused(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (60, 60), dtype=np.uint8)
    picture = Picture.fromarray(noise)
    picture.putpalette(PALETTE)
    picture.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(VolumeError, match="expected a readable"):
        read_label_map(tmp_path / "a.png", case="c")


def test_pictures_match_by_their_shapes(tmp_path) -> None:
    """A scanner writes 300 dots per inch into its picture, the program that someone drew with 72."""
    for name, dpi in (("a", 300), ("l", 72)):
        Picture.fromarray(PIXELS[0]).save(tmp_path / f"{name}.tif", dpi=(dpi, dpi))
    Picture.fromarray(PIXELS[0]).save(tmp_path / "l.png")
    image = read_grid(tmp_path / "a.tif")
    assert image.spacing_mm[0] == pytest.approx(25.4 / 300)
    for name in ("l.tif", "l.png"):
        assert image.matches(read_grid(tmp_path / name))
        assert check_case(CaseFiles("c", (tmp_path / "a.tif",), tmp_path / name), LABELS, 1).problems == ()
    assert not image.matches(Grid((5, 4, 1), image.affine @ np.diag([2, 2, 1, 1])))  # a volume with a header
    assert not image.matches(read_grid(_stack(tmp_path / "s.tif", None, PIXELS[0].T)))


def test_stacks_whose_spacings_are_known_must_agree(tmp_path) -> None:
    image, label = (tmp_path / name for name in ("image", "label"))
    for folder, spacing in ((image, [8, 2, 2]), (label, [8, 2, 3])):
        folder.mkdir()
        _stack(folder / "c.tif", {"spacing": spacing})
    with pytest.raises(DataError, match="label grid: expected"):
        require_same_grid(read_grid(image / "c.tif"), read_grid(label / "c.tif"), "label grid", "the image's")
    (label / "c.json").unlink()
    assert read_grid(image / "c.tif").matches(read_grid(label / "c.tif"))


@pytest.mark.parametrize(
    ("name", "line", "got"),
    [
        ("a.nrrd", 'space units: "um" "um" "um"', "got um, um, um"),
        ("a.nrrd", 'space units: "mm" "mm" "m"', "got m"),
        ("a.nrrd", 'space units: "microns" "microns" "microns"', "got microns, microns, microns"),
        ("a.mha", "DistanceUnits = um", "got um"),
        ("a.mhd", "DistanceUnits = cm", "got cm"),
    ],
)
def test_other_units_than_mm_are_refused(tmp_path, name, line, got) -> None:
    path = _with_line(tmp_path / name, line)
    with pytest.raises(VolumeError, match="expected mm, ") as caught:
        read_grid(path)
    assert got in str(caught.value)
    assert caught.value.code == "unit"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *(("a.nrrd", f"space units: {unit}") for unit in ('"mm" "mm" "mm"', '"" "" ""', '"???" "???" "???"')),
        *(("a.mha", f"DistanceUnits = {unit}") for unit in ("mm", "?")),
    ],
)
def test_mm_in_other_words(tmp_path, name, line) -> None:
    assert read_grid(_with_line(tmp_path / name, line)).spacing_mm == (1.0, 1.0, 1.0)


def _with_line(path: Path, line: str) -> Path:
    """A volume whose header has one more line."""
    sitk.WriteImage(sitk.GetImageFromArray(PIXELS), str(path))
    before = b"kinds:" if path.suffix == ".nrrd" else b"ElementType"
    path.write_bytes(path.read_bytes().replace(before, line.encode() + b"\n" + before, 1))
    return path
