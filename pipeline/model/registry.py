"""The registry of networks: a literal dictionary of name, class, options and source; how they are built and listed.

Several names may share a class and differ in ``defaults`` alone: such a preset is an entry, not a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pipeline.core.documents import short
from pipeline.core.errors import ConfigError
from pipeline.model.attention import AttentionUNet, AttentionUNetOptions, OktayAttentionUNet, OktayAttentionUNetOptions
from pipeline.model.base import SegmentationNetwork, initialize
from pipeline.model.ciresan import WINDOW, Ciresan, CiresanOptions
from pipeline.model.dense import DenseUNet, DenseUNet167, DenseUNet167Options, DenseUNetOptions
from pipeline.model.network_options import NetworkOptions, parse_options, suggestion
from pipeline.model.nnunet import PlainOptions, PlainUNet, ResidualOptions, ResidualUNet
from pipeline.model.unet import ResUNet, ResUNetOptions, UNet, UNetOptions
from pipeline.model.unetpp import UNetPlusPlus, UNetPlusPlusOptions
from pipeline.model.vnet import VNet, VNetOptions


@dataclass(frozen=True)
class NetworkEntry:
    """How one network is built.

    Args:
        build: Takes dims, in_channels, out_channels and the parsed options.
        options: Class of its options.
        dims: Numbers of spatial axes it can be built for.
        summary: What it is, in one line.
        source: Paper it comes from.
        planned: Whether stages that the settings leave open follow from the dataset's plan; otherwise the defaults
            of the options, which are the paper's, hold.
        patch_size: Training patch it was made for, where that does not follow from the plan.
        defaults: Options whose default is another one than that of the class, as the source has them.
    """

    build: Callable[[int, int, int, Any], SegmentationNetwork]
    options: type[NetworkOptions]
    dims: tuple[int, ...]
    summary: str
    source: str
    planned: bool = False
    patch_size: tuple[int, ...] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


NETWORKS: dict[str, NetworkEntry] = {
    "unet": NetworkEntry(
        UNet,
        UNetOptions,
        (2, 3),
        "U-Net, padded and normalized, kernels and strides per axis",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        planned=True,
    ),
    "unet2015": NetworkEntry(
        UNet,
        UNetOptions,
        (2, 3),
        "The original U-Net: valid convolutions, cropped skip connections, no normalization",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        defaults={"padding": "valid", "norm": "none", "bias": True, "head_size": "full"},
    ),
    # The network released with the paper has more than the paper's text says: see phseg_v5.prototxt.
    "unet_phseg_v5": NetworkEntry(
        UNet,
        UNetOptions,
        (2,),
        "The U-Net of the 2015 Caffe release: activated up-convolutions, dropout at the two deepest stages",
        "Ronneberger et al. 2015, release phseg_v5",
        defaults={
            "padding": "valid",
            "norm": "none",
            "bias": True,
            "head_size": "full",
            "dropout": 0.5,
            "dropout_at": "deep",
            "up_features": "last_kept",
            "up_activation": True,
        },
    ),
    "unet_upconv": NetworkEntry(
        UNet,
        UNetOptions,
        (2, 3),
        "U-Net, padded and normalized, nearest-neighbour interpolation and a convolution for every step up",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        defaults={"bias": True, "up": "nearest"},
    ),
    "unet32": NetworkEntry(
        UNet,
        UNetOptions,
        (2, 3),
        "U-Net of half the width, the baseline of UNet++",
        "Zhou et al. 2018, arXiv 1807.10165",
        defaults={"features": (32, 64, 128, 256, 512), "norm": "none", "bias": True},
    ),
    # Table 2 gives 9.13 million parameters for it, which the widths in the same table do not.
    "wide_unet": NetworkEntry(
        UNet,
        UNetOptions,
        (2, 3),
        "U-Net about as large as UNet++, its second baseline",
        "Zhou et al. 2018, arXiv 1807.10165",
        defaults={"features": (35, 70, 140, 280, 560), "norm": "none", "bias": True},
    ),
    # The paper counts 19,069,955 parameters: these, without scale and shift of batch normalization.
    "unet3d_cicek": NetworkEntry(
        UNet,
        UNetOptions,
        (3,),
        "The original 3D U-Net: valid convolutions, batch normalization, channels doubled before pooling",
        "Çiçek et al. 2016, arXiv 1606.06650",
        defaults={
            "features": (64, 128, 256, 512),
            "padding": "valid",
            "bias": True,
            "narrow_start": True,
            "up_features": "kept",
            "up_bias": False,
            "head_size": "full",
        },
    ),
    "ciresan_n4": NetworkEntry(
        Ciresan,
        CiresanOptions,
        (2,),
        "Pixel classifier on 95 x 95 windows, computed for all pixels at once",
        "Ciresan et al. 2012, NeurIPS 25, Deep Neural Networks Segment Neuronal Membranes",
        patch_size=(WINDOW, WINDOW),
    ),
    "unetpp": NetworkEntry(
        UNetPlusPlus,
        UNetPlusPlusOptions,
        (2, 3),
        "UNet++, nested U-Nets of all depths with dense skip connections",
        "Zhou et al. 2018, arXiv 1807.10165",
        planned=True,
    ),
    "unetplus": NetworkEntry(
        UNetPlusPlus,
        UNetPlusPlusOptions,
        (2, 3),
        "UNet+, nested U-Nets of all depths, each row a chain",
        "Zhou et al. 2020, arXiv 1912.05074",
        planned=True,
        defaults={"dense": False},
    ),
    "attention_unet_oktay": NetworkEntry(
        OktayAttentionUNet,
        OktayAttentionUNetOptions,
        (3,),
        "The published Attention U-Net: gates driven from one level below, logits combined from all levels",
        "Oktay et al. 2018, arXiv 1804.03999",
    ),
    "attention_unet": NetworkEntry(
        AttentionUNet,
        AttentionUNetOptions,
        (2, 3),
        "U-Net whose skip connections are gated by the upsampled features, the widely used variant",
        "Oktay et al. 2018, arXiv 1804.03999",
    ),
    "resunet": NetworkEntry(
        ResUNet,
        ResUNetOptions,
        (2, 3),
        "U-Net of pre-activated residual blocks, strides down and interpolation up",
        "Zhang et al. 2018, arXiv 1711.10684",
    ),
    "dense_unet": NetworkEntry(
        DenseUNet,
        DenseUNetOptions,
        (2, 3),
        "U-Net of dense blocks, depth and growth per stage",
        "Huang et al. 2017, arXiv 1608.06993; the arrangement is this project's",
        planned=True,
    ),
    "dense_unet167": NetworkEntry(
        DenseUNet167,
        DenseUNet167Options,
        (2,),
        "The 2D network of H-DenseUNet: a DenseNet-161 with added skip connections",
        "Li et al. 2018, arXiv 1709.07330",
    ),
    "nnunet_plain": NetworkEntry(
        PlainUNet,
        PlainOptions,
        (2, 3),
        "nnU-Net's PlainConvUNet: strides down, transposed convolutions up, a head per level",
        "Isensee et al. 2021, 10.1038/s41592-020-01008-z",
        planned=True,
    ),
    "nnunet_resenc": NetworkEntry(
        ResidualUNet,
        ResidualOptions,
        (2, 3),
        "nnU-Net's ResidualEncoderUNet: residual blocks in the encoder, a lighter decoder",
        "Isensee et al. 2024, arXiv 2404.09556",
        planned=True,
    ),
    "vnet": NetworkEntry(
        VNet,
        VNetOptions,
        (3,),
        "V-Net, residual stages of 5 x 5 x 5 convolutions, as in MONAI",
        "Milletari et al. 2016, arXiv 1606.04797",
    ),
}


@dataclass(frozen=True)
class NetworkInfo:
    """One row of the list of networks."""

    name: str
    dims: tuple[int, ...]
    summary: str
    source: str
    defaults: dict[str, Any]


def new_network(
    name: str,
    dims: int,
    in_channels: int,
    out_channels: int,
    *,
    seed: int | None = None,
    initialization: Literal["he", "pytorch"] = "he",
    **options: Any,
) -> SegmentationNetwork:
    """Build and initialize a network; arguments and errors as for :func:`~pipeline.model.spec.build_network`."""
    entry = _checked_entry(name, dims, in_channels, out_channels)
    # What the caller gives goes over the defaults of the preset.
    parsed = parse_options(entry.options, {**entry.defaults, **options}, network=name)
    with _seeded(seed):
        network = entry.build(dims, in_channels, out_channels, parsed)
        if initialization == "he":
            initialize(network)
    return network


def list_networks() -> tuple[NetworkInfo, ...]:
    """All networks, in the order of the registry."""
    return tuple(
        NetworkInfo(name, e.dims, e.summary, e.source, e.options(**e.defaults).model_dump())
        for name, e in NETWORKS.items()
    )


def _checked_entry(name: str, dims: int, in_channels: int, out_channels: int) -> NetworkEntry:
    entry = NETWORKS.get(name)
    problems = []
    if entry is None:
        known = tuple(NETWORKS)
        problems.append(f"name: expected one of {', '.join(known)}, got {short(name)}. {suggestion(name, known)}")
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
