"""Repairing the volumes of a case: headers, channels and intensities of images, type, values and grid of label maps.

What is repaired is noted as :class:`Change`; what cannot be is refused with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.grid import GRID_TOLERANCE_MM, Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.detached_files import detached_files
from pipeline.data.label_tables import remapped
from pipeline.data.organ_masks import merge_organs
from pipeline.data.regrid import (
    SNAP_VOXELS,
    covered_share,
    doubt,
    labelled_share_inside,
    regrid_image,
    regrid_labels,
)
from pipeline.data.volume_file import (
    PICTURE_SUFFIXES,
    VolumeError,
    VolumeFile,
    join_source,
    label_array,
    refuse,
    split_source,
    volume_suffix,
)
from pipeline.data.volumes import open_header, open_volume, read_label_map, read_voxels

REPAIRABLE = (
    "affine",
    "channel_grid",
    "channels",
    "dimensions",
    "duplicate_id",
    "forms",
    "label_grid",
    "labels",
    "not_finite",
    "unknown_labels",
)
"""Problems of ``volseg check`` that a repair can solve, in most cases; all others need a person or another file."""

_MIN_COVERED = 0.5  # a channel that covers less of the first one's field of view is more likely misplaced than small
_WITH_POSITION = "headers that say where the voxels are"
_ROUNDING = 1e-3  # floats this close to a whole number were rounded on the way; interpolation leaves others
_MIN_INSIDE = 0.9  # share of labelled voxels that must lie inside the image; below, one of the headers is wrong


@dataclass(frozen=True)
class Change:
    """One thing that was repaired.

    Args:
        case: Case id.
        file: The original file.
        problem: Code of the problem; those of ``volseg check`` where it reports it.
        done: What was done.
        before: What it was like.
        after: What it is like now.
    """

    case: str
    file: str
    problem: str
    done: str
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class RepairedVolume:
    """One volume of the repaired copy.

    Args:
        source: Where it comes from: a file, or a volume of a 4D file.
        grid: Its grid, repaired.
        array: Voxels (I, J, K) to be written, or None if the file is copied as it is.
        settle: Whether the forms of its header are to say the same.
    """

    source: Path
    grid: Grid
    array: NDArray[Any] | None = None
    settle: bool = False


def open_repaired(source: Path, case: str) -> tuple[VolumeFile, list[Change]]:
    """Open a volume; a slight shear is taken out of its header, and a qform that contradicts the sform is reported.

    Returns:
        The opened file and what must be written anew because of its header.

    Raises:
        VolumeError: If the file cannot be used, or its axes are too far from right angles.
    """
    file, changes = str(split_source(source)[0]), []
    try:
        volume = open_volume(source, case=case)
    except VolumeError as error:
        if error.code != "affine":
            raise
        volume = open_volume(source, case=case, straighten=True)
        # The sentence of the refusal says what the affine was like.
        before = str(error).partition(", got ")[2].partition(". ")[0]
        changes.append(Change(case, file, "affine", "axes set at right angles", before, described(volume.grid)))
    if volume.forms_differ:
        before = f"sform, qform and pixdim up to {volume.forms_apart_mm:.3g} mm apart"
        done = "one position written into all"
        changes.append(Change(case, file, "forms", done, before, described(volume.grid)))
    return volume, changes


def described(grid: Grid) -> str:
    """A grid in words: ``20 x 24 x 16 voxels of 2 x 1.5 x 2.5 mm, LPS, from (-38, 0, 12) mm``."""
    shape, spacing = (" x ".join(f"{n:.4g}" for n in values) for values in (grid.shape, grid.spacing_mm))
    origin = ", ".join(f"{n:.4g}" for n in grid.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, {grid.orientation}, from ({origin}) mm"


def repair_images(files: CaseFiles, channels: Sequence[str]) -> tuple[list[RepairedVolume], bool, list[Change]]:
    """Read every channel of a case and repair what can be repaired.

    A 4D file of as many volumes as the dataset has channels stands for them. Voxels that are not finite get the
    smallest finite value of their channel. Channels on another grid than the first are put onto it: as they are if the
    grids hardly differ, else by linear interpolation.

    Returns:
        One part per channel, whether the first one's header says where in the world it is, and what was repaired.

    Raises:
        VolumeError: If a channel cannot be used or repaired.
    """
    sources, changes = _sources(files, channels)
    parts: list[RepairedVolume] = []
    positioned = True
    for number, source in enumerate(sources, start=1):
        volume, found = open_repaired(source, files.id)
        array, grid = read_voxels(volume, source), volume.grid
        array, bad = _finite(array, source, files.id)
        found += bad
        has_position = volume.form_codes != (0, 0)
        if parts:
            array, grid, moved = _placed(array, volume, parts[0].grid, number, positioned and has_position, files.id)
            found += moved
        else:
            positioned = has_position
        found += _joined(volume.path, files.id)
        # One volume of a 4D file cannot be copied as a file, and neither can a DICOM series.
        part = len(channels) == 1 and split_source(source)[1] == "channel"
        own_file = bool(found) or part or not volume_suffix(source)
        parts.append(RepairedVolume(source, grid, array if own_file else None, _forms_changed(found)))
        changes += found
    return parts, positioned, list(dict.fromkeys(changes))  # the header of a 4D file is repaired once


def _sources(files: CaseFiles, channels: Sequence[str]) -> tuple[tuple[Path, ...], list[Change]]:
    """The case's sources; a single file of several channels is taken apart."""
    only = files.images[0] if len(files.images) == 1 else None
    if only is None or len(channels) == 1 or split_source(only)[1]:
        return files.images, []
    try:
        volumes = open_header(only, case=files.id, straighten=True).volumes
    except VolumeError:
        return files.images, []  # refused, with its sentence, when its turn comes
    if volumes != len(channels):
        return files.images, []
    taken = tuple(join_source(only, "channel", n + 1, volumes) for n in range(volumes))
    before, after = f"one file for {volumes} channels", f"channels {', '.join(channels)}"
    return taken, [Change(files.id, str(only), "channels", "its volumes taken as channels", before, after)]


def _joined(path: Path, case: str) -> list[Change]:
    """A header whose voxels lie elsewhere is written anew: its copy alone would point to a file that is not there."""
    found = bool(detached_files(path))
    return [Change(case, str(path), "detached", "header and voxel file joined", "two files", "one file")] * found


def _finite(array: NDArray[Any], source: Path, case: str) -> tuple[NDArray[Any], list[Change]]:
    if array.dtype.kind != "f":
        return array, []
    good = np.isfinite(array)
    bad = array.size - int(np.count_nonzero(good))
    if not bad:
        return array, []
    file = split_source(source)[0]
    if bad == array.size:
        got, advice = "none", "Export the image again, or drop the case"
        raise refuse("not_finite", "image intensities", "finite numbers", got, advice, case=case, file=file)
    lowest = array[good].min()
    filled = np.where(good, array, lowest)
    before = f"{int(np.isnan(array).sum())} NaN and {int(np.isinf(array).sum())} infinite of {array.size} voxels"
    done = "replaced by the smallest finite value"
    return filled, [Change(case, str(file), "not_finite", done, before, f"{float(lowest):g} in {bad} voxels")]


def _placed(
    array: NDArray[Any], volume: VolumeFile, first: Grid, number: int, positioned: bool, case: str
) -> tuple[NDArray[Any], Grid, list[Change]]:
    """A channel on the first one's grid."""
    grid, file = volume.grid, str(volume.path)
    apart_mm = first.difference_mm(grid)
    if apart_mm <= GRID_TOLERANCE_MM:
        return array, grid, []
    if apart_mm <= SNAP_VOXELS * min(first.spacing_mm):
        done, before = "put onto the grid of channel 1", f"{apart_mm:.3g} mm apart"
        return array, first, [Change(case, file, "channel_grid", done, before, described(first))]
    nowhere = _no_position(grid, first, positioned)
    wrong = nowhere or doubt(grid, first, drawn=False)
    if wrong:
        rule, advice = _WITH_POSITION if nowhere else "a place that two headers agree on", "Export the channel again"
        raise refuse("channel_grid", f"grid of channel {number}", rule, wrong, advice, case=case, file=file)
    covered = covered_share(first, grid)
    if covered < _MIN_COVERED:
        rule, got = f"at least {_MIN_COVERED:.0%} of the field of view of channel 1", f"{covered:.0%}"
        what, advice = f"field of view of channel {number}", "Check which of the two headers is wrong"
        raise refuse("channel_grid", what, rule, got, advice, case=case, file=file)
    done = "resampled onto the grid of channel 1, linearly"
    after = described(first) + ("" if covered == 1 else f"; {covered:.0%} covered, the rest is the smallest value")
    change = Change(case, file, "channel_grid", done, described(grid), after)
    return regrid_image(array, grid, first), first, [change]


def _no_position(grid: Grid, image: Grid, positioned: bool) -> str:
    """Why one of two headers does not say where its voxels are; empty if both do."""
    if not positioned or (grid.shape == image.shape and np.array_equal(grid.affine, np.eye(4))):
        return "one without a position (form codes 0, or the identity)"
    return ""


@dataclass(frozen=True)
class LabelRules:
    """How label maps are repaired.

    Args:
        labels: The dataset's label table.
        remap: Old value → new value.
        image_grid: Label maps of the image's shape lie on its grid, whatever their header says.
        label_header: Other label maps lie where their header says, even where nothing proves it.
    """

    labels: LabelTable
    remap: Mapping[int, int] = field(default_factory=dict)
    image_grid: bool = False
    label_header: bool = False


def repair_labels(
    files: CaseFiles, image: Grid, positioned: bool, rules: LabelRules
) -> tuple[RepairedVolume | None, list[Change]]:
    """Read the reference of a case and repair what can be repaired.

    Args:
        files: The case; organ masks are merged.
        image: The image's grid, repaired.
        positioned: Whether the image's header says where in the world it is.
        rules: The label table, replacements, and what to trust.

    Returns:
        The label map, None without one, and what was repaired.

    Raises:
        VolumeError: If a file cannot be used or repaired.
        DataError: If values are unknown, or image and label map do not belong together.
    """
    if not files.labelled:
        return None, []
    if files.label is None:
        return _repair_organs(files, image, positioned, rules)
    path = files.label
    label_map, has_position, changes = _read(path, files.id, rules)
    unknown = rules.labels.unknown(label_map.values())
    if unknown:
        advice = f"Say what they become: --remap={unknown[0]}=0 or --remap table.csv; or add them to the label names"
        rule = "only those of the label table"
        raise DataError(sentence("label values", rule, listed(unknown), advice, case=files.id, file=path))
    label_map, moved = _placed_labels(label_map, has_position and positioned, image, path, files.id, rules)
    changes += moved
    changes += _joined(path, files.id)
    array = label_map.array if changes or not volume_suffix(path) else None  # DICOM labels cannot be copied
    return RepairedVolume(path, label_map.grid, array, _forms_changed(changes)), changes


def _forms_changed(changes: Sequence[Change]) -> bool:
    return any(change.problem == "forms" for change in changes)


def _repair_organs(
    files: CaseFiles, image: Grid, positioned: bool, rules: LabelRules
) -> tuple[RepairedVolume | None, list[Change]]:
    """Organ masks as one label map."""
    changes: list[Change] = []
    places: list[bool] = []

    def read(path: Path, *, case: str | None, placed: bool = False) -> LabelMap:
        mask, has_position, found = _read(path, files.id, LabelRules(rules.labels))
        changes.extend(found)
        places.append(has_position and positioned)
        if placed:
            mask, moved = _placed_labels(mask, places[-1], image, path, files.id, rules)
            changes.extend(moved)
        return mask

    try:
        merged, shared = merge_organs(files.organs, soft=files.soft, case=files.id, read=read)
    except DataError as error:
        if files.soft or isinstance(error, VolumeError):
            raise
        changes.clear()  # every mask has its own grid, so each is brought to the image's by itself
        merged, shared = merge_organs(files.organs, case=files.id, read=partial(read, placed=True))
    folder = files.organs[0][1].parent
    merged, moved = _placed_labels(merged, all(places), image, folder, files.id, rules)
    after = "one label map" + (f"; {shared} voxels of several masks went to the later one" if shared else "")
    done, before = "organ masks merged", f"{len(files.organs)} masks"
    changes += [*moved, Change(files.id, str(folder), "organs", done, before, after)]
    part = RepairedVolume(files.organs[0][1], merged.grid, merged.array, _forms_changed(changes))
    return part, list(dict.fromkeys(changes))


def _read(path: Path, case: str, rules: LabelRules) -> tuple[LabelMap, bool, list[Change]]:
    """Labels, whether their header says where in the world they are, and what was repaired."""
    if volume_suffix(path) in PICTURE_SUFFIXES:  # these may be greys in colour, but neither sheared nor misplaced
        label_map, changes, has_position = read_label_map(path, case=case), list[Change](), True
        array: NDArray[Any] = label_map.array
        grid = label_map.grid
    else:
        volume, changes = open_repaired(path, case)
        array, grid = read_voxels(volume, path), volume.grid
        has_position = volume.form_codes != (0, 0)
    path, stored = split_source(path)[0], array.dtype
    if stored.kind == "f" and np.isfinite(array).all():
        whole = np.rint(array)
        array = whole if np.abs(array - whole).max() <= _ROUNDING else array  # others are refused below
    labels = label_array(array, path, case=case, signed=True)  # negative values are unknown ones
    if rules.remap:
        labels, replaced = remapped(labels, rules.remap)
        if replaced:
            before = ", ".join(f"{value} in {count} voxels" for value, count in replaced.items())
            after = ", ".join(f"{value} is {rules.remap[value]}" for value in replaced)
            changes.append(Change(case, str(path), "unknown_labels", "values replaced as asked", before, after))
    if stored.kind == "f":
        small = np.min_scalar_type(int(labels.max()))
        changes.append(Change(case, str(path), "float_labels", "stored as whole numbers", str(stored), str(small)))
    return LabelMap(labels, grid), has_position, changes


def _placed_labels(
    label_map: LabelMap, positioned: bool, image: Grid, path: Path, case: str, rules: LabelRules
) -> tuple[LabelMap, list[Change]]:
    """The label map on the image's grid."""
    grid = label_map.grid
    apart_mm = image.difference_mm(grid)
    if apart_mm <= GRID_TOLERANCE_MM:
        return label_map, []
    same_shape = grid.shape == image.shape
    if same_shape and (rules.image_grid or apart_mm <= SNAP_VOXELS * min(image.spacing_mm)):
        done = "put onto the image's grid" + (", as asked" if rules.image_grid else "")
        change = Change(case, str(path), "label_grid", done, f"{apart_mm:.3g} mm apart", described(image))
        return LabelMap(label_map.array, image), [change]
    advice = "If its voxels are those of the image, add --image-grid" if same_shape else "Export it again"
    # Without a position, moving the label map by its header would move it to a place that no one meant.
    nowhere = _no_position(grid, image, positioned)
    if nowhere:
        raise refuse("label_grid", "label map and image", _WITH_POSITION, nowhere, advice, case=case, file=path)
    trusted = rules.label_header or not label_map.array.any()  # background is background wherever it lies
    wrong = "" if trusted else doubt(grid, image, drawn=False)
    inside = labelled_share_inside(label_map, image)
    if inside < _MIN_INSIDE and not wrong:
        rule, got = f"at least {_MIN_INSIDE:.0%} of the labelled voxels inside the image", f"{inside:.0%}"
        advice = f"Check which of the two headers is wrong. {advice}"
        raise refuse("label_grid", "label map grid", rule, got, advice, case=case, file=path)
    wrong = wrong or ("" if trusted else doubt(grid, image, drawn=True))
    if wrong:
        advice = f"{advice}; if its header is right, add --label-header"
        rule = "the image's voxels in another order or number, or its field of view"
        raise refuse("label_grid", "label map grid", rule, wrong, advice, case=case, file=path)
    turned = label_map.reoriented(image.orientation)
    if image.difference_mm(turned.grid) <= SNAP_VOXELS * min(image.spacing_mm):
        label_map = LabelMap(turned.array, image)  # then no vote moves a voxel
    result = regrid_labels(label_map, image)
    # Organs smaller than a voxel of the image may lose every vote.
    lost = sorted({*label_map.values()} - {*result.values()} - {0})
    after = described(image) + (f"; {1 - inside:.2%} of the labelled voxels were outside" if inside < 1 else "")
    after += f"; too small for it, gone: label {listed(lost)}" if lost else ""
    done = "resampled onto the image's grid, linear vote per label value"
    return result, [Change(case, str(path), "label_grid", done, described(grid), after)]
