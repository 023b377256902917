"""One update of the weights, from one batch or from several parts of it, and their moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from pipeline.config import TrainSettings
from pipeline.model.device import autocast
from pipeline.model.execution import PLAIN, Execution
from pipeline.train.state import TrainState

__all__ = ["other_weights", "update", "update_average", "without_margin"]

Objective = Callable[[Tensor | Mapping[str, Tensor], Tensor], Tensor]
"""The loss of a network's output and labels of the input's size."""


def update(
    state: TrainState,
    model: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    objective: Objective,
    settings: TrainSettings,
    dtype: torch.dtype,
    rate: float,
    how: Execution = PLAIN,
) -> Tensor:
    """Update the weights once.

    Args:
        state: What is trained, changed in place.
        model: The network, wrapped where several processes train it.
        parts: Images (B, C, *S) and labels (B, *S), taken one pair after the other.
        objective: The loss; the gradients of the parts are averaged.
        settings: Section ``train``.
        dtype: Type of the network's arithmetic.
        rate: Learning rate.
        how: How the network is executed.

    Returns:
        Mean loss of the parts, on the device.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    total: Tensor | float = 0.0
    for number, (images, labels) in enumerate(parts, start=1):
        later = isinstance(model, DistributedDataParallel) and number < len(parts)
        with cast(DistributedDataParallel, model).no_sync() if later else nullcontext():  # gradients are exchanged once
            with autocast(images.device, dtype):
                heads = model(how.images(images))
            loss = objective(heads, labels) / len(parts)
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    if settings.gradient_clip is not None:
        state.scaler.unscale_(state.optimizer)
        clip_grad_norm_(state.network.parameters(), settings.gradient_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return torch.as_tensor(total)


def update_average(state: TrainState, decay: float, steps: int) -> None:
    """Move the average of the weights, if one is kept, towards the weights.

    Args:
        state: Holds both.
        decay: Share of the average that stays; less in the first steps, at most n / (n + 10) after n, which avoids the
            bias of the first weights.
        steps: Updates done.
    """
    average = state.average
    if not average:
        return
    decay = min(decay, steps / (steps + 10))
    current = state.network.state_dict()
    with torch.no_grad():
        floating = [name for name, tensor in average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([average[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name in average.keys() - set(floating):
            average[name].copy_(current[name])


@contextmanager
def other_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The network in evaluation mode for the length of a block, with other weights, none meaning its own."""
    kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(dict(weights) or kept)
    network.eval()
    try:
        yield network
    finally:
        network.load_state_dict(kept)


def without_margin(labels: Tensor, margin: Sequence[int]) -> Tensor:
    """The part of labels (B, *S) of the input's size that the logits of valid convolutions cover."""
    inner = (slice(lost, n - lost) for n, lost in zip(labels.shape[1:], margin, strict=True))
    return labels[(slice(None), *inner)]
