"""Probabilities that were kept beside predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.core.documents import require_regular
from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence, is_named, located
from pipeline.data.organ_masks import organ_file_names
from pipeline.data.volume_file import VolumeFile
from pipeline.data.volumes import open_header
from pipeline.evaluate.case import Probabilities

_SUFFIXES = (".npz", ".nii.gz", ".nii")


def read_probabilities(
    folder: Path, case: str, grid: Grid, labels: LabelTable, names: Sequence[str] = ()
) -> Probabilities | None:
    """Read the probabilities of a case.

    Args:
        folder: Folder with ``<case>.npz`` as nnU-Net writes it (``probabilities``, (C, K, J, I)), a 4D NIfTI file
            ``<case>.nii.gz`` (I, J, K, C), or a folder ``<case>`` with a NIfTI file per organ, as ``volseg predict``
            writes it. Channels are background and organs by value, or the regions.
        case: Case id.
        grid: The reference's grid, which the probabilities must have.
        labels: The organs or regions.
        names: What else the case may be called there, as its mask may have another name than its reference.

    Returns:
        Organ or region → (I, J, K), of a file per organ read when it is asked for; None without a file of the case.

    Raises:
        DataError: If the file cannot be read, or has another shape or number of channels.
    """
    called = dict.fromkeys((case, *names))
    paths = (located(folder, f"{name}{suffix}") for name in called for suffix in _SUFFIXES)
    path = next((path for path in paths if is_named(path)), None)
    if path is None:
        files = next(filter(None, (_organ_files(located(folder, name), labels) for name in called)), {})
        return OrganProbabilities(files, case, grid) if files else None
    channels = labels.regions or {"background": (), **labels.target_values}
    array = _npz(path, case) if path.suffix == ".npz" else _nifti(path, case, grid)
    if array.shape != (len(channels), *grid.shape):
        rule = f"{len(channels)} channels of shape {grid.shape} ({', '.join(list(channels)[:3])}, …)"
        advice = "Give the probabilities of these channels on the reference's grid"
        raise DataError(sentence("probabilities", rule, array.shape, advice, case=case, file=path))
    return {name: array[number] for number, name in enumerate(channels) if name in labels.target_values}


class OrganProbabilities(Mapping[str, NDArray[np.floating[Any]]]):
    """Probabilities in a file per organ, of which one at a time is held.

    Args:
        files: Organ or region → its file.
        case: Case id.
        grid: The reference's grid.

    Raises:
        DataError: If a file cannot be used, or is on another grid.
    """

    def __init__(self, files: Mapping[str, Path], case: str, grid: Grid) -> None:
        self.volumes = {name: _on_grid(path, case, grid) for name, path in files.items()}

    def __getitem__(self, name: str) -> NDArray[np.floating[Any]]:
        return self.volumes[name].load()

    def __contains__(self, name: object) -> bool:
        # Mapping would read the file to find out.
        return name in self.volumes

    def __iter__(self) -> Iterator[str]:
        return iter(self.volumes)

    def __len__(self) -> int:
        return len(self.volumes)


def _organ_files(folder: Path, labels: LabelTable) -> dict[str, Path]:
    """The files that the folder names."""
    found = {name: located(folder, file) for name, file in organ_file_names(labels, ".nii.gz").items()}
    return {name: path for name, path in found.items() if is_named(path)}


def _on_grid(path: Path, case: str, grid: Grid) -> VolumeFile:
    volume = open_header(path, case=case)
    if not volume.grid.matches(grid):
        rule, advice = "the reference's grid", "Write the probabilities on the grid of the input"
        raise DataError(sentence("probabilities", rule, f"shape {volume.grid.shape}", advice, case=case, file=path))
    return volume


def _npz(path: Path, case: str) -> NDArray[np.floating[Any]]:
    require_regular(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            # nnU-Net keeps arrays in the axis order of SimpleITK: channel, k, j, i.
            return np.asarray(content["probabilities"].transpose(0, 3, 2, 1))
    except (KeyError, OSError, ValueError, BadZipFile) as error:
        rule = "an array called probabilities of shape (C, K, J, I)"
        got, advice = absence(path) or (f"{error}", "Write the file again")
        raise DataError(sentence("probabilities", rule, got, advice, case=case, file=path)) from None


def _nifti(path: Path, case: str, grid: Grid) -> NDArray[np.floating[Any]]:
    array = _on_grid(path, case, grid).load()
    return np.moveaxis(array if array.ndim == 4 else array[..., None], -1, 0)
