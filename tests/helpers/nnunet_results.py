"""Results folders as nnU-Net writes them, of small networks with drawn weights; nnU-Net itself is not needed."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from pipeline.model.nnunet import nnunet_options
from pipeline.model.spec import build_network

RESAMPLING = {
    f"resampling_fn_{kind}{key}": value
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    for key, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
    )
}


@dataclass(frozen=True)
class Made:
    """A trained model, and images for it.

    Args:
        stages: Configurations → spacing along nnU-Net's axes, the one that predicts last.
        patch: Of all of them.
        network: Class name.
        channels: Names → normalization and whether it is masked.
        labels: As in ``dataset.json``.
        order: regions_class_order.
        transpose: transpose_forward.
        folds: Folds with a checkpoint.
        mirror: Axes of test-time mirroring.
        spacing: Of the image, along its file's axes.
        shape: The same.
        codes: Orientation of the file.
    """

    stages: dict[str, tuple[float, ...]]
    patch: tuple[int, ...]
    network: str = "unet.PlainConvUNet"
    channels: dict[str, tuple[str, bool]] = field(default_factory=lambda: {"MR": ("ZScoreNormalization", False)})
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "liver": 1, "spleen": 2})
    order: tuple[int, ...] | None = None
    transpose: tuple[int, int, int] = (0, 1, 2)
    folds: tuple[str, ...] = ("0",)
    mirror: tuple[int, ...] | None = (0, 1, 2)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shape: tuple[int, int, int] = (22, 25, 20)
    codes: str = "LPS"


KINDS = {
    "plain": Made({"3d_fullres": (1.1, 0.9, 1.0)}, (16, 16, 16), transpose=(2, 0, 1), folds=("0", "1")),
    "flat": Made(
        {"2d": (0.9, 1.1)}, (16, 16), mirror=(0, 1), spacing=(1.0, 1.0, 2.3), transpose=(1, 0, 2), codes="RAS"
    ),
    "thick": Made(
        {"3d_fullres": (3.6, 1.0, 1.1)},
        (8, 16, 16),
        channels={"CT": ("CTNormalization", False)},
        mirror=None,
        spacing=(1.0, 1.0, 4.5),
        shape=(27, 30, 14),
    ),
    "regions": Made(
        {"3d_fullres": (1.0, 1.0, 1.1)},
        (16, 16, 16),
        "unet.ResidualEncoderUNet",
        {"T1": ("ZScoreNormalization", True), "FLAIR": ("RescaleTo01Normalization", False)},
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        (1, 2, 3),
        mirror=(1, 2),
        codes="PIR",
    ),
    "cascade": Made(
        {"3d_lowres": (1.9, 2.1, 2.0), "3d_cascade_fullres": (1.0, 1.1, 0.9)}, (16, 16, 16), folds=("all",)
    ),
}


def plans(made: Made) -> dict[str, Any]:
    """Content of ``plans.json``."""
    dims, stages = len(made.patch), {}
    residual = "Residual" in made.network
    options = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 3,
        "strides": [[1] * dims, [2] * dims, [2] * dims],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 1, 2],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    previous = None
    for name, spacing in made.stages.items():
        stages[name] = {
            "data_identifier": f"nnUNetPlans_{name}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(made.patch),
            "median_image_size_in_voxels": [24.0] * dims,
            "spacing": list(spacing),
            "normalization_schemes": [scheme for scheme, _ in made.channels.values()],
            "use_mask_for_norm": [masked for _, masked in made.channels.values()],
            **deepcopy(RESAMPLING),
            "architecture": {
                "network_class_name": f"dynamic_network_architectures.architectures.{made.network}",
                "arch_kwargs": deepcopy(options),
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "batch_dice": False,
        }
        if previous:
            stages[name]["previous_stage"] = previous
            stages[previous]["next_stage"] = name
        previous = name
    values = {"max": 300.0, "mean": 40.0, "median": 42.0, "min": -90.0, "std": 60.0}
    return {
        "dataset_name": "Dataset901_made",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.5, 1.0, 1.0],
        "original_median_shape_after_transp": [24, 24, 24],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(made.transpose),
        "transpose_backward": list(np.argsort(made.transpose).tolist()),
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(n): {**values, "percentile_00_5": -80.0, "percentile_99_5": 190.0} for n in range(len(made.channels))
        },
        "configurations": stages,
    }


def dataset(made: Made) -> dict[str, Any]:
    """Content of ``dataset.json``."""
    content = {
        "channel_names": {str(n): name for n, name in enumerate(made.channels)},
        "labels": dict(made.labels),
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    return content | ({} if made.order is None else {"regions_class_order": list(made.order)})


def state_dict(made: Made, stage: str, seed: int) -> dict[str, torch.Tensor]:
    """Drawn weights under nnU-Net's names, with its repetitions."""
    name, dims, options = nnunet_options(plans(made)["configurations"][stage]["architecture"])
    foreground = {value for held in made.labels.values() for value in (held if isinstance(held, list) else [held])} - {
        0
    }
    foreground -= {made.labels.get("ignore")}
    inputs = len(made.channels) + (len(foreground) if stage == "3d_cascade_fullres" else 0)
    outputs = len(made.order) if made.order else len(foreground) + 1
    network = build_network(name, dims, inputs, outputs, seed=seed, **options)
    found: dict[str, torch.Tensor] = {}
    for key, value in network.state_dict().items():
        twin = re.fullmatch(r"(.*)\.(conv|norm)\.(weight|bias)", key)
        keys = [key] + ([f"{twin[1]}.all_modules.{int(twin[2] == 'norm')}.{twin[3]}"] if twin else [])
        for each in keys:
            found[each] = value.detach()
            if each.startswith("encoder."):
                found[f"decoder.{each}"] = value.detach()
    return found


def checkpoint(made: Made, stage: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Content of a checkpoint, with NumPy's numbers where nnU-Net has some."""
    content = {
        "network_weights": state_dict(made, stage, seed),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "momentum": 0.99}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [0.01]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": stage, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": made.mirror,
    }
    return content | changes


def write_results(root: Path, made: Made, **changes: Any) -> Path:
    """A folder of results with one model, or both stages of a cascade; gives the folder of the one that predicts."""
    for stage in made.stages:
        model = root / "Dataset901_made" / f"nnUNetTrainer__nnUNetPlans__{stage}"
        model.mkdir(parents=True)
        (model / "plans.json").write_text(json.dumps(plans(made)))
        (model / "dataset.json").write_text(json.dumps(dataset(made)))
        (model / "dataset_fingerprint.json").write_text("{}")
        for seed, fold in enumerate(made.folds):
            (model / f"fold_{fold}").mkdir()
            torch.save(checkpoint(made, stage, seed, **changes), model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


def image(made: Made) -> list[nib.Nifti1Image]:
    """An image for the model, a file per channel: soft blobs with zeros around them."""
    rng = np.random.default_rng(7)
    places = np.stack(np.meshgrid(*map(np.arange, made.shape), indexing="ij"), axis=-1)
    body = (((places + 0.5) / made.shape - 0.5) ** 2).sum(axis=-1) <= 0.22
    files = []
    for _ in made.channels:
        blobs = sum(
            rng.uniform(-80, 150)
            * np.exp(-((places - rng.uniform(0, made.shape)) ** 2).sum(axis=-1) / rng.uniform(8, 60))
            for _ in range(14)
        )
        array = np.where(body, 60 + blobs + rng.normal(0, 4, made.shape), 0).astype(np.float32)
        files.append(nib.Nifti1Image(array, _affine(made)))
    return files


def _affine(made: Made) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, code in enumerate(made.codes):
        world = next(n for n, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = made.spacing[axis] * (1 if code in "RAS" else -1)
    return affine
