"""SEG and RTSTRUCT: every labelled voxel where it was drawn, whatever the frames, and nothing that would be guessed."""

from __future__ import annotations

import json
import math
import zipfile
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated_dicom import SECRET, enhanced, make_slices, save
from generated_labels import Frame, contours_of, frames_of, make_rtstruct, make_seg, own_seg, real_slices
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter

from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image
from pipeline.data.dicom import inspect, open_series
from pipeline.data.dicom_labels import LabelsRead, Meaning, open_labels
from pipeline.data.layouts import open_dataset
from pipeline.data.volume_file import VolumeError, labels_content, labels_source, split_source
from pipeline.data.volumes import open_volume, read_dicom_labels, read_image, read_label_map, write_image

RNG = np.random.default_rng(11)
TABLE = LabelTable({1: "liver", 2: "spleen"})


def blobs(shape: tuple[int, int, int] = (6, 14, 18)) -> NDArray[np.int16]:
    """Two organs (K, J, I) without any symmetry, the first of two parts and with a hole."""
    labels = np.zeros(shape, np.int16)
    labels[1:5, 2:9, 3:10] = 1
    labels[2:4, 4:6, 5:7] = 0
    labels[2:5, 11:13, 2:5] = 1
    labels[0:4, 3:11, 12:17] = 2
    labels[3, 4, 13] = 0
    return labels


def masks_of(labels: NDArray[Any], table: LabelTable = TABLE) -> dict[str, NDArray[np.bool_]]:
    return {name: labels == value for value, name in table.names.items()}


def saved(one: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def read(
    label: Path | str, image: Path, table: LabelTable = TABLE, names: dict[str, str | None] | None = None
) -> LabelsRead:
    home = split_source(label)[0].parent
    source = labels_source(Path(label), Meaning(table, (image,), names or {}).to_json(home))
    return read_dicom_labels(open_labels(source, case="p1"))


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(VolumeError) as caught:
        read(*args, **options)
    text = str(caught.value)
    assert text.startswith("case p1: ")
    assert ": expected " in text
    assert SECRET not in text
    return text


def codes(found: LabelsRead) -> list[str]:
    return [doubt.code for doubt in found.doubts]


def require_equal(found: LabelsRead, image: Path, expected: NDArray[Any] | None = None) -> None:
    """The label map is on the image's grid, and is the image, whose pixels are the labels."""
    volume = read_image(image)
    assert found.label_map.grid == volume.grid
    np.testing.assert_array_equal(found.label_map.array, volume.array[0] if expected is None else expected)
    assert found.shared == 0


DIRECTIONS = [
    (np.eye(3)[a] * s, np.eye(3)[b] * t) for a, b in permutations(range(3), 2) for s, t in product((1, -1), repeat=2)
]


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("number", range(24))
def test_all_48_signed_permutations_of_directions(number: int, backwards: bool, tmp_path: Path) -> None:
    """The pixels of the series are the labels, so that image and label map must be the same voxels."""
    row, column = DIRECTIONS[number]
    step = np.cross(row, column) * (-2.5 if backwards else 2.5)
    labels = blobs()
    slices = make_slices(labels, axes=(row, column), spacing_mm=(0.7, 1.3, 2.5), step=step)
    image = save(slices, tmp_path / "image")
    for made in (make_seg(slices, masks_of(labels)), make_rtstruct(slices, masks_of(labels))):
        found = read(saved(made, tmp_path / "labels.dcm"), image)
        require_equal(found, image)
        assert codes(found) == []


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP", "RTSTRUCT"])
def test_oblique_slices_and_every_kind(kind: str, tmp_path: Path) -> None:
    turn, tip = math.radians(23), math.radians(-17)
    row = np.array([math.cos(turn), math.sin(turn) * math.cos(tip), math.sin(turn) * math.sin(tip)])
    column = np.array([-math.sin(turn), math.cos(turn) * math.cos(tip), math.cos(turn) * math.sin(tip)])
    labels = blobs()
    slices = make_slices(labels, axes=(row, column), spacing_mm=(0.43, 0.43, 6.499994), origin=(-93.1, 81.77, -40.33))
    image, masks = save(slices, tmp_path / "image"), masks_of(labels)
    if kind == "FRACTIONAL":
        masks = {name: mask * 0.9 for name, mask in masks.items()}
    made = make_rtstruct(slices, masks) if kind == "RTSTRUCT" else make_seg(slices, masks, kind)
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    require_equal(found, image)
    assert codes(found) == (["dicom_fractional"] if kind == "FRACTIONAL" else [])


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])
def test_compressed_label_maps(syntax: str, tmp_path: Path) -> None:
    labels = np.pad(blobs(), ((0, 0), (20, 0), (0, 20)))  # JPEG 2000 takes nothing smaller
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    made = make_seg(slices, masks_of(labels), "LABELMAP", transfer_syntax_uid=syntax)
    require_equal(read(saved(made, tmp_path / "labels.dcm"), image), image)


def test_a_deflated_seg(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, made = save(slices, tmp_path / "image"), make_seg(slices, masks_of(labels))
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    require_equal(read(saved(made, tmp_path / "labels.dcm"), image), image)


def test_half_of_the_largest_share_is_inside(tmp_path: Path) -> None:
    """Shares of 0, 1/4, 1/2 and 3/4 of 200."""
    slices = make_slices(np.zeros((2, 4, 8), np.int16))
    image = save(slices, tmp_path / "image")
    shares = np.tile(np.arange(8) // 2 / 4, (2, 4, 1))
    made = make_seg(slices, {"liver": shares}, "FRACTIONAL", max_fractional_value=200)
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    np.testing.assert_array_equal(found.label_map.array[:, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    (doubt,) = found.doubts
    assert (doubt.severity, doubt.got) == ("note", "shares, of 200 at most")
    assert doubt.advice == "Voxels of at least 100 belong to a segment"


def test_some_slices_in_any_order(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices[::-1], tmp_path / "image")
    frames = frames_of(slices, masks_of(labels))
    assert len(frames) < 12
    RNG.shuffle(frames)  # type: ignore[arg-type]
    require_equal(read(saved(own_seg(list(TABLE.organs), frames, slices[0]), tmp_path / "labels.dcm"), image), image)


def turned(labels: NDArray[Any], slices: list[Dataset], axes: tuple[int, int], signs: tuple[int, int]) -> list[Frame]:
    """Frames whose columns and rows go along two axes (0: i, 1: j, 2: k) of an axial series, forwards or backwards."""
    first = slices[0]
    row, column = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    origin = np.array(first.ImagePositionPatient, dtype=float)
    steps = np.array(
        [
            row * float(first.PixelSpacing[1]),
            column * float(first.PixelSpacing[0]),
            np.array(slices[1].ImagePositionPatient, dtype=float) - origin,
        ]
    )
    across, down = axes
    depth = 3 - across - down
    volume = labels.T  # (I, J, K)
    frames: list[Frame] = []
    for n in range(volume.shape[depth]):
        start = np.zeros(3)
        start[depth] = n
        for axis, sign in zip(axes, signs, strict=True):
            start[axis] = 0 if sign > 0 else volume.shape[axis] - 1
        plane = np.take(volume, n, axis=depth)  # its axes ascend
        pixels = plane.T if across < down else plane  # (down, across)
        pixels = pixels[:: signs[1], :: signs[0]]
        lengths = np.linalg.norm(steps, axis=1)
        directions = [*(signs[0] * steps[across] / lengths[across]), *(signs[1] * steps[down] / lengths[down])]
        for value in (1, 2):
            if (pixels == value).any():
                frames.append(
                    (value, pixels == value, origin + start @ steps, directions, (lengths[down], lengths[across]))
                )
    return frames


@pytest.mark.parametrize("axes", list(permutations(range(3), 2)))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=2)))
def test_frames_along_other_axes_of_the_same_voxels(
    axes: tuple[int, int], signs: tuple[int, int], tmp_path: Path
) -> None:
    labels = blobs()
    slices = make_slices(labels, spacing_mm=(0.7, 1.3, 2.5))
    image = save(slices, tmp_path / "image")
    made = own_seg(list(TABLE.organs), turned(labels, slices, axes, signs), slices[0])
    require_equal(read(saved(made, tmp_path / "labels.dcm"), image), image)


def test_a_nifti_image_and_labels_in_dicom(tmp_path: Path) -> None:
    """Where the image is no series there is only the place to go by, which is said."""
    labels = blobs()
    slices = make_slices(labels, spacing_mm=(0.7, 1.3, 2.5))
    volume = read_image(save(slices, tmp_path / "series"))
    for orientation in ("RAS", "PIR", "SLA"):
        write_image(Image(volume.array, volume.grid).reoriented(orientation), tmp_path / "image.nii.gz")
        for made in (make_seg(slices, masks_of(labels)), make_rtstruct(slices, masks_of(labels))):
            found = read(saved(made, tmp_path / "labels.dcm"), tmp_path / "image.nii.gz")
            expected = read_image(tmp_path / "image.nii.gz")
            assert found.label_map.grid == expected.grid
            np.testing.assert_array_equal(found.label_map.array, expected.array[0])


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_labels_of_tilted_slices_come_back_to_them(kind: str, tmp_path: Path) -> None:
    """What is drawn on the slices as the scanner made them lies there again after the volume was straightened."""
    labels = blobs((9, 14, 18))
    slices = make_slices(labels, spacing_mm=(1.0, 1.0, 3.0), step=(0.0, 1.1, 3.0))
    image = save(slices, tmp_path / "image")
    made = make_seg(slices, masks_of(labels)) if kind == "SEG" else make_rtstruct(slices, masks_of(labels))
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    opened = open_series(image)
    assert opened.stack.tilted
    assert found.label_map.grid == opened.grid
    np.testing.assert_array_equal(opened.on_slices(found.label_map), labels)


def test_slices_that_are_interpolated_have_the_labels_of_the_nearest(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save([*slices[:3], *slices[4:]], tmp_path / "image")
    made = make_seg([*slices[:3], *slices[4:]], masks_of(labels[[0, 1, 2, 4, 5]]))
    found = read(saved(made, tmp_path / "labels.dcm"), Path(f"{image}#series=CT+gaps"))
    np.testing.assert_array_equal(found.label_map.array, labels[[0, 1, 2, 2, 4, 5]].T)


def moved(frames: list[Frame], by: tuple[float, float, float], scale: float = 1.0) -> list[Frame]:
    return [
        (number, pixels, np.array(place, dtype=float) + by, directions, [float(mm) * scale for mm in spacing])
        for number, pixels, place, directions, spacing in frames
    ]


@pytest.mark.parametrize(
    ("by", "scale", "words"),
    [
        ((0.5, 0.0, 0.0), 1.0, "pixels of 1 x 1 mm, up to 0.5 mm beside them"),
        ((0.0, 0.0, 0.9), 1.0, "up to 0.9 mm beside them"),
        ((0.0, 0.0, 0.0), 0.5, "pixels of 0.5 x 0.5 mm"),
        ((0.0, 0.0, 0.0), 1.01, "pixels of 1.01 x 1.01 mm, up to 0.17 mm beside them"),
    ],
)
def test_pixels_that_are_no_voxels_of_the_image_are_refused(
    by: tuple[float, float, float], scale: float, words: str, tmp_path: Path
) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    made = own_seg(list(TABLE.organs), moved(frames_of(slices, masks_of(labels)), by, scale), slices[0])
    text = refusal(saved(made, tmp_path / "labels.dcm"), image)
    assert "labels: expected pixels of frames on voxels of the image (1 x 1 x 2 mm) within 0.1 mm" in text
    assert words in text


def test_a_part_of_the_image_and_more_than_the_image(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, label = save(slices, tmp_path / "image"), tmp_path / "labels.dcm"
    part = [
        (n, mask[2:, 1:], np.add(np.array(place, dtype=float), (1, 2, 0)), way, mm)
        for n, mask, place, way, mm in frames_of(slices, masks_of(labels))
    ]
    require_equal(read(saved(own_seg(list(TABLE.organs), part, slices[0]), label), image), image)
    wide = [
        (n, np.pad(mask, ((2, 3), (1, 4))), np.subtract(np.array(place, dtype=float), (1, 2, 0)), way, mm)
        for n, mask, place, way, mm in frames_of(slices, masks_of(labels))
    ]
    require_equal(read(saved(own_seg(list(TABLE.organs), wide, slices[0]), label), image), image)
    wide[0][1][0, 0] = True
    assert "expected labels within the image, got 1 labelled voxels outside it" in refusal(
        saved(own_seg(list(TABLE.organs), wide, slices[0]), label), image
    )
    lost = save(slices[:-2], tmp_path / "lost")  # the image lacks its last slices, which nothing else shows
    text = refusal(saved(make_seg(slices, masks_of(labels)), label), lost)
    assert f"got {int((labels[-2:] > 0).sum())} labelled voxels outside it. Give all slices of the image." in text
    text = refusal(saved(make_rtstruct(slices, masks_of(labels)), label), lost)
    assert "expected contours on the image's slices, got contours on 1 slices outside it" in text


# Which image labels belong to.


def test_labels_of_another_series_are_refused_with_both(tmp_path: Path) -> None:
    labels = blobs()
    own = make_slices(labels, seed="own", SeriesNumber=1)
    other = make_slices(labels, seed="other", SeriesNumber=2, Modality="MR")
    study = tmp_path / "study"
    save(own, study / "a")
    save(other, study / "b")
    for made in (make_seg(other, masks_of(labels)), make_rtstruct(other, masks_of(labels))):
        label = saved(made, tmp_path / "labels.dcm")
        text = refusal(label, Path(f"{study}#series=CT"))
        one, two = own[0].SeriesInstanceUID, other[0].SeriesInstanceUID
        assert (
            f"expected a reference to series {one} (CT, number 1), the image's, got one to series {two} (MR, number 2)"
            in text
        )
        require_equal(read(label, Path(f"{study}#series=MR")), Path(f"{study}#series=MR"))


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_another_frame_of_reference_is_refused(kind: str, tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    elsewhere = make_slices(labels, FrameOfReferenceUID=generate_uid(entropy_srcs=["elsewhere"]))
    made = make_seg(elsewhere, masks_of(labels)) if kind == "SEG" else make_rtstruct(elsewhere, masks_of(labels))
    text = refusal(saved(made, tmp_path / "labels.dcm"), image)
    assert f"expected frame of reference {slices[0].FrameOfReferenceUID} of series" in text
    assert f"got {elsewhere[0].FrameOfReferenceUID}" in text


def test_references_to_images_alone_and_none(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, label = save(slices, tmp_path / "image"), tmp_path / "labels.dcm"
    made = make_seg(slices, masks_of(labels))
    del made.ReferencedSeriesSequence
    found = read(saved(made, label), image)  # by the images that its frames were made from
    require_equal(found, image)
    assert codes(found) == []
    del made.SourceImageSequence
    for group in made.PerFrameFunctionalGroupsSequence:
        for source in group.DerivationImageSequence[0].SourceImageSequence:
            source.ReferencedSOPInstanceUID = "1.2.3"
    assert "expected references to the image's slices, got references to 1 others" in refusal(saved(made, label), image)
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    found = read(saved(made, label), image)
    require_equal(found, image)
    assert codes(found) == ["dicom_reference"]


# Names.


def test_names_by_capitals_signs_and_a_table(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, label = save(slices, tmp_path / "image"), tmp_path / "labels.dcm"
    liver, spleen = masks_of(labels).values()
    body = np.ones_like(liver)
    found = read(
        saved(make_seg(slices, {" LIVER": liver, "Milz": spleen, "BODY": body}), label),
        image,
        names={"milz": "spleen", "Body": None},
    )
    require_equal(found, image)
    assert codes(found) == []
    found = read(saved(make_seg(slices, {SECRET: body, "Liver": liver}), label), image)
    np.testing.assert_array_equal(found.label_map.array, liver.T)
    (doubt,) = found.doubts
    assert (doubt.severity, doubt.code, doubt.got) == ("warning", "dicom_names", "1 others (number 1)")
    text = refusal(saved(make_rtstruct(slices, {SECRET: body, "x": liver}), label), image)
    assert "names of segments: expected names of the label table, got 2 others. Map their names in labels.json" in text


def test_two_segments_of_one_name_are_one_organ_and_an_organ_may_be_missing(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, label = save(slices, tmp_path / "image"), tmp_path / "labels.dcm"
    liver = labels == 1
    upper, lower = liver.copy(), liver.copy()
    upper[:, 10:], lower[:, :8] = False, False
    made = make_seg(slices, {"liver": upper, "b": lower})
    made.SegmentSequence[1].SegmentLabel = "liver"
    found = read(saved(made, label), image)
    np.testing.assert_array_equal(found.label_map.array, liver.T)


def test_several_files_of_different_names_belong_together(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, home = save(slices, tmp_path / "image"), tmp_path / "labels"
    for name, mask in masks_of(labels).items():
        made = make_seg(slices, {name: mask})
        made.SeriesInstanceUID = generate_uid(entropy_srcs=[name])
        saved(made, home / f"{name}.dcm")
    require_equal(read(home, image), image)
    with zipfile.ZipFile(tmp_path / "labels.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in home.iterdir():
            archive.write(file, file.name)
    require_equal(read(tmp_path / "labels.zip", image), image)
    other = make_rtstruct(slices, {"liver": labels == 1})
    saved(other, home / "other.dcm")
    assert "expected every name in one file, got 1 names of file" in refusal(home, image)
    found = read(Path(f"{home}#series=RTSTRUCT"), image)
    np.testing.assert_array_equal(found.label_map.array, (labels == 1).T)
    number = next(series.number for series in inspect(home).series if series.labels[0].kind == "RTSTRUCT")
    np.testing.assert_array_equal(read(Path(f"{home}#series={number}"), image).label_map.array, (labels == 1).T)


# Overlaps.


def test_overlaps_go_to_the_higher_value_or_to_the_value_of_both(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, label = save(slices, tmp_path / "image"), tmp_path / "labels.dcm"
    liver, tumour = labels > 0, np.zeros(labels.shape, bool)
    tumour[2:4, 3:8, 8:14] = True
    both = int((liver & tumour).sum())
    assert 0 < both < tumour.sum()
    expected = np.where(tumour, 2, liver)
    for made in (
        make_seg(slices, {"liver": liver, "tumour": tumour}),
        make_rtstruct(slices, {"tumour": tumour, "liver": liver}),
    ):
        saved(made, label)
        found = read(label, image, LabelTable({1: "liver", 2: "tumour"}))
        np.testing.assert_array_equal(found.label_map.array, expected.T)
        assert found.shared == both
        crossing = LabelTable({1: "a", 2: "b", 3: "c"}, regions={"liver": (1, 3), "tumour": (2, 3)})
        found = read(label, image, crossing)
        np.testing.assert_array_equal(found.label_map.array, (liver + 2 * tumour).T)
        assert found.shared == 0
        inside = LabelTable({1: "rest", 2: "tumour"}, regions={"liver": (1, 2), "tumour": (2,)})
        found = read(label, image, inside)  # the table says that a tumour lies in the liver
        np.testing.assert_array_equal(found.label_map.array, expected.T)
        assert found.shared == 0


def test_segments_may_be_the_values_of_regions(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    table = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)})
    made = make_seg(slices, {"edema": labels == 1, "core": labels == 2})
    require_equal(read(saved(made, tmp_path / "labels.dcm"), image, table), image)


def test_a_hundred_segments_in_any_overlap(tmp_path: Path) -> None:
    """Every segment is the voxels with a bit of a number: all combinations occur."""
    slices = make_slices(np.zeros((2, 16, 32), np.int16))
    image = save(slices, tmp_path / "image")
    number = np.arange(1024).reshape(2, 16, 32)
    masks = {f"bit {n}": (number >> n) % 2 == 1 for n in range(10)} | {f"same {n}": number > n for n in range(90)}
    made = make_seg(slices, masks)
    labels = open_labels(
        labels_source(saved(made, tmp_path / "labels.dcm"), Meaning(LabelTable({}), (image,)).to_json(tmp_path))
    )
    from pipeline.data.volumes import label_target

    drawn = labels.draw(label_target(labels), labels.names)
    for name, mask in masks.items():
        there = np.array([name in together for together in drawn.organs])
        np.testing.assert_array_equal(there[drawn.index].T, mask)


# Contours.


def square(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def contour_image(tmp_path: Path) -> tuple[list[Dataset], Path]:
    slices = make_slices(np.zeros((3, 14, 18), np.int16))
    return slices, save(slices, tmp_path / "image")


def test_holes_and_islands_by_the_even_odd_rule(tmp_path: Path) -> None:
    slices, image = contour_image(tmp_path)
    lines = [
        square(0.5, 0.5, 10.5, 10.5),
        square(2.5, 2.5, 8.5, 8.5),
        square(4.5, 4.5, 6.5, 6.5),
        square(12.5, 1.5, 15.5, 3.5),
    ]
    made = make_rtstruct(slices, {"liver": np.ones((3, 1, 1), bool)}, lambda mask: lines)
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    expected = np.zeros((14, 18), int)
    expected[1:11, 1:11], expected[3:9, 3:9], expected[5:7, 5:7], expected[2:4, 13:16] = 1, 0, 1, 1
    for k in range(3):
        np.testing.assert_array_equal(found.label_map.array[:, :, k].T, expected)


def test_a_hole_in_one_line_that_goes_in_and_out(tmp_path: Path) -> None:
    slices, image = contour_image(tmp_path)
    keyhole = np.concatenate(
        [square(0.5, 0.5, 10.5, 10.5), [[0.5, 0.5]], square(2.5, 2.5, 8.5, 8.5)[[0, 3, 2, 1]], [[2.5, 2.5]]]
    )
    made = make_rtstruct(slices, {"liver": np.ones((3, 1, 1), bool)}, lambda mask: [keyhole])
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    expected = np.zeros((14, 18), int)
    expected[1:11, 1:11], expected[3:9, 3:9] = 1, 0
    np.testing.assert_array_equal(found.label_map.array[:, :, 1].T, expected)


def test_lines_through_the_centres_of_pixels_hold_them(tmp_path: Path) -> None:
    """As programs draw them that follow the outermost pixels, down to one pixel and a row of two."""
    slices, image = contour_image(tmp_path)
    lines = [square(1, 1, 5, 4), np.array([[8.0, 8.0]]), np.array([[10.0, 2.0], [11.0, 2.0]]), square(12, 5, 12, 9)]
    made = make_rtstruct(slices, {"liver": np.ones((3, 1, 1), bool)}, lambda mask: lines, digits=2)
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    expected = np.zeros((14, 18), int)
    expected[1:5, 1:6], expected[8, 8], expected[2, 10:12], expected[5:10, 12] = 1, 1, 1, 1
    np.testing.assert_array_equal(found.label_map.array[:, :, 1].T, expected)


def contour_points(made: Dataset, contour: int = 0) -> NDArray[np.float64]:
    return np.array(made.ROIContourSequence[0].ContourSequence[contour].ContourData, dtype=float).reshape(-1, 3)


def with_points(made: Dataset, points: NDArray[np.float64], contour: int = 0) -> Dataset:
    made.ROIContourSequence[0].ContourSequence[contour].ContourData = [f"{x:.6g}" for x in points.ravel()]
    return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda points: np.add(points, [0, 0, 0.9]),
            "expected contours in slices of the image, within 0.25 of their distance",
        ),
        (lambda points: points * [1, 1, 0] + [0, 0, 31] + points[:, 1:2] * [0, 0, 0.4], "expected contours in slices"),
        (
            lambda points: np.add(points, [0, 0, 2.0]),
            "expected contours on the slices they refer to, got 1 that lie on another",
        ),
    ],
    ids=["between", "across", "beside its reference"],
)
def test_contours_that_lie_on_no_slice_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    made = make_rtstruct(slices, masks_of(labels))
    text = refusal(saved(with_points(made, change(contour_points(made))), tmp_path / "labels.dcm"), image)
    assert words in text


def test_contours_a_little_off_their_slice_lie_on_it(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    made = make_rtstruct(slices, masks_of(labels))
    made = with_points(made, np.add(contour_points(made), [0, 0, 0.45]))
    require_equal(read(saved(made, tmp_path / "labels.dcm"), image), image)


def test_open_lines_points_and_slices_between_are_told(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    made = make_rtstruct(slices, {"liver": labels == 1})
    contours = made.ROIContourSequence[0].ContourSequence
    on_third = [
        one for one in contours if one.ContourImageSequence[0].ReferencedSOPInstanceUID == slices[2].SOPInstanceUID
    ]
    for one, kind in zip(on_third, ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"), strict=True):
        one.ContourGeometricType = kind
    found = read(saved(made, tmp_path / "labels.dcm"), image)
    expected = labels == 1
    expected[2] = False
    np.testing.assert_array_equal(found.label_map.array, expected.T)
    assert codes(found) == ["rtstruct_open", "rtstruct_gaps"]
    assert [doubt.got for doubt in found.doubts] == ["3 lines, points or empty ones", "1 slices without"]


def test_contours_that_cross_the_rows_without_end_are_refused(tmp_path: Path) -> None:
    slices, image = contour_image(tmp_path)
    zigzag = np.column_stack([np.linspace(0, 10, 200), np.tile([0.5, 12.5], 100)])
    made = make_rtstruct(slices, {"liver": np.ones((3, 1, 1), bool)}, lambda mask: [zigzag])
    text = refusal(saved(made, tmp_path / "labels.dcm"), image)
    assert "contours: expected fewer crossings than pixels, got more." in text


def test_contours_at_one_mm_in_few_digits_keep_nearly_all(tmp_path: Path) -> None:
    """Coordinates of one digit, every second corner left out: a ball of 12 mm has a Dice above 0.98."""
    k, j, i = np.indices((30, 40, 40))
    ball = (k - 15) ** 2 + (j - 20) ** 2 + (i - 19) ** 2 <= 144
    slices = make_slices(np.zeros(ball.shape, np.int16), spacing_mm=(1, 1, 1))
    image = save(slices, tmp_path / "image")
    made = make_rtstruct(slices, {"liver": ball}, lambda mask: [line[::2] for line in contours_of(mask)], digits=1)
    found = read(saved(made, tmp_path / "labels.dcm"), image).label_map.array.T == 1
    dice = 2 * (found & ball).sum() / (found.sum() + ball.sum())
    assert 0.98 < dice <= 1


# Files.


def test_what_holds_no_labels_is_refused(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    assert "labels: expected a SEG or RTSTRUCT, got series 1 (CT). Check the path." in refusal(image, image)
    saved(make_seg(slices, masks_of(labels)), tmp_path / "labels.dcm")
    assert "expected labels in series 7, got series 1 (SEG)" in refusal(
        Path(f"{tmp_path / 'labels.dcm'}#series=7"), image
    )
    assert "labels: expected one SEG" not in refusal(tmp_path / "none.dcm", image)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda one: setattr(one, "PixelData", one.PixelData[:10]),
            "expected a whole file, got a damaged one. Export it again.",
        ),
        (lambda one: setattr(one, "NumberOfFrames", 300_000), "got 300000 frames of 14 x 18 pixels"),
        (lambda one: setattr(one, "Rows", 60_000), "expected 8 frames of 60000 x 18 pixels, got a file of"),
        (lambda one: delattr(one, "PerFrameFunctionalGroupsSequence"), "got 8 frames without"),
        (
            lambda one: setattr(one, "SegmentSequence", one.SegmentSequence[:1]),
            "frames of the segments that are described",
        ),
        (
            lambda one: setattr(one.SegmentSequence[1], "SegmentNumber", 1),
            "1 files: segments without a number of their own",
        ),
        (
            lambda one: setattr(one, "PerFrameFunctionalGroupsSequence", [one.PerFrameFunctionalGroupsSequence[0]] * 8),
            "expected one frame of a segment at a position, got 7 more",
        ),
    ],
)
def test_a_seg_that_contradicts_itself_is_refused(spoil: Any, words: str, tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, made = save(slices, tmp_path / "image"), make_seg(slices, masks_of(labels))
    spoil(made)
    assert words in refusal(saved(made, tmp_path / "labels.dcm"), image)


def test_a_label_map_with_values_of_no_segment_is_refused(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image, made = save(slices, tmp_path / "image"), make_seg(slices, masks_of(labels), "LABELMAP")
    made.SegmentSequence = made.SegmentSequence[:2]
    text = refusal(saved(made, tmp_path / "labels.dcm"), image)
    assert "got pixels of 1 values that no segment is described for, such as 2" in text


def test_a_seg_alone_is_its_segments_numbers_on_its_own_slices(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    image = save(slices, tmp_path / "image")
    whole = read_label_map(saved(make_seg(slices, masks_of(labels), omit_empty_frames=False), tmp_path / "labels.dcm"))
    assert whole.grid.matches(read_image(image).grid)
    np.testing.assert_array_equal(whole.array, labels.T)
    part = read_label_map(saved(make_seg(slices, masks_of(labels)), tmp_path / "labels.dcm"))
    assert part.grid.shape == (18, 14, 5)
    np.testing.assert_array_equal(part.array, labels[:5].T)
    with pytest.raises(VolumeError, match="segments: expected no overlap, got segments that overlap"):
        read_label_map(saved(make_seg(slices, {"a": labels > 0, "b": labels > 1}), tmp_path / "labels.dcm"))
    with pytest.raises(VolumeError, match="labels: expected one SEG, or a dataset that names the image, got RTSTRUCT"):
        read_label_map(saved(make_rtstruct(slices, masks_of(labels)), tmp_path / "labels.dcm"))


def test_inspect_tells_labels_and_what_they_belong_to(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    save(slices, tmp_path / "image")
    saved(make_seg(slices, masks_of(labels)), tmp_path / "seg.dcm")
    saved(make_rtstruct(make_slices(labels, seed="gone"), masks_of(labels)), tmp_path / "rt.dcm")
    found = inspect(tmp_path)
    assert [(series.modality, series.verdict) for series in found.series] == [
        ("CT", "usable"),
        ("SEG", "labels"),
        ("RTSTRUCT", "labels"),
    ]
    told = [entry.get("labels") for entry in found.to_json()["series"]]
    assert told == [
        None,
        [{"kind": "BINARY", "segments": 2, "of_series": [1], "of_others": 0}],
        [{"kind": "RTSTRUCT", "segments": 2, "of_series": [], "of_others": 1}],
    ]
    assert SECRET not in json.dumps(found.to_json())
    assert open_series(tmp_path).series.number == 1  # labels are no second image
    with pytest.raises(VolumeError, match=r"DICOM series 2: expected images, got labels \(SEG or RTSTRUCT\)"):
        open_series(Path(f"{tmp_path}#series=2"))


# Datasets.


def test_a_source_of_labels_moves_with_its_dataset(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    save(slices, tmp_path / "a" / "images" / "p1")
    saved(make_seg(slices, masks_of(labels)), tmp_path / "a" / "labels" / "p1.dcm")
    (case,) = open_dataset(tmp_path / "a").cases
    assert case.label is not None
    assert split_source(case.label) == (tmp_path / "a" / "labels" / "p1.dcm", "labels", 0, 1)
    assert labels_content(case.label)[1]["images"] == ["../images/p1#series=CT"]
    (tmp_path / "a").rename(tmp_path / "b")
    (again,) = open_dataset(tmp_path / "b").cases
    assert again.label is not None
    assert again.label.name == case.label.name
    np.testing.assert_array_equal(read_label_map(again.label).array, labels.T)
    with pytest.raises(VolumeError, match="labels: expected what a dataset says of them"):
        open_labels(f"{tmp_path / 'b'}/labels/p1.dcm#labels=%7Bx")


def test_labels_without_a_table_are_named_by_their_segments(tmp_path: Path) -> None:
    labels = blobs()
    for name, organs in {"p1": ("Liver", "spleen"), "p2": ("liver", "SPLEEN"), "p3": ("liver", "spleen")}.items():
        slices = make_slices(labels, seed=name)
        save(slices, tmp_path / "images" / name)
        masks = dict(zip(organs, masks_of(labels).values(), strict=True))
        saved(make_rtstruct(slices, masks), tmp_path / "labels" / f"{name}_rtstruct.dcm")
    found = open_dataset(tmp_path)
    assert found.labels == TABLE
    (note,) = found.notes
    assert "names of segments: expected one spelling, got several of liver, spleen. Other capitals and signs" in note
    for case in found.cases:
        assert case.label is not None
        np.testing.assert_array_equal(read_label_map(case.label).array, labels.T)


def test_overlapping_segments_without_a_table_become_regions(tmp_path: Path) -> None:
    labels = blobs()
    tumour = np.zeros(labels.shape, bool)
    tumour[2:4, 3:8, 8:14] = True
    slices = make_slices(labels)
    save(slices, tmp_path / "images" / "p1")
    made = make_seg(slices, {"spleen": labels == 2, "tumour": tumour, "liver": labels == 1})
    saved(made, tmp_path / "labels" / "p1.dcm")
    found = open_dataset(tmp_path)
    assert found.labels.names == {1: "liver", 2: "spleen", 3: "tumour", 4: "liver + tumour", 5: "spleen + tumour"}
    assert found.labels.regions == {"liver": (1, 4), "spleen": (2, 5), "tumour": (3, 4, 5)}
    assert "expected organs that do not overlap, got 2 overlaps, in up to 1 cases. They are regions" in found.notes[0]
    (case,) = found.cases
    assert case.label is not None
    array = read_label_map(case.label).array
    for name, mask in {"spleen": labels == 2, "tumour": tumour, "liver": labels == 1}.items():
        np.testing.assert_array_equal(np.isin(array, found.labels.regions[name]).T, mask)
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "spleen", "3": "tumour"}')
    (case,) = open_dataset(tmp_path).cases
    assert case.label is not None
    np.testing.assert_array_equal(read_label_map(case.label).array.T, np.where(tumour, 3, labels))


def test_names_are_mapped_by_the_description(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    save(slices, tmp_path / "images" / "p1")
    liver, spleen = masks_of(labels).values()
    saved(make_seg(slices, {"Leber": liver, "Milz": spleen, "BODY": labels >= 0}), tmp_path / "labels" / "p1.dcm")
    names = {"Leber": "liver", "milz": "spleen", "BODY": None}
    forms: list[dict[str, Any]] = [
        {"names": {"1": "liver", "2": "spleen"}, "dicom_names": names},
        {"1": "liver", "2": "spleen", "dicom_names": names},
    ]
    for form in forms:
        (tmp_path / "labels.json").write_text(json.dumps(form))
        found = open_dataset(tmp_path)
        assert (found.labels, found.notes) == (TABLE, ())
        assert found.cases[0].label is not None
        np.testing.assert_array_equal(read_label_map(found.cases[0].label).array, labels.T)
    (tmp_path / "labels.json").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps({"dicom_names": names}))
    assert open_dataset(tmp_path).labels == TABLE
    for wrong, words in (
        ({"Leber": "lever"}, r"names of the label table \(liver"),
        ({"Leber": 1}, "names of"),
    ):
        (tmp_path / "dataset.json").unlink(missing_ok=True)
        (tmp_path / "labels.json").write_text(json.dumps({**forms[0], "dicom_names": wrong}))
        with pytest.raises(ValueError, match=f"dicom_names: expected {words}"):
            open_dataset(tmp_path)


def test_label_files_of_both_kinds_need_names(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels)
    save(slices, tmp_path / "p1")
    saved(make_seg(slices, masks_of(labels)), tmp_path / "p1.dcm")
    volume = read_image(tmp_path / "p1")
    write_image(volume, tmp_path / "p2.nii.gz")
    table = "case,image,label\np1,p1,p1.dcm\np2,p2.nii.gz,p2.nii.gz\n"
    (tmp_path / "datalist.csv").write_text(table)
    with pytest.raises(ValueError, match=r"labels\.json: expected names where some label files are DICOM"):
        open_dataset(tmp_path)
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    one, two = open_dataset(tmp_path).cases
    assert one.label is not None
    assert two.label is not None
    np.testing.assert_array_equal(read_label_map(one.label).array, read_label_map(two.label).array)


def test_every_layout_takes_dicom_labels(tmp_path: Path) -> None:
    labels = blobs()
    for layout in ("nnunet", "organs", "datalist", "study"):
        home = tmp_path / layout
        for name in ("p1", "p2"):
            slices = make_slices(labels, seed=name)
            made = make_seg(slices, masks_of(labels))
            if layout == "nnunet":
                save(slices, home / "imagesTr" / f"{name}_0000")
                saved(made, home / "labelsTr" / f"{name}.dcm")
            elif layout == "organs":
                save(slices, home / name / "ct")
                saved(made, home / name / "segmentations" / "1.2.3.dcm")
            else:
                save(slices, home / name / "image")
                saved(made, home / name / "labels" / "1.2.3")
        if layout == "nnunet":
            described = {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1, "spleen": 2},
                "file_ending": ".nii.gz",
            }
            (home / "dataset.json").write_text(json.dumps(described))
        elif layout == "datalist":
            (home / "datalist.csv").write_text(
                "case,image,label\n" + "".join(f"{p},{p}/image,{p}/labels\n" for p in ("p1", "p2"))
            )
        elif layout == "study":  # images and labels in one folder
            lines = "".join(f"{p},{p}#series=CT,{p}#series=SEG\n" for p in ("p1", "p2"))
            (home / "datalist.csv").write_text(f"case,image,label\n{lines}")
        found = open_dataset(home)
        assert (found.layout, found.channels, found.labels) == (layout.replace("study", "datalist"), ("CT",), TABLE)
        assert [case.id for case in found.cases] == ["p1", "p2"]
        for case in found.cases:
            assert case.label is not None
            assert read_label_map(case.label).grid == open_volume(case.images[0]).grid
            np.testing.assert_array_equal(read_label_map(case.label).array, labels.T)


def test_single_files_are_images_if_they_are_named_as_label_maps(tmp_path: Path) -> None:
    labels = blobs()
    slices = make_slices(labels, slopes=[1.0] * 6, intercepts=[0.0] * 6)
    made = make_seg(slices, masks_of(labels))
    saved(enhanced(slices, range(6)), tmp_path / "images" / "p1.dcm")
    saved(made, tmp_path / "labels" / "p1.dcm")
    (case,) = open_dataset(tmp_path).cases
    assert case.label is not None
    np.testing.assert_array_equal(read_label_map(case.label).array, labels.T)
    (tmp_path / "images" / "p1.dcm").unlink()
    for k, one in enumerate(slices):  # a series whose slices lie in images/
        saved(one, tmp_path / "images" / f"IM{k}.dcm")
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    found = open_dataset(tmp_path)
    assert [(part.id, part.images[0].name) for part in (*found.cases, *found.tests)] == [("p1", "p1.dcm")]


# Real data.


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["ct_20_slices", "mr_hippocampus_crop", "mr_flair"])
def test_masks_on_real_series(name: str, real_data: Path, tmp_path: Path) -> None:
    slices = real_slices(real_data / "dicom" / name)
    image = save(slices, tmp_path / "image")
    opened = open_series(image)
    array = gaussian_filter(read_image(image).array[0].T, (1, 8, 8))
    labels = np.digitize(array, np.quantile(array, [0.5, 0.8, 0.97]))
    if name == "ct_20_slices":
        reference = read_label_map(real_data / "dicom" / "ct_20_slices_labels.nii.gz")
        labels = reference.reoriented(opened.grid.orientation).array.T
    table = LabelTable({int(value): f"organ {value}" for value in np.unique(labels) if value})
    for made in (make_seg(slices, masks_of(labels, table)), make_rtstruct(slices, masks_of(labels, table))):
        found = read(saved(made, tmp_path / "labels.dcm"), image, table)
        assert found.label_map.grid == opened.grid
        np.testing.assert_array_equal(found.label_map.array.T, labels)
        assert found.shared == 0
