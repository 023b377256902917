"""Models of random weights that are made in memory, and what they predict computed the plain way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.settings import InferSettings, Settings
from pipeline.core.grid import Grid, reorient_array
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import to_device
from pipeline.model.folder import ModelCard
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.plan_file import Plan
from pipeline.preprocess.prepare_case import prepare_image
from pipeline.stages.predict import Predictor

CPU = torch.device("cpu")
ORGANS = LabelTable({1: "liver", 2: "kidney_left", 3: "kidney_right", 7: "aorta"})
REGIONS = LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "cup": (2,)})


def plan(table: LabelTable = ORGANS, **changes: Any) -> Plan:
    """A plan of one channel; by default volumes are cropped and resampled to 2 mm."""
    content: dict[str, Any] = {
        "dataset": "made up",
        "channels": ("image",),
        "labels": table.to_json(),
        "orientation": "RAS",
        "crop": "nonzero",
        "spacing_mm": (2.0, 2.0, 2.0),
        "image_order": 1,
        "store_dtype": "float32",
        "normalization": ({"scheme": "none"},),
        "median_shape": (20, 20, 20),
        "slice_axis": 2,
        "patch_3d": {"patch_size": (8, 8, 8), "batch_size": 2},
        "patch_2d": {"patch_size": (8, 8), "batch_size": 2},
    }
    return Plan.model_validate(content | changes)


def member(
    dims: int = 3,
    table: LabelTable = ORGANS,
    folds: int = 1,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    **changes: Any,
) -> TrainedModel:
    """A model of as many folds, each with weights of its own.

    Args:
        dims: Of its networks.
        table: Its labels.
        folds: Number of networks.
        settings: Sections of the settings, ``infer`` and ``augment`` among them.
        seed: Of the first fold.
        changes: Of the plan.
    """
    own = Settings.model_validate({"train": {"precision": "fp32"}, **(settings or {})})
    size = (8,) * dims
    options = {"features": (4, 8), "norm": "instance", "dropout": 0.0}
    spec = NetworkSpec.model_validate(
        {
            "name": "unet",
            "dims": dims,
            "in_channels": 1,
            "out_channels": table.outputs,
            "options": options,
            "patch_size": size,
        }
    )
    networks = [to_device(_sharp(spec.build(seed + fold)), CPU).eval() for fold in range(folds)]
    card = ModelCard(network=spec, plan=plan(table, **changes), settings=own, provenance={})
    return TrainedModel(card, networks, CPU)


def image(orientation: str = "RAS", spacing: tuple[float, float, float] = (1.5, 2.5, 1.0), seed: int = 0) -> Image:
    """Noise in a body that leaves a border of 0 on some sides."""
    grid = Grid.from_spacing((17, 13, 22), spacing)
    array = np.zeros((1, *grid.shape), np.float32)
    array[:, 2:, 1:-3, 4:-1] = np.random.default_rng(seed).normal(size=(1, 15, 9, 17))
    return Image(array, grid).reoriented(orientation)


def logits_of(model: TrainedModel, volume: Tensor) -> Tensor:
    """Logits (L, I, J, K) of a prepared volume (C, I, J, K)."""
    logits: Tensor = model.inferer(volume.shape[1:])(volume[None], model.passes)[0]
    return logits


def whole_probabilities(predictor: Predictor, given: Image) -> Tensor:
    """Mean probabilities (L, I, J, K) of an image on its own grid, from logits at full size that all exist at once."""
    total: Tensor | None = None
    for one in predictor.models:
        array, trace = prepare_image(given, one.card.plan)
        logits = logits_of(one, torch.from_numpy(array))
        sized = torch.as_tensor(resample(logits.numpy(), trace.cropped.shape, 1))
        regions = bool(one.card.plan.label_table.regions)
        whole = torch.zeros((len(sized), *trace.reoriented.shape))
        whole[0] = 0.0 if regions else 1.0
        box = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
        whole[(slice(None), *box)] = torch.sigmoid(sized) if regions else torch.softmax(sized, 0)
        total = whole if total is None else total + whole
    assert total is not None
    turned = reorient_array(total.numpy() / len(predictor.models), "RAS", given.grid.orientation)
    return torch.from_numpy(np.ascontiguousarray(turned))


def _sharp(network: nn.Module) -> nn.Module:
    """Logits that are far apart, so that probabilities are near 0 and 1 as well as in between."""
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter.mul_(6.0)
    return network


def plan_of(classes: int, **changes: Any) -> Plan:
    """The plan of as many classes, whose label values are class indices."""
    return plan(LabelTable({n: f"organ_{n}" for n in range(1, classes)}), **changes)


def member_of(network: nn.Module, classes: int, plan: Plan | None = None, **infer: Any) -> TrainedModel:
    """The model around a network that is given, with windows of 8 voxels, in fp32 on the CPU."""
    options = {"features": (4, 8)}
    spec = NetworkSpec(name="unet", dims=3, in_channels=1, out_channels=classes, options=options, patch_size=(8, 8, 8))
    settings = Settings.model_validate({"train": {"precision": "fp32"}})
    card = ModelCard(network=spec, plan=plan or plan_of(classes), settings=settings, provenance={})
    return TrainedModel(card, [to_device(network, CPU).eval()], CPU, InferSettings(**infer))


def smooth_scan(orientation: str = "RAS", blobs: int = 6) -> Image:
    """Smooth blobs on anisotropic voxels with an empty rim, in any orientation."""
    grid = Grid.from_spacing((33, 40, 13), (1.3, 1.0, 4.0))
    noise = torch.randn(1, 1, blobs, blobs, blobs, generator=torch.Generator().manual_seed(0))
    inside = nn.functional.interpolate(noise, size=(27, 33, 10), mode="trilinear")[0].numpy()
    array = np.zeros((1, *grid.shape), np.float32)
    array[:, 4:31, 2:35, 1:11] = inside
    return Image(array, grid).reoriented(orientation)
