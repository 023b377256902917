"""The prepared-case store: one folder per case, compressed in chunks, read whole or patch by patch.

``cases/<id>/image.b2nd`` (C, I, J, K), ``label.b2nd`` (I, J, K) class indices, ``voxels.npz`` (positions of some voxels
of every class), and ``case.json``, written last: a case without it is not there.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.files import read_json, write_bytes, write_json

__all__ = [
    "PreparedArray",
    "PreparedCase",
    "class_voxels",
    "open_prepared",
    "prepared_ids",
    "read_class_voxels",
    "read_info",
    "read_prepared",
    "stored_hash",
    "write_prepared",
]

_CHUNK = 64  # voxels along each axis of a compressed chunk: a patch touches few of them, each stays in the L2 cache


_ADVICE = "Delete the case's folder and run `volseg preprocess` again."


@dataclass(frozen=True, eq=False)
class PreparedArray:
    """An array on disk; a slice reads only the chunks it touches, as a NumPy array.

    Args:
        path: Its file.
        packed: The opened blosc2 array.

    Raises:
        DataError: On slicing, if the chunks are damaged.
    """

    path: Path
    packed: Any

    @property
    def shape(self) -> tuple[Any, ...]:
        """Length of every axis."""
        return tuple(self.packed.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        dtype: np.dtype[Any] = self.packed.dtype
        return dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return int(self.packed.nbytes)

    def __getitem__(self, box: Any) -> NDArray[Any]:
        """Read a part: ``array[:, 0:64, 0:64, 0:64]``, or all of it: ``array[...]``."""
        try:
            return np.asarray(self.packed[box])
        except (RuntimeError, OSError, ValueError) as error:
            raise _damaged(self.path, "a blosc2 array", error) from None


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for training.

    Args:
        id: Case id.
        image: (C, I, J, K) normalized intensities, float16 or float32.
        label: (I, J, K) class indices, int8 or int16, -1 where ignored.
        class_voxels: Class index → (N, 3) int32 positions, a bounded random choice of that class's voxels.
        info: Anything that belongs in ``case.json``: trace, group, input files, content hash.
    """

    id: str
    image: NDArray[np.floating[Any]]
    label: NDArray[np.signedinteger[Any]]
    class_voxels: Mapping[int, NDArray[np.int32]]
    info: Mapping[str, Any]


def class_voxels(
    label: NDArray[np.signedinteger[Any]], limit: int, generator: np.random.Generator
) -> dict[int, NDArray[np.int32]]:
    """Positions of up to ``limit`` randomly chosen voxels of every foreground class present.

    Args:
        label: (I, J, K) class indices.
        limit: Largest number of positions per class.
        generator: Source of the choice.

    Returns:
        Class index → (N, 3) int32; empty for a label map without foreground.
    """
    flat = label.ravel()
    foreground = np.flatnonzero(flat > 0)
    values = flat[foreground]
    found: dict[int, NDArray[np.int32]] = {}
    for value in np.unique(values):
        where = foreground[values == value]
        if len(where) > limit:
            where = np.sort(generator.choice(where, limit, replace=False))
        found[int(value)] = np.stack(np.unravel_index(where, label.shape), axis=1).astype(np.int32)
    return found


def write_prepared(folder: Path, case: PreparedCase) -> None:
    """Write a case; ``case.json`` comes last and makes it visible.

    Args:
        folder: Folder of the prepared dataset.
        case: The case.

    Raises:
        VolsegError: If the disk is full or the folder cannot be written to.
    """
    home = _home(folder, case.id)
    (home / "case.json").unlink(missing_ok=True)
    write_bytes(home / "image.b2nd", _compressed(case.image))
    write_bytes(home / "label.b2nd", _compressed(case.label))
    stream = io.BytesIO()
    np.savez_compressed(stream, **{str(value): where for value, where in case.class_voxels.items()})  # type: ignore[arg-type]
    write_bytes(home / "voxels.npz", stream.getvalue())
    write_json(home / "case.json", {"id": case.id, "shape": list(case.label.shape), **case.info})


def prepared_ids(folder: Path) -> tuple[str, ...]:
    """Ids of all finished cases, sorted; empty if there are none."""
    return tuple(sorted(path.parent.name for path in (folder / "cases").glob("*/case.json")))


def stored_hash(folder: Path, case: str) -> str | None:
    """Content hash under which a finished case was stored; None if it is not there or ``case.json`` is damaged."""
    try:
        digest = read_info(folder, case).get("hash")
    except VolsegError:
        return None
    return digest if isinstance(digest, str) else None


def read_info(folder: Path, case: str) -> dict[str, Any]:
    """Content of ``case.json``.

    Raises:
        VolsegError: If the case is not in the store, or the file is damaged.
    """
    path = _home(folder, case) / "case.json"
    info = read_json(path, "Run `volseg preprocess`.")
    if not isinstance(info, dict):
        raise _damaged(path, "a JSON object", type(info).__name__)
    return info


def read_prepared(folder: Path, case: str) -> PreparedCase:
    """Read a whole case into memory.

    Raises:
        DataError: If a file of the case is missing or damaged.
    """
    image, label = open_prepared(folder, case)
    voxels = read_class_voxels(folder, case)
    return PreparedCase(case, image[...], label[...], voxels, read_info(folder, case))


def open_prepared(folder: Path, case: str) -> tuple[PreparedArray, PreparedArray]:
    """Image (C, I, J, K) and label (I, J, K) of a case as files that read only the chunks a slice touches.

    Args:
        folder: Folder of the prepared dataset.
        case: Case id.

    Returns:
        Two arrays on disk; ``array[:, 0:64, 0:64, 0:64]`` gives a NumPy array.

    Raises:
        DataError: If a file of the case is missing or damaged, now or when a damaged part is read.
    """
    home = _home(folder, case)
    return _open(home / "image.b2nd"), _open(home / "label.b2nd")


def read_class_voxels(folder: Path, case: str) -> dict[int, NDArray[np.int32]]:
    """Stored voxel positions of a case: class index → (N, 3).

    Raises:
        DataError: If the file is missing or damaged.
    """
    path = _home(folder, case) / "voxels.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {int(name): archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, "stored voxel positions", error) from None


def _home(folder: Path, case: str) -> Path:
    return folder / "cases" / case


def _compressed(array: NDArray[Any]) -> bytes:
    chunks = [1] * (array.ndim - 3) + [min(n, _CHUNK) for n in array.shape[-3:]]
    packed = blosc2.asarray(
        np.ascontiguousarray(array), chunks=chunks, cparams={"codec": blosc2.Codec.ZSTD, "clevel": 3, "nthreads": 1}
    )
    return bytes(packed.to_cframe())


def _open(path: Path) -> PreparedArray:
    try:
        return PreparedArray(path, blosc2.open(str(path), mode="r", dparams={"nthreads": 1}))
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(path, "a blosc2 array", error) from None


def _damaged(path: Path, rule: str, got: object) -> DataError:
    if isinstance(got, FileNotFoundError):
        got = "nothing there"
    return DataError(f"{path}: expected {rule}, got {str(got) or type(got).__name__}. {_ADVICE}")
