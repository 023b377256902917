"""Write ``tests/golden/nnunet_plans.json``: what nnU-Net 2.8.1 plans for made-up fingerprints.

Run it by hand where ``nnunetv2==2.8.1`` is installed: python tests/helpers/nnunet_golden_plans.py
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "nnunet_plans.json"

# Shape and spacing in nnU-Net's order z, y, x; cases, labels with background, GB, channels, spread of spacings.
DATASETS: list[tuple[list[int], list[float], int, int, float, list[str], float]] = [
    ([36, 50, 35], [1, 1, 1], 40, 3, 8, ["MR"], 0.0),
    ([482, 512, 512], [0.8, 0.77, 0.77], 24, 3, 8, ["CT"], 0.2),
    ([9, 256, 216], [10, 1.56, 1.56], 30, 4, 8, ["MR"], 0.2),
    ([20, 320, 320], [3.6, 0.62, 0.62], 32, 3, 8, ["MR", "MR"], 0.1),
    ([155, 240, 240], [1, 1, 1], 40, 4, 8, ["MR"] * 4, 0.0),
    ([120, 200, 200], [2.5, 1, 1], 40, 5, 8, ["CT"], 0.3),
    ([1, 224, 224], [1, 1, 1], 50, 3, 8, ["R", "G", "B"], 0.0),
    ([64, 96, 80], [3, 3, 3], 24, 11, 8, ["CT"], 0.0),
    ([40, 40, 40], [2, 2, 2], 6, 2, 8, ["MR"], 0.1),
    ([300, 80, 300], [0.9, 5.2, 0.9], 30, 3, 8, ["CT"], 0.1),
    ([200, 512, 512], [3, 0.7, 0.7], 30, 14, 24, ["CT"], 0.2),
    ([60, 512, 512], [5, 0.8, 0.8], 30, 15, 8, ["CT"], 0.0),
    ([512, 30, 512], [0.4, 4.5, 0.4], 20, 2, 12, ["MR"], 0.05),
    ([100, 100, 25], [1, 1, 4.2], 44, 3, 8, ["MR"], 0.1),
    ([700, 700, 700], [0.5, 0.5, 0.5], 12, 3, 40, ["CT"], 0.1),
    ([13, 150, 150], [1.2, 1.2, 1.2], 10, 2, 8, ["MR"], 0.0),
]


def main() -> None:
    """Plan every dataset."""
    rng = np.random.default_rng(0)
    plans = []
    for dataset in DATASETS:
        given = made_up(dataset, rng)
        with tempfile.TemporaryDirectory() as folder:
            planned = run_planner(given, Path(folder))
        configurations = {
            name: summary(entry) for name, entry in planned["configurations"].items() if "patch_size" in entry
        }
        plans.append({**given, "transpose_forward": planned["transpose_forward"], "configurations": configurations})
    GOLDEN.write_text(json.dumps(plans, indent=None, separators=(",", ":")) + "\n")


def made_up(dataset: tuple[list[int], list[float], int, int, float, list[str], float], rng: Any) -> dict[str, Any]:
    """A fingerprint: cases around a shape and a spacing."""
    shape, spacing, cases, labels, memory_gb, channels, spread = dataset
    vary = 0.15 if min(shape) > 1 else 0.0
    spacings = (np.array(spacing) * (1 + spread * rng.uniform(-1, 1, (cases, 3)))).round(4)
    shapes = (np.array(shape) * (1 + vary * rng.uniform(-1, 1, (cases, 3)))).round().astype(int)
    kept = float(rng.choice([1.0, 0.6]))
    return {
        "spacings": spacings.tolist(),
        "shapes": shapes.tolist(),
        "kept": kept,
        "labels": labels,
        "memory_gb": memory_gb,
        "channels": channels,
    }


def run_planner(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """nnU-Net's planner on a dataset that has a fingerprint but no images."""
    name = "Dataset999_made_up"
    raw, done = folder / "raw" / name, folder / "preprocessed" / name
    raw.mkdir(parents=True)
    done.mkdir(parents=True)
    description = {
        "channel_names": {str(n): channel for n, channel in enumerate(given["channels"])},
        "labels": {f"label{n}" if n else "background": n for n in range(given["labels"])},
        "numTraining": len(given["spacings"]),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    fingerprint = {
        "spacings": given["spacings"],
        "shapes_after_crop": given["shapes"],
        "median_relative_size_after_cropping": given["kept"],
        "foreground_intensity_properties_per_channel": {},
    }
    (done / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    planner = importlib.import_module("nnunetv2.experiment_planning.experiment_planners.default_experiment_planner")
    planner.nnUNet_raw, planner.nnUNet_preprocessed = str(raw.parent), str(done.parent)
    planner.maybe_convert_to_dataset_name = lambda dataset: dataset
    plans: dict[str, Any] = planner.ExperimentPlanner(
        name, gpu_memory_target_in_gb=given["memory_gb"]
    ).plan_experiment()
    return plans


def summary(entry: dict[str, Any]) -> dict[str, Any]:
    """What a plan decides, of one configuration."""
    network = entry["architecture"]["arch_kwargs"]
    kept = {
        "patch_size": entry["patch_size"],
        "batch_size": entry["batch_size"],
        "spacing": entry["spacing"],
        "strides": network["strides"],
        "kernel_sizes": network["kernel_sizes"],
        "features": network["features_per_stage"],
        "normalization": entry["normalization_schemes"],
        "use_mask": entry["use_mask_for_norm"],
    }
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=lambda value: np.asarray(value).tolist()))
    return plain


if __name__ == "__main__":
    os.environ.update({f"nnUNet_{part}": tempfile.gettempdir() for part in ("raw", "preprocessed", "results")})
    main()
