"""An array that is too large to wait in memory: made row by row in a temporary file, then read through a map of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.files import why_not_written

__all__ = ["RowFile", "RowMemory"]


class RowMemory:
    """Rows of an array that are kept in memory.

    Args:
        shape: Of the whole array, rows first.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.rows = np.zeros(tuple(shape), np.float32)

    def write(self, first: int, rows: NDArray[np.floating[Any]]) -> None:
        """Take rows (n, …), the first of which has a number."""
        self.rows[first : first + len(rows)] = rows

    def array(self) -> NDArray[np.float32]:
        """All rows, 0 those that were not written."""
        return self.rows


class RowFile:
    """Rows of an array that are kept in a file without a name: whatever ends the process, nothing of it is left.

    Rows are written, not mapped, so that a full disk is an error and not a crash.

    Args:
        shape: Of the whole array, rows first.
        folder: Where the disk has room; it is created.

    Raises:
        VolsegError: If the file cannot be made.
    """

    def __init__(self, shape: Sequence[int], folder: Path) -> None:
        self.shape, self.folder = tuple(shape), folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.stream = TemporaryFile(dir=folder)  # noqa: SIM115  # closed with the last array that reads it
        except OSError as error:
            raise why_not_written(error, folder) from error

    def write(self, first: int, rows: NDArray[np.floating[Any]]) -> None:
        """Take rows (n, …), the first of which has a number.

        Raises:
            VolsegError: If the disk is full.
        """
        try:
            self.stream.seek(first * math.prod(self.shape[1:]) * 4)
            self.stream.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        except OSError as error:
            raise why_not_written(error, self.folder) from error

    def array(self) -> NDArray[np.float32]:
        """All rows, 0 those that were not written: a map of the file, which is read as it is used.

        Raises:
            VolsegError: If the disk is full.
        """
        try:
            self.stream.flush()
            self.stream.truncate(math.prod(self.shape) * 4)
        except OSError as error:
            raise why_not_written(error, self.folder) from error
        return np.memmap(self.stream, dtype=np.float32, mode="r", shape=self.shape)
