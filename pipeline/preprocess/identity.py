"""Texts that name a transform the same way in every process, so that a changed parameter shows in a hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.core.files import text_hash

__all__ = ["identity"]

_DEEPEST = 6  # objects within objects; MONAI's transforms need 3


def identity(value: Any, depth: int = 0) -> str:
    """Name a value by what it is made of.

    Containers count by their parts, arrays by a hash of their content, functions and classes by their name, other
    objects by their class and attributes, random generators by their class alone.

    Args:
        value: Anything, e.g. a MONAI transform with its parameters.
        depth: How many objects this one lies in.

    Returns:
        One line; equal for equal values, also in other processes.
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else value
        return f"array({value.dtype}, {tuple(value.shape)}, {text_hash(array.tobytes().hex())})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key}: {identity(item, depth)}' for key, item in value.items()))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(identity(item, depth) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(identity(item, depth) for item in value))}}}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__") and depth < _DEEPEST:
        return f"{type(value).__qualname__}{identity(vars(value), depth + 1)}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
