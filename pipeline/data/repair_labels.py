"""Repairing the label map of a case: its type, its values, its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import GRID_TOLERANCE_MM, DataError, Grid, LabelMap, LabelTable, sentence
from pipeline.core.errors import listed
from pipeline.data.case_files import CaseFiles
from pipeline.data.detached import detached_files
from pipeline.data.label_values import label_array
from pipeline.data.organ_masks import merge_organs
from pipeline.data.regrid import labelled_share_inside, regrid_labels
from pipeline.data.remap import remapped
from pipeline.data.repair_parts import SNAP_VOXELS, Change, Part, described, open_repaired
from pipeline.data.volume_file import PICTURE_SUFFIXES, VolumeError, refuse, volume_suffix
from pipeline.data.volumes import read_label_map, read_voxels

__all__ = ["LabelRules", "repair_labels"]

_ROUNDING = 1e-3  # floats this close to a whole number were rounded on the way; interpolation leaves others
_MIN_INSIDE = 0.9  # share of labelled voxels that must lie inside the image; below, one of the headers is wrong


@dataclass(frozen=True)
class LabelRules:
    """How label maps are repaired.

    Args:
        labels: The dataset's label table.
        remap: Old value → new value.
        image_grid: Label maps of the image's shape lie on its grid, whatever their header says.
    """

    labels: LabelTable
    remap: Mapping[int, int] = field(default_factory=dict)
    image_grid: bool = False


def repair_labels(
    files: CaseFiles, image: Grid, positioned: bool, rules: LabelRules
) -> tuple[Part | None, list[Change]]:
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
    label_map, moved = _placed(label_map, has_position and positioned, image, path, files.id, rules)
    changes += moved
    if detached_files(path):  # a copy of the header alone would point to a file that is not there
        changes.append(Change(files.id, str(path), "detached", "header and voxel file joined", "two files", "one file"))
    return Part(path, label_map.grid, label_map.array if changes else None), changes


def _repair_organs(
    files: CaseFiles, image: Grid, positioned: bool, rules: LabelRules
) -> tuple[Part | None, list[Change]]:
    """Organ masks as one label map."""
    changes: list[Change] = []
    places: list[bool] = []

    def read(path: Path, *, case: str | None) -> LabelMap:
        mask, has_position, found = _read(path, files.id, LabelRules(rules.labels))
        changes.extend(found)
        places.append(has_position and positioned)
        return mask

    def read_placed(path: Path, *, case: str | None) -> LabelMap:
        mask, moved = _placed(read(path, case=case), places[-1], image, path, files.id, rules)
        changes.extend(moved)
        return mask

    try:
        merged, shared = merge_organs(files.organs, soft=files.soft, case=files.id, read=read)
    except VolumeError:
        raise
    except DataError:
        if files.soft:
            raise
        changes.clear()  # every mask has its own grid, so each is brought to the image's by itself
        merged, shared = merge_organs(files.organs, case=files.id, read=read_placed)
    folder = files.organs[0][1].parent
    merged, moved = _placed(merged, all(places), image, folder, files.id, rules)
    after = "one label map" + (f"; {shared} voxels of several masks went to the later one" if shared else "")
    done, before = "organ masks merged", f"{len(files.organs)} masks"
    changes += [*moved, Change(files.id, str(folder), "organs", done, before, after)]
    return Part(files.organs[0][1], merged.grid, merged.array), list(dict.fromkeys(changes))


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
    stored = array.dtype
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


def _placed(
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
    if not positioned or (same_shape and np.array_equal(grid.affine, np.eye(4))):
        rule, got = "headers that say where the voxels are", "one without a position (form codes 0, or the identity)"
        raise refuse("label_grid", "label map and image", rule, got, advice, case=case, file=path)
    inside = labelled_share_inside(label_map, image)
    if inside < _MIN_INSIDE:
        rule, got = f"at least {_MIN_INSIDE:.0%} of the labelled voxels inside the image", f"{inside:.0%}"
        advice = f"Check which of the two headers is wrong. {advice}"
        raise refuse("label_grid", "label map grid", rule, got, advice, case=case, file=path)
    result = regrid_labels(label_map, image)
    lost = sorted({*label_map.values()} - {*result.values()} - {0})
    after = described(image) + (f"; {1 - inside:.2%} of the labelled voxels were outside" if inside < 1 else "")
    after += f"; too small for it, gone: label {listed(lost)}" if lost else ""
    done = "resampled onto the image's grid, linear vote per label value"
    return result, [Change(case, str(path), "label_grid", done, described(grid), after)]
