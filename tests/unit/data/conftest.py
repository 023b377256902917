"""Hand-made volume files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Write = Callable[..., Path]


@pytest.fixture
def nifti(tmp_path: Path) -> Write:
    """Write ``tmp_path / name``: any array, any affine (also a wrong one), form codes 1 and 1, equal forms."""

    def write(
        name: str,
        array: Any,
        affine: Any = None,
        *,
        codes: tuple[int, int] = (1, 1),
        scale: tuple[float, float] = (1, 0),
        qform: Any = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.asarray(array)
        affine = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
        image = nib.Nifti1Image(array, np.eye(4), dtype=array.dtype)
        image.header.set_slope_inter(*scale)
        nib.save(image, path)
        if not np.array_equal(affine, np.eye(4)) or codes != (1, 1) or qform is not None:
            _patch_affine(path, affine, codes, affine if qform is None else qform)
        return path

    return write


def _patch_affine(path: Path, affine: Any, codes: tuple[int, int], qform: Any) -> None:
    """Put the affine into the sform behind nibabel's back, which would refuse some of them."""
    opener = nib.openers.ImageOpener
    with opener(path, "rb") as stream:
        content = bytearray(stream.read())
    header = nib.Nifti1Header()
    if np.isfinite(qform).all() and np.linalg.matrix_rank(qform) == 4:
        header.set_qform(qform)
        content[76:92], content[256:280] = header.binaryblock[76:92], header.binaryblock[256:280]
    content[252:254] = np.int16(codes[1]).tobytes()
    content[254:256] = np.int16(codes[0]).tobytes()
    content[280:328] = affine[:3].astype("<f4").tobytes()
    with opener(path, "wb") as stream:
        stream.write(bytes(content))


@pytest.fixture
def ramp() -> np.ndarray:
    """(4, 5, 6) int16: 100 i + 10 j + k."""
    i, j, k = np.ogrid[:4, :5, :6]
    return (100 * i + 10 * j + k).astype(np.int16)


@pytest.fixture
def blob() -> np.ndarray:
    """(4, 5, 6) uint8 labels: 1 in two voxels, 2 in one."""
    array = np.zeros((4, 5, 6), dtype=np.uint8)
    array[1, 2, 3:5] = 1
    array[2, 2, 2] = 2
    return array
