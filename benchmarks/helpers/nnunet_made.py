"""Models that nnU-Net itself trains for seconds, and its own masks; ``nnunet_models.py`` runs it with nnU-Net's Python.

    python nnunet_made.py '{"id": 900, "planner": "ExperimentPlanner", "stages": [...], "folds": [0], "steps": 60, ...}'

The raw dataset is there already (``nnUNet_raw``). It is measured, planned, prepared and trained by nnU-Net's own
functions; of its plan the patch and the network are made small, so that a training takes seconds. The images are then
predicted by the entry point of ``nnUNetv2_predict``, with and without mirroring, without further processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

FEATURES = [8, 16, 32]


class ShortTrainer(nnUNetTrainer):
    """nnU-Net's own training of one epoch; its arguments must be those of nnU-Net's, which looks at their names."""

    steps: ClassVar[int] = 60

    def run_training(self) -> None:
        """Train so many steps."""
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, self.steps, 1
        super().run_training()


def small(configuration: dict[str, Any], changes: dict[str, Any]) -> None:
    """Make patch, batch and network of a configuration small, in place."""
    patch = changes.get("patch") or [32, 32] if len(configuration["patch_size"]) == 2 else changes["patch_3d"]
    kernel, stride = changes.get("kernel", [3, 3, 3]), changes.get("stride", [2, 2, 2])
    dims = len(patch)
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments |= {"n_stages": 3, "features_per_stage": FEATURES, "n_conv_per_stage_decoder": [1, 1]}
    arguments |= {"kernel_sizes": [kernel[-dims:], [3] * dims, [3] * dims]}
    arguments |= {"strides": [[1] * dims, stride[-dims:], [2] * dims]}
    arguments |= (
        {"n_blocks_per_stage": [1, 2, 2]} if "n_blocks_per_stage" in arguments else {"n_conv_per_stage": [2] * 3}
    )
    configuration |= {"patch_size": patch, "batch_size": 2}


def plan(wanted: dict[str, Any]) -> str:
    """Measure, plan and prepare the dataset; gives the name of the plans."""
    number = wanted["id"]
    extractor = DatasetFingerprintExtractor(number, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = 1e5  # its 1e8 draws take most of the time
    extractor.run(overwrite_existing=True)
    name = plan_experiments([number], wanted["planner"])
    file = Path(nnUNet_preprocessed) / convert_id_to_dataset_name(number) / f"{name}.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    if "3d_cascade_fullres" in wanted["stages"]:
        full = configurations["3d_fullres"]
        low = json.loads(json.dumps(full)) | {"data_identifier": f"{name}_3d_lowres"}
        low["spacing"] = [2.0 * mm for mm in full["spacing"]]
        low["next_stage"] = "3d_cascade_fullres"
        configurations["3d_lowres"] = low
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    for configuration in configurations.values():
        if "patch_size" in configuration:
            small(configuration, wanted["changes"])
    file.write_text(json.dumps(plans, indent=2))
    prepared = ["3d_fullres" if stage == "3d_cascade_fullres" else stage for stage in wanted["stages"]]
    preprocess([number], name, configurations=prepared, num_processes=[1] * len(prepared))
    return name


def train(wanted: dict[str, Any], plans_name: str, stage: str, fold: int | str) -> None:
    """Train one fold of a configuration; of the first stage of a cascade also predict for the second."""
    home = Path(nnUNet_preprocessed) / convert_id_to_dataset_name(wanted["id"])
    plans = {**json.loads((home / f"{plans_name}.json").read_text()), "continue_training": False}
    trainer = ShortTrainer(plans, stage, fold, json.loads((home / "dataset.json").read_text()), torch.device("cpu"))
    trainer.run_training()
    if stage == "3d_lowres":
        trainer.perform_actual_validation()


def predict(wanted: dict[str, Any], plans_name: str, stage: str, out: Path, *words: str) -> None:
    """Let ``nnUNetv2_predict`` predict the held-out images, without further processes."""
    sys.argv = ["nnUNetv2_predict", "-i", wanted["images"], "-o", str(out), "-d", str(wanted["id"]), "-c", stage]
    sys.argv += ["-p", plans_name, "-f", *map(str, wanted["folds"]), "-device", "cpu", "-npp", "0", "-nps", "0"]
    sys.argv += ["--disable_progress_bar", *words]
    predict_entry_point()


def main() -> None:
    """Plan, train and predict."""
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.set_num_threads = lambda number: None  # its predictor takes all there are
    # Each new interpreter would import everything again, which takes longer than what it has to do.
    own = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: own  # type: ignore[assignment]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what its augmentation draws from
    ShortTrainer.steps = wanted["steps"]
    ShortTrainer.__name__ = nnUNetTrainer.__name__  # checkpoints name it: nnU-Net predicts with its own
    name = plan(wanted)
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # no processes beside this one; the planner needs at least one
    for stage in wanted["stages"]:
        for fold in wanted["folds"]:
            train(wanted, name, stage, fold)
    for views, words in (("mirrored", []), ("plain", ["--disable_tta"])):
        out = Path(wanted["out"]) / views
        before: list[str] = []
        for stage in wanted["stages"]:
            # A first stage is always mirrored, as for the training of the second one.
            own = words if stage == wanted["stages"][-1] else []
            predict(wanted, name, stage, out / stage, *own, *before)
            before = ["-prev_stage_predictions", str(out / stage)]


if __name__ == "__main__":
    main()
