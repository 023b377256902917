"""When a training diverges: what its batch held, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import TrainSettings
from pipeline.core.errors import VolsegError
from pipeline.model.folder import save_weights

__all__ = ["BATCH_FILE", "diverged", "has_exploded"]

BATCH_FILE = "diverged.safetensors"
"""The batch with which a training diverged: ``images`` (B, C, *S) and ``labels`` (B, *S)."""

_EXPLODED = 20.0  # times the best epoch's loss
_SMALLEST_LOSS = 0.05  # below this the best loss says nothing about the scale
_STRANGE = 100.0  # SD; normalized intensities this large are not tissue


def has_exploded(loss: float, earlier: Sequence[float]) -> bool:
    """Whether an epoch's loss is out of all proportion to those before it.

    Args:
        loss: Mean loss of the epoch.
        earlier: Those of the epochs before.
    """
    return bool(earlier) and loss > _EXPLODED * max(min(earlier), _SMALLEST_LOSS)


def diverged(
    folder: Path,
    loss: float,
    iteration: int,
    batch: tuple[Tensor, Tensor],
    cases: Sequence[str],
    settings: TrainSettings,
) -> VolsegError:
    """Save the batch and put together the error to raise.

    Args:
        folder: Folder of the fold; receives :data:`BATCH_FILE`.
        loss: The loss that was not finite or too large.
        iteration: Number of the step, from 1.
        batch: The images and labels of this step.
        cases: Ids of their cases.
        settings: Section ``train``.
    """
    images, labels = batch
    save_weights(folder / BATCH_FILE, {"images": images.contiguous(), "labels": labels.contiguous()})
    classes = [value for value in torch.unique(labels).tolist() if value >= 0]
    strange = int((~images.isfinite()).sum())
    low, high = (float(value) for value in torch.aminmax(images.nan_to_num()))
    if strange:
        cause = f"{strange} of its intensities are not finite. Look for them with `volseg check`, and preprocess again"
    elif max(-low, high) > _STRANGE:
        cause = "Its intensities are far from 0. Look at these cases: an outlier may have escaped the normalization"
    else:
        clip = "" if settings.gradient_clip else ", or set train.gradient_clip: 12"
        cause = f"Its intensities look right. Lower train.learning_rate ({settings.learning_rate:g}){clip}"
    named = ", ".join(dict.fromkeys(cases))
    return VolsegError(
        f"training loss: expected a finite number like those before, got {loss:g} in step {iteration}. Its batch is in "
        f"{folder / BATCH_FILE}: cases {named}; intensities {low:.3g} to {high:.3g}; classes "
        f"{', '.join(map(str, classes)) or 'none'}. {cause}. The checkpoint before it is kept."
    )
