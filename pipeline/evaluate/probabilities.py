"""Probabilities that were kept beside predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.data.volumes import open_header
from pipeline.evaluate.case import Probabilities

__all__ = ["read_probabilities"]

_SUFFIXES = (".npz", ".nii.gz", ".nii")


def read_probabilities(folder: Path | None, case: str, grid: Grid, labels: LabelTable) -> Probabilities | None:
    """Read the probabilities of a case.

    Args:
        folder: Folder with ``<case>.npz`` as nnU-Net writes it (``probabilities``, (C, K, J, I)) or a 4D NIfTI file
            ``<case>.nii.gz`` (I, J, K, C), or None. Channels are background and organs by value, or the regions.
        case: Case id.
        grid: The reference's grid, which the probabilities must have.
        labels: The organs or regions.

    Returns:
        Organ or region → (I, J, K); None without a folder or a file of the case.

    Raises:
        DataError: If the file cannot be read, or has another shape or number of channels.
    """
    paths = [folder / f"{case}{suffix}" for suffix in _SUFFIXES] if folder is not None else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    channels = labels.regions or {"background": (), **labels.target_values}
    array = _npz(path, case) if path.suffix == ".npz" else _nifti(path, case, grid)
    if array.shape != (len(channels), *grid.shape):
        rule = f"{len(channels)} channels of shape {grid.shape} ({', '.join(list(channels)[:3])}, …)"
        advice = "Give the probabilities of these channels on the reference's grid"
        raise DataError(sentence("probabilities", rule, array.shape, advice, case=case, file=path))
    return {name: array[number] for number, name in enumerate(channels) if name in labels.target_values}


def _npz(path: Path, case: str) -> NDArray[np.floating[Any]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return np.asarray(content["probabilities"].transpose(0, 3, 2, 1))
    except (KeyError, OSError, ValueError, BadZipFile) as error:
        rule, advice = "an array called probabilities of shape (C, K, J, I)", "Write the file again"
        raise DataError(sentence("probabilities", rule, f"{error}", advice, case=case, file=path)) from None


def _nifti(path: Path, case: str, grid: Grid) -> NDArray[np.floating[Any]]:
    volume = open_header(path, case=case)
    if not volume.grid.matches(grid):
        rule, advice = "the reference's grid", "Write the probabilities on the grid of the input"
        raise DataError(sentence("probabilities", rule, f"shape {volume.grid.shape}", advice, case=case, file=path))
    array = volume.load()
    return np.moveaxis(array if array.ndim == 4 else array[..., None], -1, 0)
