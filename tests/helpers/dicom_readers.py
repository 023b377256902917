"""DICOM objects as other programs read them: by rules of their own, without the code that wrote them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from generated_dicom import make_slices, save
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from skimage.draw import polygon2mask

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.dicom_labels import Meaning, open_labels
from pipeline.data.legend import target_colors
from pipeline.data.volume_file import labels_source, series_source
from pipeline.data.volumes import read_dicom_labels
from pipeline.export.dicom_objects import DicomOutput, write_objects
from pipeline.export.dicom_source import Segmented, SourceSeries

Place = tuple[str, int]
"""SOPInstanceUID of an image, and number of its frame from 1."""

KIDNEYS = LabelTable({1: "kidney_left", 2: "kidney_right"})


def series(folder: Path, shape: tuple[int, int, int] = (5, 4, 6), **options: Any) -> Path:
    """A CT series of noise, (K, J, I)."""
    array = np.random.default_rng(5).integers(-1000, 3000, shape).astype(np.int16)
    options = {"slopes": [1.0] * shape[0], "intercepts": [0.0] * shape[0]} | options
    return save(make_slices(array, **options), folder)


def sided(grid: Grid) -> LabelMap:
    """Some voxels of the patient's left half are 1, of the right half 2."""
    index = np.indices(grid.shape).reshape(3, -1).T
    x = grid.to_world(index)[:, 0].reshape(grid.shape)  # RAS: the patient's right is positive
    found = np.where(x < np.median(x), 1, 2).astype(np.uint8)
    found[np.random.default_rng(7).random(grid.shape) < 0.5] = 0
    return LabelMap(found, grid)


def segmented(
    source: Path | str, label_map: LabelMap | None = None, table: LabelTable = KIDNEYS, **options: Any
) -> Segmented:
    """A series and its mask, by default the one of the patient's sides."""
    opened = open_series(source)
    label_map = sided(opened.grid) if label_map is None else label_map
    return Segmented(SourceSeries.of(opened), label_map, table, target_colors(table), opened.image(), **options)


def write(case: Segmented, folder: Path, *kinds: str, **options: Any) -> dict[str, Path]:
    """Objects of some kinds, written as commands do."""
    output = DicomOutput(kinds, **options)
    files = output.files(folder, "case")
    write_objects(case, files, output)
    return files


def frames(path: Path) -> list[tuple[int, NDArray[np.bool_], Dataset]]:
    """Segment number, mask (rows, columns) and functional groups of every frame; of a label map several per frame."""
    found = []
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if dataset.SegmentationType == "LABELMAP":
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        for frame, groups in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
            found += [(int(n), frame == n, groups) for n in np.unique(frame) if n]
        return found
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    size = dataset.Rows * dataset.Columns
    for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        held = groups if "SegmentIdentificationSequence" in groups else shared
        segment = int(held.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        mask = bits[number * size : (number + 1) * size].reshape(dataset.Rows, dataset.Columns) > 0
        found.append((segment, mask, groups))
    return found


def by_place(path: Path) -> tuple[NDArray[np.int64], Grid]:
    """As dcmqi and 3D Slicer read a segmentation: frames go where their positions are, whatever they refer to.

    Directions are those of rows and columns and what is at right angles to both; slices are as far apart as the two
    that are closest, and the frame that lies lowest is the first.

    Reference: dcmqi, Dicom2ItkConverterBase.cpp (getImageDirections, computeVolumeExtent).
    """
    dataset, found = pydicom.dcmread(path), frames(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    measures = shared.PixelMeasuresSequence[0]
    down, across = (float(mm) for mm in measures.PixelSpacing)
    positions = np.array([g.PlanePositionSequence[0].ImagePositionPatient for _, _, g in found], float)
    heights = positions @ normal
    apart = np.diff(np.unique(heights.round(4)))
    step = float(apart.min()) if len(apart) else float(measures.get("SpacingBetweenSlices", measures.SliceThickness))
    places = np.rint((heights - heights.min()) / step).astype(int)
    array = np.zeros((dataset.Columns, dataset.Rows, places.max() + 1), np.int64)
    for (segment, mask, _), place in zip(found, places, strict=True):
        array[..., place][mask.T] = segment
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * across, column * down, normal * step], axis=1)
    affine[:3, 3] = positions[heights.argmin()]
    return array, Grid(array.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def by_reference(path: Path) -> dict[Place, NDArray[np.int64]]:
    """As viewers in a browser read it: each frame lies over the image that it refers to, pixel by pixel."""
    found: dict[Place, NDArray[np.int64]] = {}
    for segment, mask, groups in frames(path):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        place = str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber", 1))
        found.setdefault(place, np.zeros(mask.shape, np.int64))[mask] = segment
    return found


def by_highdicom(path: Path) -> tuple[NDArray[np.int64], Grid]:
    """As highdicom reads a segmentation whose slices are evenly apart."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    return volume.array.astype(np.int64), Grid(volume.spatial_shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine)


def require_back_in(case: Segmented, path: Path) -> None:
    """As a label of a dataset, which is put on the image's voxels: the mask, on the slices that there are."""
    opened = case.source.opened
    image = series_source(opened.path, allow_gaps=not opened.stack.regular)
    meaning = Meaning(case.table, (image,)).to_json(path.parent)
    found = read_dicom_labels(open_labels(labels_source(path, meaning), case="p1")).label_map
    assert found.grid.matches(case.label_map.grid, 1e-6)
    np.testing.assert_array_equal(found.array, opened.from_slices(opened.on_slices(case.label_map)))


def measured(path: Path) -> dict[str, dict[str, tuple[float, str]]]:
    """Organ → name of a number → number and unit, as highdicom reads a report."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for group in hd.sr.srread(path).content.get_volumetric_roi_measurement_groups():
        numbers = {m.name.meaning: (float(m.value), m.unit.value) for m in group.get_measurements()}
        found[group.tracking_identifier] = numbers
    return found


def require_same_voxels(read: tuple[NDArray[np.int64], Grid], label_map: LabelMap) -> None:
    """Every voxel that was read stands where the mask has its value, and none of the mask is missing."""
    array, grid = read
    index = np.argwhere(array)
    place = label_map.grid.to_voxel(grid.to_world(index))
    nearest = np.rint(place).astype(int)
    assert np.abs(place - nearest).max(initial=0) < 1e-3
    np.testing.assert_array_equal(label_map.array[tuple(nearest.T)], array[tuple(index.T)])
    assert np.count_nonzero(array) == np.count_nonzero(label_map.array)


def on_slices(case: Segmented) -> dict[Place, NDArray[np.int64]]:
    """What :func:`by_reference` must find: the mask on the slices of its series, those without a voxel left out."""
    multi = case.source.multi_frame
    labels = case.source.opened.on_slices(case.label_map)
    planes = zip(case.source.planes, labels, strict=True)
    return {(plane.sop, plane.frame + 1 if multi else 1): found.astype(int) for plane, found in planes if found.any()}


def require_same_slices(read: dict[Place, NDArray[np.int64]], expected: dict[Place, NDArray[np.int64]]) -> None:
    """The same masks on the same images; slices without a voxel do not count."""
    there = {place: mask for place, mask in read.items() if mask.any()}
    assert set(there) == set(expected)
    for place, mask in there.items():
        np.testing.assert_array_equal(mask, expected[place])


def contoured(path: Path, slices: Sequence[Dataset], number: int) -> dict[Place, NDArray[np.bool_]]:
    """A structure's masks on images of one frame, by scikit-image's polygons; nested and joined areas by even-odd."""
    images = {one.SOPInstanceUID: one for one in slices}
    found: dict[Place, NDArray[np.bool_]] = {}
    contours = next(c for c in pydicom.dcmread(path).ROIContourSequence if c.ReferencedROINumber == number)
    for contour in contours.get("ContourSequence", ()):
        one = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        row, column = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
        away = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(one.ImagePositionPatient, float)
        assert np.abs(away @ np.cross(row, column)).max() < 1e-3
        down, across = (float(mm) for mm in one.PixelSpacing)
        points = np.stack([away @ column / down, away @ row / across], axis=1)
        mask = polygon2mask((one.Rows, one.Columns), points)
        place = one.SOPInstanceUID, 1
        found[place] = found.get(place, np.zeros_like(mask)) ^ mask
    return found


def valid(path: Path) -> None:
    """Held against the standard by dciodvfy; skipped where it is not installed, or does not know the object."""
    beside = Path(sys.executable).with_name("dciodvfy")
    tool = shutil.which("dciodvfy") or (str(beside) if beside.exists() else None)
    if tool is None:
        pytest.skip("needs dciodvfy: apt install dicom3tools")
    done = subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if "Information Object Not found" in said:
        pytest.skip("this dciodvfy is older than label maps in DICOM")
    assert [line for line in said.splitlines() if line.startswith(("Error", "Abort"))] == []
