"""Made-up datasets in nnU-Net's layout, the same on every machine, to hold our preprocessing against nnU-Net's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from pipeline.core.grid import Grid
from pipeline.core.volume import Image, LabelMap
from pipeline.data.volumes import read_image, read_label_map, write_image, write_label_map

CASES = 5


def write_thick_ct(folder: Path) -> Path:
    """CT with axial slices of 4 to 6 mm in a field of 0.8 mm, organs 1 and 2; every second case stored as LPS."""
    for index in range(CASES):
        spacing = (0.8, 0.8 + 0.05 * (index % 2), (4.0, 5.0, 6.0)[index % 3])
        grid = Grid.from_spacing((72 + 4 * index, 64, 12 + index), spacing)
        values, labels = _volume(grid, index, 2)
        image = Image((values[None] * 60).round().astype(np.float32) - 100, grid)
        orientation = "LPS" if index % 2 else "RAS"
        _write(folder, index, image.reoriented(orientation), LabelMap(labels, grid).reoriented(orientation))
    return _describe(folder, ["CT"], 2)


def write_coronal_mr(folder: Path) -> Path:
    """Two MR channels in coronal slices of 4.5 mm, 0 around a body that fills half the volume; organ 3 is rare."""
    for index in range(CASES):
        grid = Grid.from_spacing((56, 14 + index, 60), (1.0 + 0.1 * index, 4.5, 1.1))
        values, labels = _volume(grid, 10 + index, 3 if index == 0 else 2)
        body = _ellipsoid(grid.shape, (0.5, 0.5, 0.5), 0.4)
        body[24:27, 6:8, 24:27] = False  # a hole, which is image
        first = np.where(body, 100 + 40 * values, 0).round().astype(np.float32)
        second = np.where(body, 900 - 70 * values, 0).round().astype(np.float32)
        _write(folder, index, Image(np.stack([first, second]), grid), LabelMap(labels * body, grid))
    return _describe(folder, ["T1", "T2"], 3)


def turn_to_ras(source: Path, folder: Path) -> Path:
    """A copy of a dataset of one channel with every volume turned to RAS, because nnU-Net leaves axes as they lie."""
    for path in sorted((source / "imagesTr").glob("*.nii.gz")):
        write_image(read_image([path]).reoriented("RAS"), folder / "imagesTr" / path.name)
    for path in sorted((source / "labelsTr").glob("*.nii.gz")):
        write_label_map(read_label_map(path).reoriented("RAS"), folder / "labelsTr" / path.name)
    shutil.copy(source / "dataset.json", folder)
    return folder


def _volume(grid: Grid, seed: int, organs: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth structure with noise, and ellipsoids that touch each other."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in grid.shape), indexing="ij")
    values = np.sin(axes[0] * 2 + seed) + np.cos(axes[1] * 3) * np.sin(axes[2] * 4) + 0.2 * rng.normal(size=grid.shape)
    labels = np.zeros(grid.shape, np.uint8)
    for organ, centre in enumerate(((0.4, 0.5, 0.45), (0.6, 0.5, 0.5), (0.5, 0.4, 0.6))[:organs], start=1):
        labels[_ellipsoid(grid.shape, centre, 0.16)] = organ
    return values + labels, labels


def _ellipsoid(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    return np.asarray(sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) < radius**2)


def _write(folder: Path, index: int, image: Image, label: LabelMap) -> None:
    for channel in range(image.channels):
        part = Image(image.array[channel : channel + 1], image.grid)
        write_image(part, folder / "imagesTr" / f"case_{index}_{channel:04d}.nii.gz")
    write_label_map(label, folder / "labelsTr" / f"case_{index}.nii.gz")


def _describe(folder: Path, channels: list[str], organs: int) -> Path:
    description = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": {"background": 0, **{f"organ_{n}": n for n in range(1, organs + 1)}},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
