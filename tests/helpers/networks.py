"""A version of every network that computes in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.model.base import SegmentationNetwork
from pipeline.model.registry import list_networks
from pipeline.model.spec import build_network

FEATURES = {"features": (4, 8)}
TINY: dict[str, dict[str, Any]] = {
    "unet": FEATURES,
    "unet2015": FEATURES,
    "unet_phseg_v5": FEATURES,
    "unet_upconv": FEATURES,
    "unet32": FEATURES,
    "wide_unet": FEATURES,
    "unet3d_cicek": FEATURES,
    "ciresan_n4": {"features": (2, 2, 2, 2), "hidden": 4},
    "unetpp": FEATURES,
    "unetplus": FEATURES,
    "attention_unet_oktay": {"features": (4, 8, 8)},
    "attention_unet": FEATURES,
    "resunet": FEATURES,
    "dense_unet167": {"stem_features": 8, "growth": 4, "blocks": (1, 2, 1, 1), "last_features": (8, 4)},
    "dense_unet": {"features": (4, 8)},
    "vnet": {"features": (4, 8), "convs_per_stage": (1, 1), "decoder_convs": (1,)},
    "nnunet_plain": {"features": (4, 8), "strides": 2, "kernel_sizes": 3},
    "nnunet_resenc": {"features": (4, 8), "strides": 2, "kernel_sizes": 3},
}
"""Options of each network; depth and widths as small as its structure allows."""

MEMBERS = [(info.name, dims) for info in list_networks() for dims in info.dims]
"""Every network in every number of dimensions it can be built for."""


def tiny(name: str, dims: int, in_channels: int = 1, out_channels: int = 2, **options: Any) -> SegmentationNetwork:
    """Build the small version of a network, always with the same weights."""
    return build_network(name, dims, in_channels, out_channels, seed=0, **{**TINY[name], **options})


def batch(network: SegmentationNetwork, count: int = 2, at_least: int = 5) -> torch.Tensor:
    """Random images of the smallest legal size of at least so many voxels along every axis."""
    size = network.legal_size((at_least,) * network.dims)
    return torch.randn(count, network.in_channels, *size, generator=torch.Generator().manual_seed(1))


def silent_parameters(network: SegmentationNetwork, images: torch.Tensor) -> list[str]:
    """Names of the parameters to which the squared logits of all heads give no gradient.

    A bias right in front of a normalization needs a gradient only in name: the normalization takes the bias out, so
    that all it gets is rounding, or nothing.
    """
    outputs = network(images)
    heads = outputs.values() if isinstance(outputs, dict) else [outputs]
    sum(logits.square().sum() for logits in heads).backward()
    idle = {f"{name}.conv.bias" for name, unit in network.named_modules() if _normalizes(unit)}
    return [
        name
        for name, p in network.named_parameters()
        if p.grad is None or (name not in idle and not p.grad.abs().sum() > 0)
    ]


def _normalizes(unit: torch.nn.Module) -> bool:
    return hasattr(unit, "conv") and not isinstance(getattr(unit, "norm", torch.nn.Identity()), torch.nn.Identity)
