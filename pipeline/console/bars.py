"""What is shown while a command works: a bar per kind of work, and the view of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.console.terminal import CONSOLE, say
from pipeline.console.training_view import TrainingView

if TYPE_CHECKING:
    from pipeline.train.history import EpochRecord

__all__ = ["Bars", "progress_bars"]

_SPEED_S = 86_400.0  # by default only the last 30 s tell the time left, in which a large case may not even end


@dataclass(frozen=True)
class Bars:
    """Ways to report progress while the bars are shown.

    Args:
        update: Takes how many items are done, how many there are, and what is being done.
        on_start: Takes the epochs that an earlier run of a training did and the expected number of epochs.
        on_step: Takes the share of a training that is done and the mean loss of its epoch so far.
        on_epoch: Takes an epoch's record and the expected number of epochs.
    """

    update: Callable[[int, int, str], None]
    on_start: Callable[[Sequence[EpochRecord], int], None]
    on_step: Callable[[float, SupportsFloat], None]
    on_epoch: Callable[[EpochRecord, int], None]


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Show a bar per kind of work, or where a training stands, while the block runs.

    Files and pipes get a line per epoch and nothing else; terminals a line per validation, which stays. The time left
    of other work follows from the mean of the last cases, a thousand at most, because cases differ in size.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=CONSOLE, speed_estimate_period=_SPEED_S)  # drawn by the display, not by itself
    tasks: dict[str, TaskID] = {}
    view = TrainingView()

    def update(done: int, total: int, what: str) -> None:
        if view.begun:  # whatever comes after a training
            view.finish()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    def on_epoch(record: EpochRecord, epochs: int) -> None:
        view.on_epoch(record, epochs)
        if record.mean_dice is not None or not CONSOLE.is_terminal:
            say(view.line())

    def drawn() -> RenderableType:
        return Group(*([bars] if tasks else []), *([view] if view.begun else []))

    with ExitStack() as shown:
        if CONSOLE.is_terminal:
            shown.enter_context(Live(console=CONSOLE, get_renderable=drawn))
        yield Bars(update, view.on_start, view.on_step, on_epoch)
        view.finish()  # not reached by Ctrl-C and errors, after which it stays as it was
