"""For any NIfTI header, a voxel lies where SimpleITK has it, or the file is refused, or ``volseg check`` reports it."""

from __future__ import annotations

import gzip
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from pipeline.core.grid import corner_distance_mm
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.check import check_case
from pipeline.data.dataset import CaseFiles
from pipeline.data.itk_open import itk_affine
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_volume, write_label_map
from tests.helpers.effort import tries

_LABELS = LabelTable({1: "organ"})
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
_REPORTED = {"forms", "form_codes", "axes"}


@dataclass
class Made:
    """A file, the same as NIfTI-1, which SimpleITK can read, and whether all parts of its header say the same."""

    path: Path
    twin: Path
    agrees: bool


def _direction(rng: np.random.Generator) -> np.ndarray:
    """Along the body axes, slightly tilted, or anyhow; some are slightly sheared."""
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    kind = rng.integers(4)
    if kind == 1:
        axes = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix() @ axes
    elif kind == 2:
        axes = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix() * rng.choice([-1.0, 1.0])
    elif kind == 3 and rng.random() < 0.3:
        axes = axes @ (np.eye(3) + np.triu(rng.normal(0, 10.0 ** rng.uniform(-7, -1), (3, 3)), 1))
    return axes


def _steps(rng: np.random.Generator, steps: np.ndarray) -> tuple[np.ndarray, bool]:
    """Steps for pixdim, and whether they are those of the forms."""
    kind = rng.integers(18)
    wrong = {
        0: steps * rng.uniform(0.5, 2, 3),
        1: np.round(steps, 2),
        2: steps * rng.choice([-1.0, 1.0], 3),
        3: np.where(rng.random(3) < 0.5, 0, steps),
        4: np.where(rng.random(3) < 0.5, np.nan, steps),
        5: np.ones(3),
    }
    return wrong.get(int(kind), steps), int(kind) not in wrong


def _write(rng: np.random.Generator, folder: Path) -> Made:
    """A file of a random version, byte order, ending, shape, unit, forms and codes."""
    order = str(rng.choice(["<", ">"]))
    header = nib.Nifti1Header(endianness=order)
    shape = tuple(int(n) for n in rng.integers(1, 7, int(rng.choice([2, 3, 3, 3, 3, 4]))))
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    unit = int(rng.choice([0, 1, 2, 2, 2, 3, 4, 7]))
    header["xyzt_units"] = unit + int(rng.choice([0, 8, 16]))
    affine = np.eye(4)
    steps = 10.0 ** rng.uniform(-1, 1, 3)
    affine[:3, :3] = _direction(rng) * steps
    affine[:3, 3] = rng.normal(0, 100, 3)
    moved = affine.copy()
    # A file of two axes has no place in the body for other programs, and sheared forms have no quaternion.
    sheared = np.abs((affine[:3, :3] / steps).T @ (affine[:3, :3] / steps) - np.eye(3)).max() > 1e-9
    agrees = bool(rng.random() < 0.7)
    if not agrees:
        moved[:3, 3] += rng.normal(0, 10.0 ** rng.uniform(-4, 2), 3)
        moved[:3, :3] = Rotation.from_rotvec(rng.normal(0, 10.0 ** rng.uniform(-6, 0), 3)).as_matrix() @ moved[:3, :3]
    mm = _MM.get(unit, 1.0)
    in_unit = np.diag([1 / mm, 1 / mm, 1 / mm, 1.0])
    header.set_qform(in_unit @ moved, 1, strip_shears=True)
    header.set_sform(in_unit @ affine, 1)
    pixdim, same = _steps(rng, np.linalg.norm(affine[:3, :3], axis=0) / mm)
    header["pixdim"][1:4] = pixdim
    if rng.random() < 0.05:
        header["pixdim"][0] = rng.choice([0, 2, -1, 1])
        agrees = False
    if rng.random() < 0.03:
        header["quatern_b"] = rng.uniform(-1.5, 1.5)
        agrees = False
    usual = rng.random() < 0.9
    codes = rng.integers(0, 6, 2) if usual else rng.choice([-1, 0, 1, 2, 6, 99], 2)
    header["sform_code"], header["qform_code"] = codes
    ending = str(rng.choice([".nii", ".nii.gz", ".hdr"], p=[0.57, 0.4, 0.03]))
    path, voxels = folder / f"v{ending}", rng.integers(0, 2, int(np.prod(shape)), dtype=np.uint8).tobytes()
    _store(path, header, voxels)
    twin = path
    if rng.random() < 0.2 and ending != ".hdr":
        twin = folder / "twin.nii"
        _store(twin, header, voxels)
        second: Any = nib.Nifti2Header(endianness=order)
        for name in set(header.keys()) & set(second.keys()) - {"sizeof_hdr", "magic"}:
            second[name] = header[name]
        _store(path, second, voxels)
    return Made(path, twin, bool(agrees and same and usual and codes.max() > 0 and len(shape) > 2 and not sheared))


def _store(path: Path, header: Any, voxels: bytes) -> None:
    if path.suffix == ".hdr":
        header["magic"], header["vox_offset"] = b"ni1", 0
        path.write_bytes(header.binaryblock)
        path.with_suffix(".img").write_bytes(voxels)
        return
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    content = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def _itk(path: Path) -> np.ndarray | None:
    """SimpleITK's affine; None if it reads no such file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    read = {"size": reader.GetSize(), "spacing": reader.GetSpacing(), "origin": reader.GetOrigin()}
    return itk_affine({**read, "direction": reader.GetDirection()})


def _apart_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance; of a file of two axes SimpleITK keeps two of the world."""
    if len(shape) < 3:
        other = np.vstack([other[:2], one[2:]])
    return corner_distance_mm(one, other, (*shape, 1)[:3])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_world_coordinates_are_those_of_simpleitk_or_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("nibabel.global"), "disabled", True)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    number = tries(200, 10_000)
    seen = dict.fromkeys(("refused", "equal", "reported", "unread by SimpleITK"), 0)
    for seed in range(number):
        made = _write(np.random.default_rng(seed), tmp_path)
        try:
            grid = open_volume(made.path).grid
        except VolumeError:
            seen["refused"] += 1
            continue
        facts = check_case(CaseFiles("c", (made.path,)), _LABELS, 1)
        reported = {problem.severity for problem in facts.problems if problem.code in _REPORTED}
        itk = _itk(made.twin)
        shape = nib.load(made.path).shape
        if itk is None:
            seen["unread by SimpleITK"] += 1
        elif reported:
            seen["reported"] += 1
        else:
            assert _apart_mm(grid.affine, itk, shape) <= 1e-3, f"seed {seed}"
            seen["equal"] += 1
        # What agrees in all its parts is no false alarm, whatever single precision does to quaternions.
        assert not (made.agrees and "warning" in reported), f"seed {seed}: {facts.problems}"
        copy = tmp_path / "mask.nii.gz"
        write_label_map(LabelMap(np.ones(grid.shape, np.uint8), grid), copy, like=made.path)
        assert grid.matches(open_volume(copy).grid), f"seed {seed}"
        # Masks have three axes; ITK gives a file of two another direction. Where all agrees both forms are written,
        # and a quaternion of single precision is not exact.
        if len(shape) > 2 and itk is not None and (there := _itk(copy)) is not None:
            limit = 1e-3 if reported else 0.1 * min(grid.spacing_mm)
            assert _apart_mm(itk, there, shape) <= limit, f"seed {seed}"
    assert seen["equal"] > number // 4
    assert seen["reported"] > number // 10
