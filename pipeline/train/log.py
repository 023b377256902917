"""What happened epoch by epoch: a table, TensorBoard events, a picture of curves, and what was made of the device."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from pipeline.core.files import atomic_path
from pipeline.core.tables import write_csv
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import multiply_adds
from pipeline.model.device import autocast
from pipeline.train.loader import PatchSource, network_size

_PASSES = 3  # forward, and backward to the inputs and to the weights
_ROUNDS = 5


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
    # All epochs are written anew: an organ may first be scored in a later one, and gets a column then.
    organs = list(dict.fromkeys(organ for record in records for organ in record.dice))
    plain = [name for name in EpochRecord.__dataclass_fields__ if name != "dice"]
    header = [*plain, *(f"dice_{organ}" for organ in organs)]
    rows = ([getattr(e, name) for name in plain] + [e.dice.get(organ) for organ in organs] for e in records)
    write_csv(path, [header, *rows], digits=6)


_LOGGED = ("loss", "learning_rate", "patches_per_s", "data_share", "peak_memory_mb", "gflops", "ceiling_gflops")


def scalars(record: EpochRecord) -> dict[str, float | None]:
    """The numbers of an epoch by the names under which they are logged; None where there is none."""
    training = {f"train/{name}": getattr(record, name) for name in _LOGGED}
    organs = {f"validation/{organ}": value for organ, value in record.dice.items()}
    return {**training, "validation/mean_dice": record.mean_dice, **organs}


def log_epoch(writer: SummaryWriter, record: EpochRecord) -> None:
    """Write one epoch to TensorBoard."""
    for name, value in scalars(record).items():
        if value is not None:
            writer.add_scalar(name, value, record.epoch)
    writer.flush()


_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito, Color Universal Design, 2008, for lines on white paper: dark ones first, without yellow."""

_QUIET = "#9aa5b1"
_NAMED = len(_COLORS)  # of more organs the worst are named, and the others are grey
_MARKED = 40  # up to so many epochs each is a dot, of a single one there is no line
_DRAW_EVERY_S = 30.0


class Curves:
    """The picture of a training: drawn anew after a validation, at most twice a minute, and at the end.

    Drawing takes half a second of a processor, longer than many an epoch of a small training.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.drawn, self.due = path, time.monotonic(), False

    def note(self, records: Sequence[EpochRecord], finished: bool) -> None:
        """Draw all epochs if it is time to, the last of which has just ended."""
        self.due = self.due or records[-1].mean_dice is not None
        if self.due and (finished or time.monotonic() - self.drawn >= _DRAW_EVERY_S):
            plot_history(records, self.path)
            self.drawn, self.due = time.monotonic(), False


def plot_history(records: Sequence[EpochRecord], path: Path) -> None:
    """Write :func:`history_figure` as a PNG, atomically."""
    figure = history_figure(records)
    FigureCanvasAgg(figure)  # a canvas without pyplot, whose global state no thread may share
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def history_figure(records: Sequence[EpochRecord]) -> Figure:
    """Draw a training.

    Loss and below it the learning rate; Dice per organ, a dot per validation, and below it patches per second and the
    share of waiting for data. The best validation is marked; the upper axes tell the time. Loss, Dice and mean Dice may
    be NaN or missing.
    """
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=[3, 1])
    (loss, dice), (rate, speed) = grid
    epochs = [record.epoch for record in records]
    _line(loss, epochs, [record.loss for record in records], _COLORS[0], "training loss")
    loss.set_ylabel("loss")
    loss.set_title("Training loss", loc="left")
    _line(rate, epochs, [record.learning_rate for record in records], _QUIET, "learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", scilimits=(-2, 3))
    _draw_dice(dice, [record for record in records if record.validation_s > 0])
    _draw_speed(speed, records)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _mark_best(axes, records)
    for axes in (rate, speed):
        axes.set_xlabel("epoch")
    for axes in (loss, dice):
        _tell_time(axes, records)
    return figure


def _line(axes: Axes, x: Sequence[int], y: Sequence[float], color: str, label: str, width: float = 1.6) -> None:
    axes.plot(x, y, color=color, linewidth=width, marker="." if len(x) <= _MARKED else "", label=label)


def _draw_dice(axes: Axes, validated: Sequence[EpochRecord]) -> None:
    """Dice per organ and their mean; the legend has the last values, highest first."""
    axes.set_title("Validation on whole volumes", loc="left")
    axes.set_ylabel("Dice")
    if not validated:
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no validation yet", ha="center", va="center", transform=axes.transAxes, color=_QUIET)
        return
    epochs = [record.epoch for record in validated]
    curves = {organ: _numbers([record.dice.get(organ) for record in validated]) for organ in validated[-1].dice}
    worst_first = sorted(curves, key=lambda organ: float(np.nan_to_num(curves[organ][-1], nan=2.0)))
    named = list(curves) if len(curves) <= _NAMED else [organ for organ in curves if organ in worst_first[:_NAMED]]
    handles = []
    for organ, values in curves.items():
        if organ not in named:
            axes.plot(epochs, values, color=_QUIET, linewidth=0.6, alpha=0.6)
    for color, organ in zip(_COLORS, named, strict=False):
        name = organ.replace("$", r"\$")
        handles += axes.plot(epochs, curves[organ], color=color, linewidth=1.2, marker=".", label=name)
    mean = _numbers([record.mean_dice for record in validated])
    handles += axes.plot(epochs, mean, color="black", linewidth=2.2, marker="o", markersize=4, label="mean")
    ends = {handle: float(np.asarray(handle.get_ydata(), float)[-1]) for handle in handles}
    handles.sort(key=lambda handle: -np.nan_to_num(ends[handle], nan=-1.0))
    texts = [f"{handle.get_label()}  {'-' if np.isnan(ends[handle]) else f'{ends[handle]:.3f}'}" for handle in handles]
    others = len(curves) - len(named)
    title = "last validation" + (f"\nand {others} better organs in grey" if others else "")
    axes.legend(handles, texts, title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    known = np.concatenate([mean, *curves.values()])
    known = known[np.isfinite(known)]
    axes.set_ylim(0.5 if known.size and known.min() >= 0.5 else 0.0, 1.0)


def _draw_speed(axes: Axes, records: Sequence[EpochRecord]) -> None:
    epochs = [record.epoch for record in records]
    _line(axes, epochs, [record.patches_per_s for record in records], _COLORS[0], "patches per second")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("patches/s", color=_COLORS[0])
    wait = axes.twinx()
    waits = [record.data_share for record in records]
    wait.fill_between(epochs, waits, color=_COLORS[1], alpha=0.25, linewidth=0)
    _line(wait, epochs, waits, _COLORS[1], "data wait", 0.8)
    wait.set_ylim(0, 1)
    wait.yaxis.set_major_formatter(PercentFormatter(1.0))
    wait.set_ylabel("data wait", color=_COLORS[1])


def _mark_best(axes: Axes, records: Sequence[EpochRecord]) -> None:
    """A line at the best validation; its Dice where Dice is drawn."""
    scored = [record for record in records if record.mean_dice is not None and np.isfinite(record.mean_dice)]
    best = max(scored, key=lambda record: record.mean_dice or 0.0, default=None)
    if best is None:
        return
    axes.axvline(best.epoch, color="black", linestyle=":", linewidth=1)
    if axes.get_ylabel() == "Dice":
        text = f"best: {best.mean_dice:.3f}, epoch {best.epoch}"
        late = best.epoch > (records[0].epoch + records[-1].epoch) / 2
        place = (-6 if late else 6, 6)
        axes.annotate(
            text,
            (best.epoch, 0),
            xycoords=("data", "axes fraction"),
            xytext=place,
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=9,
        )


def _tell_time(axes: Axes, records: Sequence[EpochRecord]) -> None:
    """The time spent until some epochs, along the upper edge."""
    spent = np.cumsum([record.seconds + record.validation_s for record in records])
    places = np.unique(np.linspace(0, len(records) - 1, 6).round().astype(int))
    unit, name = (1, "s") if spent[-1] < 180 else (60, "min") if spent[-1] < 180 * 60 else (3600, "h")
    upper = axes.secondary_xaxis("top")
    times = [spent[place] / unit for place in places]
    labels = [f"{time:.0f}" if time >= 10 else f"{time:.1f}" for time in times]
    upper.set_xticks([records[place].epoch for place in places], labels)
    upper.tick_params(labelsize=8, colors="#555555")
    upper.set_xlabel(f"time ({name})", fontsize=8, color="#555555", loc="right")


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


class Resources:
    """Completes the records of a training by what it makes of the device.

    Args:
        network: Before it is moved or wrapped.
        source: Where its patches come from.
        dtype: Type of the network's arithmetic.
    """

    def __init__(self, network: SegmentationNetwork, source: PatchSource, dtype: torch.dtype) -> None:
        self.operations = 2 * _PASSES * multiply_adds(network, network_size(source), network.in_channels)
        self.device = source.device
        self.ceiling = convolution_ceiling(source.device, dtype, network.dims)

    def complete(self, record: EpochRecord) -> EpochRecord:
        """The record with memory, and billions of operations per second, made and possible."""
        made = self.operations * record.patches_per_s / 1e9
        return replace(record, peak_memory_mb=self._peak_mb(), gflops=made, ceiling_gflops=self.ceiling / 1e9)

    def _peak_mb(self) -> float | None:
        """Most that was in use: on a GPU since the last epoch, by PyTorch; else of the process since its start."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak / 2**20
        with suppress(ImportError):
            import resource  # not on Windows

            # in bytes on macOS, in KiB elsewhere
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return None


@torch.no_grad()
def convolution_ceiling(device: torch.device, dtype: torch.dtype, dims: int) -> float:
    """Operations per second of one large convolution (2 or 3 axes, kernels of 3); takes a tenth of a second."""
    large = device.type == "cuda"
    channels, edge = 128 if large else 64, {(True, 3): 96, (True, 2): 1024, (False, 3): 24, (False, 2): 96}[large, dims]
    kind, order = ((nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d))[dims - 2]
    layer = kind(channels, channels, 3, padding=1, bias=False, device=device)
    layer.to(memory_format=order)  # type: ignore[call-overload]
    images = torch.ones((1, channels, *(edge,) * dims), device=device).contiguous(memory_format=order)
    # The best of a few: the first call chooses an algorithm and reserves memory.
    seconds = []
    with autocast(device, dtype):
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            layer(images)
            if large:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    operations = 2 * edge**dims * channels**2 * 3**dims
    return float(operations / min(seconds))
