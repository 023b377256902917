"""Where a NIfTI header puts its voxels, and where other programs put them: forms, their codes, steps and unit.

Of the two forms the sform counts here, then the qform; without a form code above 0 the place is nibabel's: the middle
of the volume at the world's origin, the first axis to the patient's left. ITK (3D Slicer, ITK-SNAP, SimpleITK, nnU-Net)
takes the sform where its code is 1 or the qform has none, else the qform, and the length of the steps from ``pixdim``
in any case; without a code its place is another one. A file whose parts agree lies at one place for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import GRID_TOLERANCE_MM, Grid, corner_distance_mm
from pipeline.data.nibabel_alone import nib
from pipeline.data.volume_file import Doubt

_UNIT_BITS = 7  # of xyzt_units; the others are of time
_UNITS = {1: ("meter", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
_HIGHEST_CODE = 5
_RIGHT_ANGLE = 1e-6  # cosine; ITK passes over an sform with another angle where there is a qform
_HALF_TURN = 1e-7  # of nifti1_io
_LEVEL = 1e-3  # rise of a slice per voxel; less moves nothing within it
_FORM_FIELDS = (
    *("sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)

Affine = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Forms:
    """Where a header puts its voxels.

    Args:
        affine: Voxel to RAS+ world in mm, by the form that counts.
        codes: (sform_code, qform_code) as they are stored.
        counts: Name of the part that counts.
        others: Name of another part and the affine in mm that it gives; None if it is damaged.
        itk: Those of the others that ITK may take instead.
        axes: Number of the file's axes.
    """

    affine: Affine
    codes: tuple[int, int]
    counts: str
    others: dict[str, Affine | None]
    itk: tuple[str, ...]
    axes: int

    def apart_mm(self, grid: Grid) -> float:
        """How far the others move a voxel at most; infinite if one is damaged."""
        return max((self._moved_mm(name, grid) for name in self.others), default=0.0)

    def doubts(self, path: Path, grid: Grid) -> tuple[Doubt, ...]:
        """Why other programs may place the volume elsewhere."""
        what = f"{path}: sform_code and qform_code"
        got = f"{self.codes[0]} and {self.codes[1]}"
        if max(self.codes) <= 0:
            advice = (
                "Programs place such a file differently, and left and right may be swapped; check an organ whose side "
                "you know"
            )
            return (Doubt("warning", "form_codes", what, "one above 0", got, advice),)
        if max(self.codes) > _HIGHEST_CODE:
            advice = "A code above 0 counts here and in ITK, other programs pass over it; correct the header"
            return (Doubt("warning", "form_codes", what, f"codes up to {_HIGHEST_CODE}", got, advice),)
        if self.axes < 3 and np.abs(self.affine[2, :2]).max() > _LEVEL * min(grid.spacing_mm):
            rule, advice = "three, or a slice across the body", "ITK keeps two axes of the world for it; export three"
            return (Doubt("warning", "axes", f"{path}: axes of the file", rule, "two of another slice", advice),)
        moved = {name: self._moved_mm(name, grid) for name in self.others}
        if not moved:
            return ()
        far = max(moved, key=moved.__getitem__)
        if moved[far] > min(grid.spacing_mm) / 2:
            advice = f"The {self.counts} counts here, the {far} in other programs; volseg check --fix makes them equal"
            return (self._doubt("warning", path, far, moved[far], advice),)
        # ITK takes other parts of few headers only, so that rounding in all others needs no word.
        far = max(self.itk, key=moved.__getitem__, default="")
        if not far or moved[far] <= GRID_TOLERANCE_MM:
            return ()
        advice = f"Less than half a voxel; the {self.counts} counts here, the {far} in ITK"
        return (self._doubt("note", path, far, moved[far], advice),)

    def _moved_mm(self, name: str, grid: Grid) -> float:
        other = self.others[name]
        if other is None:
            return float("inf")
        return corner_distance_mm(self.affine, other, grid.shape)

    def _doubt(self, severity: Any, path: Path, other: str, apart_mm: float, advice: str) -> Doubt:
        got = f"positions up to {apart_mm:.3g} mm apart"
        return Doubt(
            severity, "forms", f"{path}: {self.counts} and {other}", "one position for every voxel", got, advice
        )


def read_forms(image: Any) -> Forms:
    """Forms of a nibabel image.

    Raises:
        nib.spatialimages.HeaderDataError, ValueError: If the qform counts and is damaged.
    """
    header, stored = image.header, stored_header(image)
    codes = (int(stored["sform_code"]), int(stored["qform_code"]))
    mm = unit_of(stored)[1]
    axes = min(3, len(header.get_data_shape()))
    steps = stored["pixdim"][1:4].astype(np.float64)
    steps[~np.isfinite(steps) | (steps == 0)] = 1.0  # as nibabel and ITK have it
    if max(codes) <= 0:
        return Forms(_stretched(header.get_base_affine(), mm), codes, "pixdim", {}, (), axes)
    # nibabel takes steps without their sign, other programs see a mirror image.
    sign = np.sign(steps)
    others: dict[str, Affine | None] = {}
    if codes[0] <= 0:
        affine = _qform(header, steps)
        if steps.min() < 0:
            others["pixdim"] = _stretched(affine, mm, sign)
        return Forms(_stretched(affine, mm), codes, "qform", others, tuple(others), axes)
    affine = header.get_sform()
    with np.errstate(all="ignore"):  # what is no grid is refused later
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        directions = affine[:3, :3] / lengths
        straight = bool(np.abs(directions.T @ directions - np.eye(3)).max() <= _RIGHT_ANGLE)
        stepped = _stretched(affine, mm, steps / lengths)
    if not straight and np.isfinite(directions).all():  # ITK sets the axes at right angles, if it takes such a form
        left, _, right = np.linalg.svd(directions)
        stepped[:3, :3] = left @ right * steps * mm
    others["pixdim"] = stepped
    itk: tuple[str, ...] = ("pixdim",)
    if codes[1] > 0:
        try:
            others["qform"] = _stretched(_qform(header, steps), mm, sign)
        except (nib.spatialimages.HeaderDataError, ValueError):  # no rotation has such a quaternion
            others["qform"] = None
        itk = ("pixdim",) if codes[0] == 1 and straight else ("qform",) if straight else ("pixdim", "qform")
    return Forms(_stretched(affine, mm), codes, "sform", others, itk, axes)


def _qform(header: Any, steps: NDArray[np.float64]) -> Affine:
    """Affine of the quaternion, with steps above 0, as NIfTI's own library has it.

    Its first part is the root of what the other three leave of 1. Near 0 that is the rounding of three numbers of
    single precision: the library takes less than 1e-7 for half a turn, nibabel less than 3.6e-7.

    Raises:
        nib.spatialimages.HeaderDataError, ValueError: If no rotation has such a quaternion.
    """
    quaternion = header.get_qform_quaternion()
    rest = 1.0 - float(quaternion[1:] @ quaternion[1:])
    if rest < 10 * _HALF_TURN:  # all others are as nibabel has them
        quaternion[0] = 0.0 if rest < _HALF_TURN else rest**0.5
    affine = np.eye(4)
    affine[:3, :3] = (
        nib.quaternions.quat2mat(quaternion) * np.abs(steps) * [1.0, 1.0, -1.0 if header["pixdim"][0] < 0 else 1.0]
    )
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _stretched(affine: Affine, mm: float, factors: NDArray[np.float64] | float = 1.0) -> Affine:
    """An affine in another unit, its steps stretched."""
    result = np.array(affine, dtype=np.float64)
    result[:3, :3] *= factors
    result[:3] *= mm
    return result


def stored_header(image: Any) -> Any:
    """The header as it is stored: nibabel corrects codes and steps that are out of range, which ITK does not."""
    kind = type(image.header)
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as stream:
        content = stream.read(kind.template_dtype.itemsize)
    return kind(content, endianness=image.header.endianness, check=False)


def copy_forms(header: Any, stored: Any) -> None:
    """Put the forms, steps and unit of a stored header into another one, as they are."""
    for name in _FORM_FIELDS:
        header[name] = stored[name]
    steps = stored["pixdim"][:4]
    header["pixdim"][:4] = np.where(np.isfinite(steps), steps, 1.0)  # that of an axis which only the copy has, say
    header["xyzt_units"] = int(stored["xyzt_units"]) & _UNIT_BITS


def unit_of(stored: Any) -> tuple[str, float]:
    """Name of a header's spatial unit, as nibabel has it, and its length in mm; without a known one mm, as in ITK."""
    return _UNITS.get(int(stored["xyzt_units"]) & _UNIT_BITS, _UNITS[2])
