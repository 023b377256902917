"""Write ``tests/golden/nnunet_datasets.json`` and ``.npz``: what nnU-Net 2.8.1 makes of whole datasets.

Run it by hand where ``nnunetv2==2.8.1`` is installed, with dataset folders in nnU-Net's raw layout:

    python tests/helpers/nnunet_golden_datasets.py raw/Dataset001_thick_ct raw/Dataset002_coronal_mr …

The two named are written by ``anisotropic.py``, ``phantom`` by ``volseg phantom --cases 6 --tests 0`` and turned to RAS
by ``turn_to_ras`` there, ``hippocampus`` is the set of the Medical Segmentation Decathlon. Of the preprocessed arrays
every 97th voxel is kept, of some cases.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
KEPT_CASES, STRIDE = 3, 97
RAW, PREPROCESSED, RESULTS = (f"nnUNet_{part}" for part in ("raw", "preprocessed", "results"))


def main() -> None:
    """Fingerprint, plan and preprocess every folder given."""
    datasets, arrays = {}, {}
    for folder in map(Path, sys.argv[1:]):
        name = folder.name.split("_", 1)[1].lower()
        datasets[name] = processed(folder)
        done = preprocessed(folder) / "nnUNetPlans_3d_fullres"
        for case in sorted(path.name.removesuffix(".pkl") for path in done.glob("*.pkl"))[:KEPT_CASES]:
            image, label = stored(done / f"{case}.b2nd"), stored(done / f"{case}_seg.b2nd")[0]
            datasets[name]["shapes"][case] = label.shape
            arrays[f"{name}/{case}/image"] = image.reshape(len(image), -1)[:, ::STRIDE]
            arrays[f"{name}/{case}/label"] = label.ravel()[::STRIDE]
    (GOLDEN / "nnunet_datasets.json").write_text(json.dumps(datasets, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDEN / "nnunet_datasets.npz", **arrays)


def processed(folder: Path) -> dict[str, Any]:
    """Run the three steps on one dataset; its fingerprint, plan and cases."""
    api = importlib.import_module("nnunetv2.experiment_planning.plan_and_preprocess_api")
    number = int(folder.name[7:10])
    api.extract_fingerprints([number], num_processes=2)
    api.plan_experiments([number])
    api.preprocess([number], configurations=("3d_fullres",), num_processes=(2,))
    done = preprocessed(folder)
    plans = json.loads((done / "nnUNetPlans.json").read_text())
    fingerprint = json.loads((done / "dataset_fingerprint.json").read_text())
    summary = importlib.import_module("nnunet_golden_plans").summary
    return {
        "fingerprint": fingerprint,
        "transpose_forward": plans["transpose_forward"],
        "configurations": {n: summary(c) for n, c in plans["configurations"].items() if "patch_size" in c},
        "shapes": {},
    }


def preprocessed(folder: Path) -> Path:
    """Where nnU-Net puts what it makes of a dataset."""
    return Path(os.environ[PREPROCESSED]) / folder.name


def stored(path: Path) -> Any:
    """An array of nnU-Net's store."""
    return importlib.import_module("blosc2").open(str(path), mode="r")[...]


if __name__ == "__main__":
    os.environ.setdefault(RAW, str(Path(sys.argv[1]).parent))
    for variable in (PREPROCESSED, RESULTS):
        os.environ.setdefault(variable, tempfile.mkdtemp())
    main()
