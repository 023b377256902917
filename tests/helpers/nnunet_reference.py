"""nnU-Net's own networks, where dynamic-network-architectures is installed, and the shapes of their weights."""

import importlib
from pydoc import locate

from pipeline.model.nnunet import nnunet_weights


def reference_network(architecture, in_channels, out_channels):
    """The network that nnU-Net builds from the entry ``architecture`` of a plan, with deep supervision."""
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        arguments[name] = locate(arguments[name]) if arguments[name] is not None else None
    module, _, name = architecture["network_class_name"].rpartition(".")
    build = getattr(importlib.import_module(module), name)
    return build(input_channels=in_channels, num_classes=out_channels, deep_supervision=True, **arguments)


def nested_shapes(state):
    """Shapes of a state dict without its repetitions, nested by the parts of the names to save space."""
    tree = {}
    for name, value in nnunet_weights(state).items():
        *parts, leaf = name.split(".")
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
        branch[leaf] = list(value.shape)
    return tree
