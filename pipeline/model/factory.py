"""All networks by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.core import ConfigError
from pipeline.model.base import SegmentationNetwork, initialize
from pipeline.model.options import parse_options, suggestion
from pipeline.model.registry import NETWORKS, NetworkEntry

__all__ = ["NetworkInfo", "build_network", "list_networks"]


@dataclass(frozen=True)
class NetworkInfo:
    """One row of the list of networks.

    Args:
        name: Name for :func:`build_network`.
        dims: Numbers of spatial axes it can be built for.
        summary: What it is, in one line.
        source: Paper it comes from.
        planned: Whether stages left open in the settings follow from the plan, not from the paper.
        defaults: Options and their default values.
    """

    name: str
    dims: tuple[int, ...]
    summary: str
    source: str
    planned: bool
    defaults: dict[str, Any]


def build_network(
    name: str,
    dims: int,
    in_channels: int,
    out_channels: int,
    *,
    seed: int | None = None,
    initialization: Literal["he", "pytorch"] = "he",
    **options: Any,
) -> SegmentationNetwork:
    """Build and initialize a network.

    Args:
        name: One of those that :func:`list_networks` lists.
        dims: Number of spatial axes, 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the logits: the classes, background included.
        seed: Makes the initial weights reproducible and leaves torch's global RNG alone; None draws them from the
            global RNG (on the CPU).
        initialization: ``he``: :func:`pipeline.model.base.initialize`. ``pytorch``: what PyTorch's layers begin with.
        options: Options of the network, such as ``features=(16, 32, 64)``.

    Returns:
        The network in training mode, on the current default device. See :class:`SegmentationNetwork` for what it takes
        and returns.

    Raises:
        ConfigError: If a name, number, option or value is wrong; all problems of the arguments or of the options.

    Example:
        >>> network = build_network("unet", 3, 1, 4, features=(16, 32, 64), norm="instance")
        >>> network.divisor
        (4, 4, 4)
    """
    entry = _entry(name, dims, in_channels, out_channels)
    parsed = parse_options(entry.options, options, network=name)
    with _seeded(seed):
        network = entry.build(dims, in_channels, out_channels, parsed)
        if initialization == "he":
            initialize(network)
    return network


def list_networks() -> tuple[NetworkInfo, ...]:
    """All networks, in the order of the registry."""
    return tuple(
        NetworkInfo(name, entry.dims, entry.summary, entry.source, entry.planned, entry.options().model_dump())
        for name, entry in NETWORKS.items()
    )


def _entry(name: str, dims: int, in_channels: int, out_channels: int) -> NetworkEntry:
    entry = NETWORKS.get(name)
    problems = []
    if entry is None:
        known = tuple(NETWORKS)
        problems.append(f"name: expected one of {', '.join(known)}, got {name!r}. {suggestion(name, known)}")
    elif dims not in entry.dims:
        legal = " or ".join(str(n) for n in entry.dims)
        problems.append(f"dims: expected {legal} for {name}, got {dims!r}. It is the number of spatial axes.")
    for what, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value < 1:
            problems.append(f"{what}: expected at least 1, got {value!r}. Correct it.")
    if problems or entry is None:
        raise ConfigError(problems, "network")
    return entry


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, which are not forked
        yield
