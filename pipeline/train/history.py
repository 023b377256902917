"""What happened epoch by epoch: a CSV and TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pipeline.core.files import write_text

__all__ = ["EpochRecord", "log_epoch", "scalars", "write_history"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Args:
        epoch: Number, from 1.
        iteration: Iterations done so far.
        loss: Mean training loss.
        learning_rate: At the end of the epoch.
        seconds: Duration, validation left out.
        patches_per_s: Training patches per second.
        data_share: Share of the time spent on waiting for data and augmentation.
        progress: Share of the whole training that is done.
        validation_s: Duration of the validation, 0 if there was none.
        dice: Organ → Dice over the validation cases, empty if there was no validation.
        mean_dice: Their mean, or None.
        peak_memory_mb: Most memory in use, in MiB: on a GPU during the epoch, else of the process so far.
        gflops: Billions of operations per second of the network's convolutions, forward and backward.
        ceiling_gflops: What a large convolution reaches on the same device, measured when the run began.
    """

    epoch: int
    iteration: int
    loss: float
    learning_rate: float
    seconds: float
    patches_per_s: float
    data_share: float
    progress: float
    validation_s: float = 0.0
    dice: Mapping[str, float | None] = field(default_factory=dict)
    mean_dice: float | None = None
    peak_memory_mb: float | None = None
    gflops: float | None = None
    ceiling_gflops: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return {**vars(self), "dice": dict(self.dice)}


def write_history(records: Sequence[EpochRecord], path: Path) -> None:
    """Write all epochs as CSV, one column per organ; cells of epochs without validation stay empty."""
    organs = list(dict.fromkeys(organ for record in records for organ in record.dice))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    plain = [name for name in EpochRecord.__dataclass_fields__ if name != "dice"]
    writer.writerow([*plain, *(f"dice_{organ}" for organ in organs)])
    for record in records:
        values = [getattr(record, name) for name in plain] + [record.dice.get(organ) for organ in organs]
        writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in values])
    write_text(path, stream.getvalue())


def scalars(record: EpochRecord) -> dict[str, float | None]:
    """The numbers of an epoch by the names under which they are logged; None where there is none."""
    return {
        "train/loss": record.loss,
        "train/learning_rate": record.learning_rate,
        "train/patches_per_s": record.patches_per_s,
        "train/data_share": record.data_share,
        "train/peak_memory_mb": record.peak_memory_mb,
        "train/gflops": record.gflops,
        "train/ceiling_gflops": record.ceiling_gflops,
        "validation/mean_dice": record.mean_dice,
        **{f"validation/{organ}": value for organ, value in record.dice.items()},
    }


def log_epoch(writer: SummaryWriter, record: EpochRecord) -> None:
    """Write one epoch to TensorBoard."""
    for name, value in scalars(record).items():
        if value is not None:
            writer.add_scalar(name, value, record.epoch)
    writer.flush()
