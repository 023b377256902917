"""A toy dataset small enough to be learnt in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.config.settings import Settings
from pipeline.core.grid import Grid
from pipeline.core.volume import Image, LabelMap
from pipeline.data.volumes import write_image, write_label_map

ORIENTATIONS = ("RAS", "LPS", "PIR", "SRA", "ASL", "IPL")


def toy_case(index: int) -> tuple[Image, LabelMap]:
    """A bright box (1) and a brighter, smaller one (2) to its right in a noisy volume of about 40 mm."""
    generator = np.random.default_rng(index)
    ras = Grid.from_spacing((20, 24, 16), (2.0, 1.5, 2.5))
    labels = np.zeros(ras.shape, np.uint8)
    i, j, k = generator.integers(2, 5, 3)
    labels[i : i + 8, j : j + 12, k : k + 7] = 1
    labels[i + 9 : i + 13, j + 3 : j + 10, k + 1 : k + 6] = 2
    array = (labels * 100.0 + generator.normal(0, 15, ras.shape)).astype(np.float32)[None]
    target = ORIENTATIONS[index % len(ORIENTATIONS)]
    return Image(array, ras).reoriented(target), LabelMap(labels, ras).reoriented(target)


def write_toy(folder: Path, cases: int, first: int = 0) -> Path:
    """Write cases as ``images/`` + ``labels/`` pairs."""
    for index in range(first, first + cases):
        image, labels = toy_case(index)
        write_image(image, folder / "images" / f"toy_{index}.nii.gz")
        write_label_map(labels, folder / "labels" / f"toy_{index}.nii.gz")
    (folder / "labels.json").write_text('{"1": "box_left", "2": "box_small"}')
    return folder


def toy_settings(**model: object) -> Settings:
    return Settings.model_validate(
        {
            "preprocess": {"spacing_mm": (2.0, 2.0, 2.0)},
            "sample": {"patch_size": (16, 16, 16), "batch_size": 2, "folds": 3},
            "augment": {"flip_axes": []},
            "model": {"dims": 3, "options": {"features": (8, 16), "norm": "instance", "dropout": 0.0}, **model},
            "train": {
                "epochs": 3,
                "iterations_per_epoch": 30,
                "validate_every": 2,
                "optimizer": "adamw",
                "learning_rate": 1e-2,
                "schedule": "onecycle",
                "precision": "fp32",
            },
        }
    )
