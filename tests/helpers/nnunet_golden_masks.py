"""Store the masks that nnU-Net makes with the models of ``nnunet_results.py``: ``tests/golden/nnunet_masks.npz``.

    python tests/helpers/nnunet_golden_masks.py models WORK     # with our environment: results folders and images
    python tests/helpers/nnunet_golden_masks.py masks WORK OUT  # with nnU-Net's (2.8.1): its masks

Each model predicts with and without mirroring, as nnU-Net does, which adds logits in 16 bits, and once more with sums
in 32 bits, as ours are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def models(work: Path) -> None:
    """Write results folders and images."""
    import nibabel as nib
    from nnunet_results import KINDS, image, write_results

    for name, made in KINDS.items():
        write_results(work / name, made)
        (work / name / "images").mkdir()
        for number, channel in enumerate(image(made)):
            nib.save(channel, work / name / "images" / f"case_{number:04}.nii.gz")


def masks(work: Path, out: Path) -> None:
    """Let nnU-Net predict."""
    os.environ |= {f"nnUNet_{part}": str(work) for part in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    import numpy as np
    import torch

    found = {}
    for bits, kind in ((16, torch.float16), (32, torch.float32)):
        torch.half = kind  # what nnU-Net's predictor takes for its sums
        for home in sorted(path for path in work.iterdir() if path.is_dir()):
            for views in ("mirrored", "plain"):
                found[f"{home.name}_{views}_{bits}"] = mask(home, views, bits)
    np.savez_compressed(out, **found)


def mask(home: Path, views: str, bits: int):
    """What a model finds in its image, of a cascade after its first stage."""
    import nibabel as nib
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    stages, before = sorted(home.glob("Dataset901_made/*"), key=lambda path: "cascade" in path.name), None
    for stage in stages:
        # A first stage is always mirrored, as for the training of the second one.
        mirrored, cpu = views == "mirrored" or stage != stages[-1], torch.device("cpu")
        target = home / f"masks_{views}_{bits}_{stage.name}"
        target.mkdir(exist_ok=True)
        predictor = nnUNetPredictor(use_mirroring=mirrored, device=cpu, allow_tqdm=False)
        folds = [fold.name.removeprefix("fold_") for fold in sorted(stage.glob("fold_*"))]
        predictor.initialize_from_trained_model_folder(str(stage), folds)
        images = str(home / "images")
        predictor.predict_from_files_sequential(images, str(target), folder_with_segs_from_prev_stage=before)
        before = str(target)
    return np.asanyarray(nib.load(target / "case.nii.gz").dataobj).astype(np.uint8)


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"models": models, "masks": masks}[command](*map(Path, paths))
