"""Weights folders as TotalSegmentator's installer lays them out, of small networks with drawn weights."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nnunet_results import Made, state_dict, write_results

from pipeline.interop.totalsegmentator import TASKS

TRAINERS = {"total": "nnUNetTrainerNoMirroring", "total_fast": "nnUNetTrainer_4000epochs_NoMirroring"}
SPACING = {"total": 1.5, "total_fast": 3.0}

BACKGROUND = 0.5
"""Added to its logits, so that about half of a body is none of a part's organs."""


def write_weights(root: Path, task: str) -> Path:
    """The models of a task; the names of their classes are no ones that anybody knows."""
    for number, names in TASKS[task].items():
        organs = {f"class_{value}": value for value in range(1, len(names.split()) + 1)}
        made = Made(
            {"3d_fullres": (SPACING[task],) * 3},
            (16, 16, 16),
            channels={"CT": ("CTNormalization", False)},
            labels={"background": 0, **organs},
            mirror=None,
        )
        home = root / f"Dataset{number}_TotalSegmentator_part_1559subj"
        weights = state_dict(made, "3d_fullres", number)
        for name, value in weights.items():
            if "seg_layers" in name and name.endswith("bias"):
                value[0] += BACKGROUND
        model = write_results(root / "made", made, trainer_name=TRAINERS[task], network_weights=weights)
        home.mkdir(parents=True)
        model.rename(home / f"{TRAINERS[task]}__nnUNetPlans__3d_fullres")
        model.parent.rmdir()
        (root / "made").rmdir()
    return root


def scan() -> nib.Nifti1Image:
    """A body with soft blobs in air, in 1.1 x 1.2 x 2.5 mm, its axes from right to left, front to back, down to up."""
    shape, rng = (40, 34, 15), np.random.default_rng(3)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    array = np.full(shape, -1000.0)
    body = (((places + 0.5) / shape - 0.5) ** 2).sum(axis=-1) <= 0.16
    blobs = sum(
        rng.uniform(-200, 300) * np.exp(-((places - rng.uniform(0, shape)) ** 2).sum(axis=-1) / rng.uniform(8, 60))
        for _ in range(20)
    )
    array[body] = (40 + blobs + rng.normal(0, 20, shape))[body]
    affine = np.diag([-1.1, -1.2, 2.5, 1.0])
    return nib.Nifti1Image(np.rint(array).astype(np.int16), affine)
