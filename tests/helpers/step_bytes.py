"""Bytes of a training step on a GPU: as they are estimated, and as the stand-in for a GPU counts them."""

from __future__ import annotations

import gc
from typing import Any

import torch

from pipeline.config.settings import Settings
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import PLAIN, execute, recompute_activations
from pipeline.model.spec import build_network
from pipeline.train.loss import supervised_loss
from pipeline.train.state import first_state, update, update_average, without_margin
from pipeline.train.step_memory import TrainingMemory, training_memory

GPU = torch.device("cuda", 0)
EDGES = {2: 64, 3: 16}
"""Voxels along each axis of a patch, in 2D and 3D: small, as what counts is what is kept, not how long it takes."""


def settings(**sections: Any) -> Settings:
    return Settings.model_validate({"augment": {"enabled": False}, **sections})


_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "3D, 3 classes, bf16, deep supervision": {},
    "3D, 3 classes, fp32, deep supervision": {"precision": "fp32"},
    "3D, 3 classes, fp16, `train.accumulate: 2`, moving average, deep supervision": {
        "precision": "fp16",
        "train": {"accumulate": 2, "ema_decay": 0.9},
    },
    "3D, 3 classes, bf16, one head, AdamW": {"heads": False, "train": {"optimizer": "adamw"}},
    "3D, 30 classes, bf16, deep supervision": {"classes": 30},
    "3D, 118 classes, bf16, deep supervision": {"classes": 118},
    "3D, 118 classes, fp32, one head": {"classes": 118, "precision": "fp32", "heads": False},
    "3D, 3 regions, 4 channels, bf16, deep supervision": {"regions": ((1, 2, 3), (2, 3), (3,)), "channels": 4},
    "2D, 5 classes, 3 channels, bf16, deep supervision": {"dims": 2, "classes": 5, "channels": 3},
    "2D, 20 classes, fp32, deep supervision": {"dims": 2, "classes": 20, "precision": "fp32"},
    "3D, 3 classes, bf16, residual U-Net, class weights, focal loss, batch Dice": {
        "network": "resunet",
        "loss": {"class_weights": (1.0, 2.0, 3.0), "focal_gamma": 2.0, "batch_dice": True},
    },
    "3D, 3 classes, bf16, deep supervision, `train.recompute`": {"train": {"recompute": True}},
    "2D, 3 classes, bf16, UNet++": {"network": "unetpp", "dims": 2},
}


CONFIGURATIONS = tuple(_CONFIGURATIONS)
"""Their names, as they stand in docs/training.md."""


def estimated_and_counted(name: str) -> tuple[TrainingMemory, int, int]:
    """The estimate of a configuration; bytes that are there all the time, and at the peak of a step."""
    network, shape, own, dtype = _chosen(name)
    regions = _CONFIGURATIONS[name].get("regions", ())
    estimated = training_memory(network, shape, own, dtype, regions=regions)
    if "one head" not in name and network.options.deep_supervision:
        assert len(network.train()(torch.zeros(shape))) >= 2
    return estimated, *_counted(network, shape, own, dtype, regions)


def _chosen(name: str) -> tuple[SegmentationNetwork, tuple[int, ...], Settings, torch.dtype]:
    """Network, shape of a batch of patches, settings and type of a configuration."""
    one = _CONFIGURATIONS[name]
    dims, network = one.get("dims", 3), one.get("network", "unet")
    options: dict[str, Any] = {"features": (4, 8, 8, 16), "norm": "instance"}  # from four levels on there are two heads
    if network != "resunet":
        options["deep_supervision"] = one.get("heads", True)
    shape = (2, one.get("channels", 1), *(EDGES[dims],) * dims)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(one.get("precision", ""), torch.bfloat16)
    built = build_network(network, dims, shape[1], one.get("classes", 3), **options)
    return built, shape, settings(train=one.get("train", {}), loss=one.get("loss", {})), dtype


def _counted(
    network: SegmentationNetwork, shape: tuple[int, ...], own: Settings, dtype: torch.dtype, regions: Any
) -> tuple[int, int]:
    """Bytes that are there all the time, and at the peak of a step, as the stand-in counts them."""
    import stand_in  # only where there is one

    gc.collect()
    before = stand_in.allocated()
    execute(network, GPU, PLAIN)
    if own.train.recompute:
        recompute_activations(network)
    state, given = first_state(network, own.train, dtype), own.loss.class_weights
    weights = torch.tensor(given, device=GPU) if isinstance(given, tuple) else None

    def objective(heads: Any, labels: torch.Tensor) -> torch.Tensor:
        inner = without_margin(labels, network.margin)
        return supervised_loss(heads, inner, own.loss, regions=regions, class_weights=weights)

    def step() -> None:
        labels = (shape[0], *shape[2:])
        parts = [
            (torch.zeros(shape, device=GPU), torch.zeros(labels, dtype=torch.int64, device=GPU))
            for _ in range(own.train.accumulate)
        ]
        update(state, parts, objective, own.train, 0.0)
        update_average(state, own.train.ema_decay, 1)

    step()
    state.optimizer.zero_grad(set_to_none=True)
    kept = stand_in.allocated() - before
    stand_in.reset_peak()
    step()
    return kept, stand_in.peak() - before
