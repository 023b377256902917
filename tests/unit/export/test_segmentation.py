"""Segmentations: the same voxels for whoever reads them, and what is on the left stays there."""

from __future__ import annotations

import math
import zipfile
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_readers import (
    KIDNEYS,
    by_highdicom,
    by_place,
    by_reference,
    measured,
    on_slices,
    require_back_in,
    require_same_slices,
    require_same_voxels,
    segmented,
    series,
    sided,
    valid,
    write,
)
from generated_dicom import enhanced, make_slices, save, slices_of
from pydicom.uid import generate_uid

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.volumes import read_label_map
from pipeline.export.dicom_source import Segmented

DIRECTIONS = [
    (np.eye(3)[a] * s, np.eye(3)[b] * t) for a, b in permutations(range(3), 2) for s, t in product((1, -1), repeat=2)
]
OBLIQUE = ((0.999679, 0.02533, 0.0), (-0.0244148, 0.963561, -0.26637))
BOTH = pytest.mark.parametrize("seg_type", ["binary", "labelmap"])


def require_read_alike(case: Segmented, path: Path, *, even: bool = True) -> None:
    """By place, by reference, by highdicom and as a label of a dataset, all as the mask."""
    require_same_slices(by_reference(path), on_slices(case))
    require_back_in(case, path)
    if even:
        require_same_voxels(by_place(path), case.label_map)
        require_same_voxels(by_highdicom(path), case.label_map)


def require_sides(path: Path) -> None:
    """The segment called left lies on the patient's left, and its code says so."""
    array, grid = by_place(path)
    x = {n: grid.to_world(np.argwhere(array == n))[:, 0].mean() for n in (1, 2)}
    assert x[1] < x[2]  # RAS: the patient's left is negative
    segments = [item for item in pydicom.dcmread(path).SegmentSequence if item.SegmentNumber]
    told = [
        (item.SegmentLabel, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning)
        for item in segments
        for kind in item.SegmentedPropertyTypeCodeSequence
    ]
    assert told == [("kidney_left", "Left"), ("kidney_right", "Right")]


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("number", range(24))
def test_all_48_signed_permutations_of_directions(number: int, backwards: bool, tmp_path: Path) -> None:
    row, column = DIRECTIONS[number]
    step = np.cross(row, column) * (-2.5 if backwards else 2.5)
    path = series(tmp_path / "s", axes=(row, column), spacing_mm=(0.7, 1.1, 2.5), step=step)
    case = segmented(path)
    for seg_type in ("binary", "labelmap"):
        file = write(case, tmp_path / seg_type, "seg", seg_type=seg_type)["seg"]
        require_read_alike(case, file)
        require_sides(file)
    report = measured(write(case, tmp_path / "report", "sr")["sr"])
    there = [np.count_nonzero(case.label_map.array == value) for value in (1, 2)]
    volumes_ml = [report[name]["Volume"][0] for name in KIDNEYS.names.values()]
    assert volumes_ml == pytest.approx([count * 0.7 * 1.1 * 2.5 / 1000 for count in there], rel=1e-6)


@BOTH
@pytest.mark.parametrize("spacing_between", [-3.0, 0.0, 99.0])
def test_oblique_slices_in_any_order_of_files_with_any_spacing_between_slices(
    seg_type: str, spacing_between: float, tmp_path: Path
) -> None:
    array = np.zeros((6, 5, 7), np.int16)
    slices = make_slices(array, axes=OBLIQUE, spacing_mm=(0.43, 0.43, 6.5), SpacingBetweenSlices=spacing_between)
    case = segmented(save([slices[n] for n in (3, 0, 5, 1, 4, 2)], tmp_path / "s"))
    file = write(case, tmp_path, "seg", seg_type=seg_type)["seg"]
    require_read_alike(case, file)
    require_sides(file)


def test_tilted_slices_get_the_mask_on_the_slices_that_the_scanner_made(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[1, 2] = 2.0 * math.tan(math.radians(15))
    path = save(slices_of(np.zeros((40, 40, 20), np.int16), affine), tmp_path / "s")
    grid = open_series(path).grid
    index = np.indices(grid.shape).reshape(3, -1).T
    middle, radius_mm = np.array([-20.0, -16.0, 19.0]), 12.0
    away = np.linalg.norm(grid.to_world(index) - middle, axis=1).reshape(grid.shape)
    ball = LabelMap((away < radius_mm).astype(np.uint8), grid)
    case = segmented(path, ball, LabelTable({1: "spleen"}))
    file = write(case, tmp_path, "seg")["seg"]
    require_read_alike(case, file, even=False)
    # In the world it is the ball, on slices that are not above one another.
    slices = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, path.iterdir())}
    found = []
    for (sop, _), mask in by_reference(file).items():
        rows, columns = np.nonzero(mask)
        found.append(np.array(slices[sop].ImagePositionPatient, float) + np.stack([columns, rows, 0 * rows], axis=1))
    places = np.concatenate(found) * [-1, -1, 1]
    assert np.abs(places.mean(axis=0) - middle).max() < 0.2
    assert len(places) * 2.0 == pytest.approx(4 / 3 * math.pi * radius_mm**3, rel=0.02)
    frames = pydicom.dcmread(file).PerFrameFunctionalGroupsSequence
    assert len({round(float(f.PlanePositionSequence[0].ImagePositionPatient[1]), 3) for f in frames}) == len(frames)


def test_missing_slices_have_no_frames(tmp_path: Path) -> None:
    path = series(tmp_path / "s", (7, 4, 6))
    (path / "IM00003").unlink()
    case = segmented(f"{path}#series=any+gaps")
    assert case.label_map.grid.shape == (6, 4, 7)
    file = write(case, tmp_path, "seg")["seg"]
    require_read_alike(case, file, even=False)
    # At their places, too: the mask but for the slice that is not there.
    rest = case.label_map.array.copy()
    rest[:, :, 3] = 0
    require_same_voxels(by_place(file), LabelMap(rest, case.label_map.grid))


def test_frames_of_a_file_are_referred_to_by_their_numbers(tmp_path: Path) -> None:
    array = np.zeros((5, 4, 6), np.int16)
    one = enhanced(make_slices(array, slopes=[1.0] * 5), (3, 1, 0, 4, 2))
    (tmp_path / "s").mkdir()
    one.save_as(tmp_path / "s" / "a.dcm", enforce_file_format=True)
    case = segmented(tmp_path / "s")
    file = write(case, tmp_path, "seg")["seg"]
    require_read_alike(case, file)
    written = pydicom.dcmread(file)
    (reference,) = written.SourceImageSequence
    assert reference.ReferencedSOPClassUID == pydicom.uid.EnhancedCTImageStorage
    assert len(written.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1


def test_a_series_in_an_archive(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.iterdir()):
            archive.write(file, f"a/{file.name}")
    case = segmented(tmp_path / "study.zip")
    require_read_alike(case, write(case, tmp_path, "seg")["seg"])


@BOTH
def test_an_empty_mask(seg_type: str, tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    grid = open_series(path).grid
    case = segmented(path, LabelMap(np.zeros(grid.shape, np.uint8), grid))
    file = write(case, tmp_path, "seg", seg_type=seg_type)["seg"]
    assert by_reference(file) == {} or not any(mask.any() for mask in by_reference(file).values())
    assert [item.SegmentLabel for item in pydicom.dcmread(file).SegmentSequence][-2:] == ["kidney_left", "kidney_right"]


@BOTH
def test_one_slice(seg_type: str, tmp_path: Path) -> None:
    case = segmented(series(tmp_path / "s", (1, 9, 7)))
    file = write(case, tmp_path, "seg", seg_type=seg_type)["seg"]
    require_same_slices(by_reference(file), on_slices(case))
    require_same_voxels(by_place(file), case.label_map)


def classes(count: int, path: Path, absent: int = 0) -> Segmented:
    grid = open_series(path).grid
    values = np.random.default_rng(0).integers(0, count + 1, grid.shape)
    values[values == absent] = 0
    table = LabelTable({n: f"organ {n}" for n in range(1, count + 1)})
    return segmented(path, LabelMap(values.astype(np.uint16), grid), table)


@BOTH
@pytest.mark.parametrize("count", [117, 300])
def test_118_classes_and_more_than_a_byte_holds(seg_type: str, count: int, tmp_path: Path) -> None:
    case = classes(count, series(tmp_path / "s", (3, 16, 16)))
    require_read_alike(case, write(case, tmp_path, "seg", seg_type=seg_type)["seg"])


@BOTH
def test_numbers_codes_and_colours_are_the_same_where_an_organ_is_absent(seg_type: str, tmp_path: Path) -> None:
    path = series(tmp_path / "s", (3, 16, 16))
    told = []
    for absent in (0, 1, 117):
        file = write(classes(117, path, absent), tmp_path / f"{absent}", "seg", seg_type=seg_type)["seg"]
        segments = pydicom.dcmread(file).SegmentSequence
        for item in segments:
            item.pop("TrackingUID", None)  # of this mask
        told.append(segments)
        assert 117 in {int(item.SegmentNumber) for item in segments}
    assert told[0] == told[1] == told[2]
    colors = [tuple(item.RecommendedDisplayCIELabValue) for item in told[0] if item.SegmentNumber][:100]
    assert len(set(colors)) == 100


def test_label_values_far_apart_are_numbered_in_their_order(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    grid = open_series(path).grid
    values = np.random.default_rng(0).choice([0, 3, 70, 100_000], grid.shape).astype(np.uint32)
    table = LabelTable({3: "a", 70: "b", 100_000: "c"}, ignore_label=255)
    values[0, 0, 0] = 255  # nowhere
    file = write(segmented(path, LabelMap(values, grid), table), tmp_path, "seg")["seg"]
    expected = np.select([values == 3, values == 70, values == 100_000], [1, 2, 3], 0)
    require_same_voxels(by_place(file), LabelMap(expected, grid))


TUMOUR = LabelTable({1: "rim", 2: "core"}, regions={"whole": (1, 2), "core": (2,)})


def test_regions_that_overlap_have_frames_of_their_own(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    grid = open_series(path).grid
    values = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    case = segmented(path, LabelMap(values, grid), TUMOUR)
    for seg_type in ("binary", "auto"):
        file = write(case, tmp_path / seg_type, "seg", seg_type=seg_type)["seg"]
        written = pydicom.dcmread(file)
        assert (written.SegmentationType, written.SegmentsOverlap) == ("BINARY", "YES")
        assert [item.SegmentLabel for item in written.SegmentSequence] == ["whole", "core"]
        from highdicom.seg import segread

        volume = segread(file).get_volume()
        counts = [int(np.count_nonzero(volume.array[..., n])) for n in range(2)]
        assert counts == [int(np.count_nonzero(values)), int(np.count_nonzero(values == 2))]
    with pytest.raises(VolsegError, match="expected binary where regions overlap, got labelmap"):
        write(case, tmp_path / "l", "seg", seg_type="labelmap")
    assert not (tmp_path / "l").exists()


def test_auto_is_a_label_map_without_overlaps_but_binary_with_measurements(tmp_path: Path) -> None:
    case = segmented(series(tmp_path / "s"))
    alone = write(case, tmp_path / "a", "seg", seg_type="auto")["seg"]
    assert pydicom.dcmread(alone).SegmentationType == "LABELMAP"
    assert pydicom.dcmread(write(case, tmp_path / "b", "sr", seg_type="auto")["seg"]).SegmentationType == "BINARY"
    with pytest.raises(VolsegError, match="expected binary or auto with sr, got labelmap"):
        write(case, tmp_path / "c", "sr", seg_type="labelmap")


def test_values_without_a_name_are_refused(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    grid = open_series(path).grid
    with pytest.raises(DataError, match=r"label table \(1, 2\), got \[9\]"):
        segmented(path, LabelMap(np.full(grid.shape, 9, np.uint8), grid))


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    grid = Grid.from_spacing((6, 4, 5), (1.0, 1.0, 2.0))
    with pytest.raises(DataError, match="mask grid: expected that of the series"):
        segmented(series(tmp_path / "s"), sided(grid))


@BOTH
@pytest.mark.parametrize("kind", ["plain", "oblique", "tilted", "frames", "one", "empty", "regions", "classes"])
def test_dciodvfy_finds_no_error(kind: str, seg_type: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"oblique": {"axes": OBLIQUE}, "tilted": {"step": (0.0, 0.6, 2.0)}}.get(kind, {})
    path = series(tmp_path / "s", (1 if kind == "one" else 5, 8, 6), Modality="CT", **options)
    if kind == "frames":
        slices = [pydicom.dcmread(file) for file in sorted(path.iterdir())]
        path = tmp_path / "e"
        path.mkdir()
        enhanced(slices, range(5)).save_as(path / "a.dcm", enforce_file_format=True)
    grid = open_series(path).grid
    table = {"regions": TUMOUR, "classes": LabelTable({n: f"organ {n}" for n in range(1, 118)})}.get(kind, KIDNEYS)
    label_map = LabelMap(np.zeros(grid.shape, np.uint8), grid) if kind == "empty" else sided(grid)
    if kind == "regions" and seg_type == "labelmap":
        pytest.skip("regions overlap")
    valid(write(segmented(path, label_map, table), tmp_path, "seg", seg_type=seg_type)["seg"])


def with_identifiers(folder: Path, target: Path) -> Path:
    """The shared CT, whose data sets have lost their identifiers."""
    target.mkdir()
    for file in sorted(folder.iterdir()):
        one = pydicom.dcmread(file)
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID = (generate_uid(entropy_srcs=[text]) for text in ("study", "ct"))
        one.save_as(target / file.name)
    return target


def test_the_shared_ct_and_its_labels(real_data: Path, tmp_path: Path) -> None:
    path = with_identifiers(real_data / "dicom" / "ct_20_slices", tmp_path / "ct")
    grid = open_series(path).grid
    labels = read_label_map(real_data / "dicom" / "ct_20_slices_labels.nii.gz").reoriented(grid.orientation)
    table = LabelTable({n: f"organ {n}" for n in range(1, 118)})
    case = segmented(path, LabelMap(labels.array, grid), table)
    for seg_type in ("binary", "labelmap"):
        require_read_alike(case, write(case, tmp_path / seg_type, "seg", seg_type=seg_type)["seg"])


@pytest.mark.parametrize("name", ["mr_flair", "mr_hippocampus_crop"])
def test_the_shared_mr(name: str, real_data: Path, tmp_path: Path) -> None:
    case = segmented(real_data / "dicom" / name)
    file = write(case, tmp_path, "seg", seg_type="labelmap")["seg"]
    require_read_alike(case, file)
    require_sides(file)
