"""Every network side by side: its size, its cost for one patch, its source."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.core import ConfigError, sentence
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.factory import build_network, list_networks

__all__ = ["NetworkCost", "survey_networks"]

_LARGEST = 16384  # products of larger edges overflow PyTorch's sizes


@dataclass(frozen=True)
class NetworkCost:
    """One network with its default options in one number of dimensions.

    Args:
        name: Name in the factory.
        dims: Number of spatial axes.
        parameters: Trainable parameters.
        patch_size: Smallest legal size that covers the patch asked for.
        output_size: Size of the logits of that patch.
        multiply_adds: Of the convolutions, in predicting that patch.
        summary: What it is, in one line.
        source: Paper it comes from.
    """

    name: str
    dims: int
    parameters: int
    patch_size: tuple[int, ...]
    output_size: tuple[int, ...]
    multiply_adds: int
    summary: str
    source: str


def survey_networks(edge: int, in_channels: int = 1, out_channels: int = 2) -> tuple[NetworkCost, ...]:
    """Costs of all networks, in the order of the registry, 2D before 3D; takes no memory for weights.

    Args:
        edge: Voxels of the patch along every axis.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.

    Raises:
        ConfigError: If the edge or a number of channels is below 1, or the edge above 16384.
    """
    if edge < 1:
        raise ConfigError([sentence("patch", "an edge of at least 1 voxel", edge, "Enlarge it")])
    if edge > _LARGEST:
        raise ConfigError([sentence("patch", f"an edge of at most {_LARGEST} voxels", edge, "Reduce it")])
    rows = []
    for info in list_networks():
        for dims in info.dims:
            with torch.device("meta"):
                network = build_network(info.name, dims, in_channels, out_channels)
            patch = network.legal_size((edge,) * dims)
            rows.append(
                NetworkCost(
                    info.name,
                    dims,
                    count_parameters(network),
                    patch,
                    network.output_size(patch),
                    multiply_adds(network, patch, in_channels),
                    info.summary,
                    info.source,
                )
            )
    return tuple(rows)
