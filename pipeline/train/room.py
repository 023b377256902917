"""Whether a training step has room: asked before the first one, so that the system does not kill the training."""

from __future__ import annotations

from pipeline.config import TrainSettings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import bytes_in_words
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import kept_bytes
from pipeline.model.device import choose_dtype, free_bytes
from pipeline.train.source import PatchSource

__all__ = ["require_room"]


def require_room(network: SegmentationNetwork, source: PatchSource, settings: TrainSettings) -> None:
    """Refuse a batch whose activations alone are more than the device's free memory.

    What passes may still be too much, by gradients, optimizer and scratch space. Nothing is asked where activations
    are recomputed.

    Args:
        network: What is trained.
        source: Its patches, the cached cases loaded.
        settings: Section ``train``.

    Raises:
        VolsegError: If the memory is too small, with the numbers.
    """
    free = free_bytes(source.device)
    if free is None or settings.recompute:
        return
    size = [length for axis, length in enumerate(source.patch_size) if axis != source.squeeze_axis]
    dtype = choose_dtype(source.device, settings.precision)
    needed = kept_bytes(network, (source.batch_size, network.in_channels, *size), dtype)
    if needed > free:
        patches = f"{source.batch_size} patches of {' x '.join(map(str, size))}"
        rule = f"at least {bytes_in_words(needed)} for a step with {patches}"
        advice = (
            "Lower sample.batch_size (train.accumulate makes up for it) or sample.patch_size, or set train.recompute"
        )
        raise VolsegError(sentence(f"memory of {source.device}", rule, bytes_in_words(free), advice))
