"""Networks by name, and what every one of them promises."""

from pipeline.model.base import SegmentationNetwork, forward_any_size, pad_to_legal
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.factory import NetworkInfo, build_network, list_networks

__all__ = [
    "NetworkInfo",
    "SegmentationNetwork",
    "build_network",
    "count_parameters",
    "forward_any_size",
    "list_networks",
    "multiply_adds",
    "pad_to_legal",
]
