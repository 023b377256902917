"""A checkpoint of nnU-Net: its weights and the few words beside them, of a pickle that may run nothing.

PyTorch's reader for untrusted files builds tensors, numbers, texts and containers alone. Checkpoints hold two names
beyond that, NumPy's scalars and types, in the record of scores; something empty stands in for them, so that no code of
NumPy is called either. Every other name is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.core.documents import short
from pipeline.core.errors import VolsegError, sentence

_ADVICE = "Only checkpoints that nnU-Net itself wrote can be read"


class _Nothing:
    """Stands for a number of NumPy in a checkpoint, which nobody asks for."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"}


@dataclass(frozen=True)
class Checkpoint:
    """What is taken from a checkpoint.

    Args:
        weights: State dict of the network, under nnU-Net's names.
        trainer: Class that trained it.
        configuration: Such as ``3d_fullres``.
        mirror_axes: Axes of the network whose mirror images it was trained with.
    """

    weights: Mapping[str, torch.Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(content: bytes, file: str) -> Checkpoint:
    """Read a checkpoint of nnU-Net v2.

    Args:
        content: Of the file.
        file: The file in words, for messages.

    Raises:
        VolsegError: If it is damaged, holds anything but tensors, numbers and texts, or lacks something.
    """
    stream = io.BytesIO(content)
    _require_plain(stream, file)
    try:
        # Before anything is built: what the pickle would call.
        called = set(torch.serialization.get_unsafe_globals_in_checkpoint(stream)) - _STAND_INS
        if called:
            got = f"{short(sorted(called)[0])}, which could run anything"
            raise VolsegError(sentence("checkpoint", "tensors, numbers and texts", got, _ADVICE, file=file))
        stream.seek(0)
        with torch.serialization.safe_globals([(_Nothing, name) for name in sorted(_STAND_INS)]):
            found = torch.load(stream, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        got = short(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise VolsegError(sentence("checkpoint", "one that PyTorch can read", got, _ADVICE, file=file)) from None
    return _parts(found, file)


def _require_plain(stream: io.BytesIO, file: str) -> None:
    """Refuse what is no archive of PyTorch, is cut off, or is packed: PyTorch never packs, a bomb would be."""
    try:
        with zipfile.ZipFile(stream) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        got, advice = "another or a truncated file", "Copy it again"
        raise VolsegError(sentence("checkpoint", "a whole file of torch.save", got, advice, file=file)) from None
    if packed:
        got = f"a compressed one: {short(packed[0])}"
        raise VolsegError(sentence("checkpoint", "records as torch.save writes them", got, _ADVICE, file=file))
    stream.seek(0)


def _parts(found: Any, file: str) -> Checkpoint:
    """What is wanted of a checkpoint, its types checked."""
    content = found if isinstance(found, Mapping) else {}
    weights, trainer = content.get("network_weights"), content.get("trainer_name")
    given = content.get("init_args")
    configuration = given.get("configuration") if isinstance(given, Mapping) else None
    axes = content.get("inference_allowed_mirroring_axes") or ()
    kinds = {
        "network_weights": isinstance(weights, Mapping) and all(map(_is_weight, weights.items())),
        "trainer_name": isinstance(trainer, str),
        "init_args.configuration": isinstance(configuration, str),
        "inference_allowed_mirroring_axes": isinstance(axes, list | tuple) and all(axis in (0, 1, 2) for axis in axes),
    }
    wrong = [name for name, fits in kinds.items() if not fits]
    if wrong:
        rule, got = "one of nnU-Net v2", f"no usable {', '.join(wrong)}"
        raise VolsegError(sentence("checkpoint", rule, got, _ADVICE, file=file))
    assert isinstance(weights, Mapping)
    return Checkpoint(weights, str(trainer), str(configuration), tuple(sorted(int(axis) for axis in axes)))


def _is_weight(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
