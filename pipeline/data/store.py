"""The prepared-case store: one folder per case, compressed in chunks, read whole or patch by patch.

``cases/<id>/image.b2nd`` (C, I, J, K), ``label.b2nd`` (I, J, K) class indices, ``voxels.npy.gz`` (positions of some
voxels of every class), and ``case.json``, written last: a case without it is not there. It holds a checksum of each of
the others, because blosc2 has none: a changed byte is another voxel. A file is compared with it whenever it is opened,
which a training does once per case, before anything else reads it. That takes 0.6 s per GB on disk, a quarter of what
decoding takes (16 and 62 ms for 13 million voxels); patch by patch it would take more each time.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.core.documents import require_regular
from pipeline.core.errors import DataError, sentence
from pipeline.core.files import read_record, write_bytes, write_json
from pipeline.data.prepared_cases import ADVICE, case_folder, read_info

_CHUNK, _BLOCK = 64, 32  # voxels along each axis; only blocks that a patch touches are decompressed
# Intensities are kept as 16-bit integers times a step, a power of two, so that decoding is exact. The step is the
# smallest that holds the largest intensity; half of it is the largest error. Where that would be 0.001 SD or more,
# they are kept as float32.
_LARGEST = np.iinfo(np.int16).max
_LARGEST_STEP = 2.0**-9
_STEP = "step"  # its key in the file's metadata
_IMAGE, _LABEL, _VOXELS = "image.b2nd", "label.b2nd", "voxels.npy.gz"
_PIECE = 1 << 22  # bytes


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Intensities in memory as whole steps, two bytes each; a slice gives them as float32.

    Args:
        values: int16, any shape, on any device.
        step: Intensity of 1.
    """

    values: torch.Tensor
    step: float

    @property
    def shape(self) -> torch.Size:
        """Length of every axis."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.values.device

    def __getitem__(self, box: Any) -> torch.Tensor:
        """Intensities of a part, float32, on the device of the values."""
        return self.values[box].float().mul_(self.step)


@dataclass(frozen=True, eq=False)
class PreparedArray:
    """An array on disk; a slice reads only the blocks it touches, as a NumPy array.

    Args:
        path: Its file.
        packed: The opened blosc2 array.
        step: Intensity of 1 where whole steps are stored; None where the values are stored as they are.

    Raises:
        DataError: On slicing or loading, if the blocks are damaged.
    """

    path: Path
    packed: Any
    step: float | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """Length of every axis."""
        return tuple(self.packed.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array once loaded."""
        return int(math.prod(self.shape) * self.packed.dtype.itemsize)  # blosc2 3 does not say

    def __getitem__(self, box: Any) -> NDArray[Any]:
        """Read a part: ``array[:, 0:64, 0:64, 0:64]``, or all of it: ``array[...]``; intensities are float32."""
        values = self._values(box)
        return values if self.step is None else values.astype(np.float32) * np.float32(self.step)

    def load(self, device: torch.device) -> torch.Tensor | QuantizedTensor:
        """All of it in the memory of a device, in as many bytes as are stored."""
        values = torch.from_numpy(self._values(...)).to(device)
        return values if self.step is None else QuantizedTensor(values, self.step)

    def _values(self, box: Any) -> NDArray[Any]:
        try:
            return np.asarray(self.packed[box])
        except (RuntimeError, OSError, ValueError) as error:
            raise damaged(self.path, "a blosc2 array", error) from None


def step_of(image: NDArray[np.floating[Any]]) -> float | None:
    """Smallest power of two whose 16-bit multiples reach every intensity; None if it is larger than 2 / 1024.

    Args:
        image: Normalized intensities, any shape, finite.
    """
    largest = max(float(image.max(initial=0.0)), -float(image.min(initial=0.0)))
    if largest == 0.0:
        return _LARGEST_STEP
    step = 2.0 ** math.ceil(math.log2(largest / _LARGEST))
    return step if step <= _LARGEST_STEP else None


def packed(array: NDArray[Any], step: float | None = None) -> bytes:
    """A compressed array as the content of a file.

    Args:
        array: (..., I, J, K).
        step: Store whole steps of this size, as int16.
    """
    if step is not None:
        array = np.rint(array * np.float32(1 / step)).astype(np.int16)  # a power of two: exact
    import blosc2  # here and below, because predicting needs none and it loads a web client

    lead = [1] * (array.ndim - 3)
    compressed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=[*lead, *(min(n, _CHUNK) for n in array.shape[-3:])],
        blocks=[*lead, *(min(n, _BLOCK) for n in array.shape[-3:])],
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1},  # patches in half the time of Zstandard
        meta=None if step is None else {_STEP: step},
    )
    return bytes(compressed.to_cframe())


def open_array(path: Path, checksum: str | None = None) -> PreparedArray:
    """Open a file that holds the result of :func:`packed`.

    Args:
        path: The file.
        checksum: What ``case.json`` says of it; None if an older version, which noted none, prepared the case.

    Raises:
        DataError: If it is missing or damaged.
    """
    import blosc2

    rule = "a blosc2 array"
    _require_intact(path, rule, checksum)  # before blosc2, which trusts what it reads
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        step = array.schunk.meta[_STEP] if _STEP in array.schunk.meta else None  # noqa: SIM401  # no dictionary
    except (RuntimeError, OSError, ValueError) as error:
        raise damaged(path, rule, error) from None
    return PreparedArray(path, array, step)


def _require_intact(path: Path, rule: str, checksum: str | None) -> None:
    """Refuse a file of another content; CRC-32, because damage is no attack and a hash takes twice as long."""
    require_regular(path)
    if checksum is None:
        return
    found = 0
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                found = zlib.crc32(piece, found)
    except OSError as error:
        raise damaged(path, rule, error) from None
    if f"{found:08x}" != checksum:
        raise damaged(path, rule, "another content than was prepared")


def damaged(path: Path, rule: str, got: object) -> DataError:
    """The error for a file of the store that cannot be used."""
    if isinstance(got, FileNotFoundError):
        got = "nothing there"
    return DataError(f"{path}: expected {rule}, got {str(got) or type(got).__name__}. {ADVICE}")


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for training.

    Args:
        id: Case id.
        image: (C, I, J, K) normalized intensities, float32.
        label: (I, J, K) class indices, int8 or int16, -1 where ignored.
        class_voxels: Class index → (N, 3) int32 positions, a bounded random choice of that class's voxels.
        info: Anything that belongs in ``case.json``: grid history, group, input files, content hash.
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
    # Background is most of the volume and found anywhere, so no positions of it are kept.
    foreground = np.flatnonzero(flat > 0)
    values = flat[foreground]
    found: dict[int, NDArray[np.int32]] = {}
    for value in np.unique(values):
        where = foreground[values == value]
        if len(where) > limit:
            where = np.sort(generator.choice(where, limit, replace=False))
        found[int(value)] = np.stack(np.unravel_index(where, label.shape), axis=1).astype(np.int32)
    return found


def write_prepared(folder: Path, case: PreparedCase, *, steps: bool = True) -> None:
    """Write a case; ``case.json`` comes last and makes it visible.

    Args:
        folder: Folder of the prepared dataset.
        case: The case.
        steps: Whether to store intensities in 16 bits where the error stays below 0.001, instead of as they are.
    """
    home = case_folder(folder, case.id)
    # The old case must not seem valid while its arrays are replaced.
    (home / "case.json").unlink(missing_ok=True)
    checksums = {
        _IMAGE: _written(home / _IMAGE, packed(case.image, step_of(case.image) if steps else None)),
        _LABEL: _written(home / _LABEL, packed(case.label)),
        _VOXELS: _written(home / _VOXELS, _packed_voxels(case.class_voxels)),
    }
    info = {"id": case.id, "shape": list(case.label.shape), **case.info, "checksums": checksums}
    write_json(home / "case.json", info, indent=None)


def _written(path: Path, content: bytes) -> str:
    """Write a file; its checksum."""
    write_bytes(path, content)
    return f"{zlib.crc32(content):08x}"


def open_prepared(folder: Path, case: str) -> tuple[PreparedArray, PreparedArray]:
    """Image (C, I, J, K) and label (I, J, K) of a case on disk: ``array[:, 0:64, 0:64, 0:64]`` gives a NumPy array.

    Raises:
        DataError: If a file of the case is missing or damaged, now or when a damaged part is read.
    """
    home, known = case_folder(folder, case), read_info(folder, case).get("checksums", {})
    image, label = open_array(home / _IMAGE, known.get(_IMAGE)), open_array(home / _LABEL, known.get(_LABEL))
    if image.packed.ndim != 4 or image.shape[1:] != label.shape:
        raise damaged(home, "an image and its label map", f"shapes {image.shape} and {label.shape}")
    return image, label


def write_stage_map(folder: Path, case: str, found: NDArray[np.unsignedinteger[Any]], content_hash: str) -> None:
    """Write what the first stage of a cascade found in a case: class indices (I, J, K), 0 for background."""
    note = folder / f"{case}.json"
    note.unlink(missing_ok=True)  # the old map must not seem valid while it is replaced
    # PyTorch computes with few unsigned types.
    checksum = _written(folder / f"{case}.b2nd", packed(found if found.dtype == np.uint8 else found.astype(np.int16)))
    write_json(note, {"hash": content_hash, "checksum": checksum}, indent=None)


def stage_map_hash(folder: Path, case: str) -> str | None:
    """Content hash under which the stage map of a case was written; None if it is not there or its note is damaged."""
    if not (folder / f"{case}.b2nd").is_file():
        return None
    content_hash = read_record(folder / f"{case}.json", _MapNote).get("hash")
    return content_hash if isinstance(content_hash, str) else None


def open_stage_map(folder: Path, case: str, shape: Sequence[int]) -> PreparedArray:
    """The stage map of a case on disk, as large as its prepared image.

    Raises:
        DataError: If it is missing, damaged or of another shape.
    """
    path, advice = folder / f"{case}.b2nd", "Delete it and run `volseg train` again"
    try:
        found = open_array(path, read_record(folder / f"{case}.json", _MapNote).get("checksum"))
    except DataError:
        got = "a damaged one" if path.is_file() else "none"
        raise DataError(sentence("stage map", "what the first stage found", got, advice, file=path)) from None
    if found.shape != tuple(shape):
        rule = f"the shape of the prepared case, {tuple(shape)}"
        raise DataError(sentence("stage map", rule, found.shape, advice, file=path))
    return found


class _MapNote(BaseModel):
    """What is noted of a stage map."""

    model_config = ConfigDict(strict=True)

    hash: str | None = None
    checksum: str | None = None


def read_class_voxels(folder: Path, case: str) -> dict[int, NDArray[np.int32]]:
    """Stored voxel positions of a case: class index → (N, 3).

    Raises:
        DataError: If the file is missing or damaged.
    """
    path, rule = case_folder(folder, case) / _VOXELS, "stored voxel positions"
    _require_intact(path, rule, read_info(folder, case).get("checksums", {}).get(_VOXELS))
    try:
        columns = np.load(io.BytesIO(gzip.decompress(path.read_bytes())), allow_pickle=False)
        return {int(value): columns[1:, columns[0] == value].T.copy() for value in np.unique(columns[0])}
    except (OSError, MemoryError, ValueError, LookupError, EOFError, zlib.error) as error:
        raise damaged(path, rule, error) from None


def _packed_voxels(class_voxels: Mapping[int, NDArray[np.int32]]) -> bytes:
    """Columns of class, i, j, k, as a compressed NumPy file: it holds a checksum, and neighbours differ by little."""
    # Class and position as rows of one array: neighbours differ by little, which compresses well.
    columns = np.zeros((4, sum(map(len, class_voxels.values()))), np.int32)
    columns[0] = np.repeat(list(class_voxels), [len(where) for where in class_voxels.values()])
    columns[1:] = np.concatenate([np.zeros((0, 3), np.int32), *class_voxels.values()]).T
    stream = io.BytesIO()
    np.save(stream, columns)
    return gzip.compress(stream.getvalue(), 3, mtime=0)
