"""Arrays of the prepared-case store: compressed in small blocks, read whole or patch by patch.

Intensities are kept as 16-bit integers times a step, a power of two, so that decoding is exact. The step is the
smallest that holds the largest intensity; half of it is the largest error. Where that would be 0.001 SD or more, they
are kept as float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import DataError

__all__ = ["PreparedArray", "StepTensor", "damaged", "open_array", "packed", "step_of"]

_CHUNK, _BLOCK = 64, 32  # voxels along each axis; only blocks that a patch touches are decompressed
_LARGEST = np.iinfo(np.int16).max
_LARGEST_STEP = 2.0**-9
_STEP = "step"  # its key in the file's metadata
_ADVICE = "Delete the case's folder and run `volseg preprocess` again."


@dataclass(frozen=True, eq=False)
class StepTensor:
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

    def load(self, device: torch.device) -> torch.Tensor | StepTensor:
        """All of it in the memory of a device, in as many bytes as are stored."""
        values = torch.from_numpy(self._values(...)).to(device)
        return values if self.step is None else StepTensor(values, self.step)

    def _values(self, box: Any) -> NDArray[Any]:
        try:
            return np.asarray(self.packed[box])
        except (RuntimeError, OSError, ValueError) as error:
            raise damaged(self.path, "a blosc2 array", error) from None


def step_of(image: NDArray[np.floating[Any]]) -> float | None:
    """Smallest power of two of which 16-bit integers hold every intensity; None if it is larger than 2 / 1024.

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
    lead = [1] * (array.ndim - 3)
    compressed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=[*lead, *(min(n, _CHUNK) for n in array.shape[-3:])],
        blocks=[*lead, *(min(n, _BLOCK) for n in array.shape[-3:])],
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1},  # patches in half the time of Zstandard
        meta=None if step is None else {_STEP: step},
    )
    return bytes(compressed.to_cframe())


def open_array(path: Path) -> PreparedArray:
    """Open a file that holds the result of :func:`packed`.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        step = array.schunk.meta[_STEP] if _STEP in array.schunk.meta else None  # noqa: SIM401  # no dictionary
    except (RuntimeError, OSError, ValueError) as error:
        raise damaged(path, "a blosc2 array", error) from None
    return PreparedArray(path, array, step)


def damaged(path: Path, rule: str, got: object) -> DataError:
    """The error for a file of the store that cannot be used."""
    if isinstance(got, FileNotFoundError):
        got = "nothing there"
    return DataError(f"{path}: expected {rule}, got {str(got) or type(got).__name__}. {_ADVICE}")
