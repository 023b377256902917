"""What nnU-Net writes into its plans and checkpoints, in the terms of this project's networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pipeline.core import ConfigError, sentence

__all__ = ["nnunet_options", "nnunet_weights"]

_NETWORKS = {"PlainConvUNet": "nnunet_plain", "ResidualEncoderUNet": "nnunet_resenc"}
_OPTIONS = {
    "features_per_stage": "features",
    "kernel_sizes": "kernel_sizes",
    "strides": "strides",
    "n_conv_per_stage": "convs_per_stage",
    "n_blocks_per_stage": "blocks_per_stage",
    "n_conv_per_stage_decoder": "convs_decoder",
    "conv_bias": "bias",
}
_LAYERS: Mapping[str, Mapping[str | None, object]] = {
    "conv_op": {"Conv2d": 2, "Conv3d": 3},
    "norm_op": {
        "InstanceNorm2d": "instance",
        "InstanceNorm3d": "instance",
        "BatchNorm2d": "batch",
        "BatchNorm3d": "batch",
    },
    "nonlin": {"LeakyReLU": "leaky_relu", "ReLU": "relu"},
    "dropout_op": {None: 0.0},
}
_Value = TypeVar("_Value")


def nnunet_options(architecture: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    """The network that an nnU-Net configuration describes.

    Args:
        architecture: Entry ``architecture`` of a configuration in ``plans.json``: ``network_class_name`` and
            ``arch_kwargs``, whose layers are given by their full class names.

    Returns:
        Name, dims and options for :func:`~pipeline.model.factory.build_network`, with deep supervision, without which
        nnU-Net's weights include heads that the network has not.

    Raises:
        ConfigError: If the network or one of its layers is of another kind.

    Reference: nnU-Net v2.8 with dynamic-network-architectures 0.4.
    """
    arguments = dict(architecture["arch_kwargs"])
    problems: list[str] = []
    class_name = str(architecture["network_class_name"]).rpartition(".")[2]
    if class_name not in _NETWORKS:
        advice = "Other networks of nnU-Net cannot be built"
        problems.append(sentence("network_class_name", f"one of {', '.join(_NETWORKS)}", class_name, advice))
    layers: dict[str, object] = {}
    for name, known in _LAYERS.items():
        value = arguments.get(name)
        short = value.rpartition(".")[2] if isinstance(value, str) else value
        if short not in known:
            legal = ", ".join("null" if layer is None else layer for layer in known)
            problems.append(sentence(f"arch_kwargs.{name}", f"one of {legal}", value, "Other layers cannot be built"))
        layers[name] = known.get(short)
    if problems:
        raise ConfigError(problems, "nnU-Net architecture")
    options = {ours: arguments[theirs] for theirs, ours in _OPTIONS.items() if theirs in arguments}
    options |= {"norm": layers["norm_op"], "activation": layers["nonlin"], "deep_supervision": True}
    return _NETWORKS[class_name], 3 if layers["conv_op"] == 3 else 2, options


def nnunet_weights(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """The entries of an nnU-Net state dict under the names of ``nnunet_plain`` and ``nnunet_resenc``.

    nnU-Net lists most tensors several times: every unit's layers once more as ``all_modules``, and the whole encoder
    once more below the decoder. These repetitions are left out; all other names are the same.

    Args:
        state: State dict of a network of dynamic-network-architectures: names and tensors, or anything by those names.

    Returns:
        A state dict for the network that :func:`nnunet_options` describes.
    """
    return {
        name: value
        for name, value in state.items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }
