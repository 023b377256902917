"""What is shown while a command works: a bar per kind of work, or where a training stands.

:func:`progress_bars` is what commands use. A terminal shows the bars live; files and pipes get lines only. The view of
a training fits terminals of any size: where there is little room it leaves out organs, curves and at last the bar.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, SupportsFloat

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.core.errors import visible
from pipeline.core.signals import Progress
from pipeline.core.tables import score_cell

if TYPE_CHECKING:
    from pipeline.train.log import EpochRecord


class PlainConsole(Console):
    """Prints names and messages as they are: rich would take [x] for a style, a terminal obeys control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything printed passes here: texts are made visible, rich's own commands to the terminal stay."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(visible(part.text), part.style)


CONSOLE = PlainConsole(soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line."""
    CONSOLE.print(text)


_BLOCKS = "▁▂▃▄▅▆▇█"
_LOOK_S = 1.0  # reading the loss waits for a GPU, so it is done once a second
_WAITS = 0.25  # from this share of waiting for data on, it stands out
_FEW, _MOST = 3, 12  # organs shown in a low terminal, and in any
_ELSE_LINES = 12  # lines beside the organs
_BAR_LEAST = 8  # columns; a terminal that has fewer gets no bar
_SPARK_COLUMNS = 70  # narrower terminals get numbers only
_SPEED_S = 86_400.0  # rich looks at the last 30 s by default, in which one large case may not even end


class TrainingView:
    """Mutable state of one training as a person sees it; shown by printing it, again whenever something changed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        self.begun = False
        self.ended: float | None = None
        self.records: list[EpochRecord] = []
        self.epochs = 0
        self.share = 0.0
        self.loss: float | None = None
        self.looked_s = float("-inf")
        self.base: tuple[float, float] | None = None  # seconds and share when the speed began to be measured
        self.known: tuple[float, float] | None = None  # seconds at which so many were left

    def on_start(self, records: Sequence[EpochRecord], epochs: int) -> None:
        """Take the epochs of earlier runs and the expected number of epochs."""
        self.begun, self.records, self.epochs, self.began = True, list(records), epochs, self.clock()

    def on_step(self, share: float, loss: SupportsFloat) -> None:
        """Take the share of the training that is done and the mean loss of the epoch so far."""
        self.begun = True
        self._advance(share)
        if self.clock() - self.looked_s >= _LOOK_S:
            self.loss, self.looked_s = float(loss), self.clock()

    def on_epoch(self, record: EpochRecord, epochs: int) -> None:
        """Take the record of an epoch and the expected number of epochs."""
        self.begun, self.epochs, self.loss = True, epochs, None
        self.records.append(record)
        self._advance(record.progress)

    def finish(self) -> None:
        """Leave only the bar: what became of the training is printed below."""
        self.ended = self.clock() if self.ended is None else self.ended

    @property
    def validated(self) -> list[EpochRecord]:
        """Epochs with a validation."""
        return [record for record in self.records if record.validation_s > 0]

    @property
    def best(self) -> EpochRecord | None:
        """The last epoch with the best mean Dice, as the weights that are kept."""
        scored = [record for record in self.validated[::-1] if record.mean_dice is not None]
        return max(scored, key=lambda record: record.mean_dice or 0.0, default=None)

    @property
    def left_s(self) -> float | None:
        """Seconds until the end, at the speed since this run began, validations included; None if unknown."""
        if self.known is None:
            return None
        at, left = self.known
        return max(0.0, left - (self.clock() - at))

    def line(self) -> str:
        """The last epoch in one line."""
        record, best = self.records[-1], self.best
        line = epoch_line(record, self.epochs)
        if record.mean_dice is None or best is None or best is record:
            return line
        return f"{line}, best {_dice_in(best)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Bar, facts and organs as they fit."""
        yield self._bar(options.max_width)
        if self.ended is not None:
            return
        yield self._facts(options.max_width >= _SPARK_COLUMNS and not options.ascii_only)
        if self.validated and self.validated[-1].dice:
            yield from self._organs(options.max_width, max(_FEW, min(_MOST, console.size.height - _ELSE_LINES)))

    def _advance(self, share: float) -> None:
        # The speed is measured from the first step of this run on: what earlier runs did took none of its time.
        now, self.share = self.clock(), min(max(share, self.share if self.base else 0.0), 1.0)
        if self.base is None:
            self.base = (now, self.share)
        # The time left counts down from here by the clock, and is estimated anew when a step is done.
        began, first = self.base
        if self.share > first:
            self.known = (now, (now - began) * (1.0 - self.share) / (self.share - first))

    def _bar(self, width: int) -> RenderableType:
        done = len(self.records)
        epoch = done if self.ended is not None or self.share >= 1.0 else done + 1
        texts = [
            Text(f"epoch {epoch}/{max(self.epochs, epoch)}", "green"),
            Text(_clock((self.clock() if self.ended is None else self.ended) - self.began)),
        ]
        if self.left_s is not None and self.ended is None:
            texts.append(Text(f"{_clock(self.left_s)} left", "cyan"))
        room = width - sum(text.cell_len + 1 for text in texts) - len("train ")
        if room < _BAR_LEAST:
            line = Text("  ").join(texts)
            line.no_wrap = False
            return line
        row = Table.grid(padding=(0, 1))
        row.add_row("train", ProgressBar(total=1.0, completed=self.share, width=min(40, room)), *texts)
        return row

    def _facts(self, sparks: bool) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        last = self.records[-1] if self.records else None
        losses = [record.loss for record in self.records]
        parts = [f"{self.loss:.3f} so far"] if self.loss is not None else []
        parts += [f"{last.loss:.3f} in epoch {last.epoch}"] if last else []
        if parts:
            rows.add_row("loss", ", ".join(parts) + (f"  {sparkline(losses)}" if sparks else ""))
        if last:
            rows.add_row("learning rate", f"{last.learning_rate:.1e}")
            speed = Text(f"{last.patches_per_s:.1f} patches/s, ")
            style = "yellow" if last.data_share > _WAITS else ""
            speed.append(f"{last.data_share:.0%} of the time waiting for data", style)
            rows.add_row("speed", speed)
        if self.validated and self.best:
            dices = [record.mean_dice for record in self.validated if record.mean_dice is not None]
            text = f"mean Dice {_dice_in(self.validated[-1])}, best {_dice_in(self.best)}"
            rows.add_row("validation", text + (f"  {sparkline(dices)}" if sparks else ""))
        return rows

    def _organs(self, width: int, most: int) -> Iterator[RenderableType]:
        """Dice of the last and of the best validation; of many organs the worst."""
        last, best = self.validated[-1].dice, (self.best or self.validated[-1]).dice
        shown = list(last)
        if len(last) > most:
            shown = sorted(last, key=lambda organ: (_rank(last[organ]), organ))[:most]
        few = len(shown) < len(last)
        yield Text(f"Dice, the worst {len(shown)} of {len(last)} organs" if few else "Dice per organ", "italic")
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
        # rich before 14.3 counts the padding of the first column to its width.
        scores = 2 * (len("0.000") + 4) + 2
        table.add_column("organ", overflow="ellipsis", no_wrap=True, max_width=max(8, width - scores))
        for name in ("last", "best"):
            table.add_column(name, justify="right", no_wrap=True)
        for organ in shown:
            table.add_row(Text(organ), score_cell(last[organ]), score_cell(best.get(organ)))
        yield table
        rest = [value for organ, value in last.items() if organ not in shown and value is not None]
        if rest:
            yield Text(f"the others {min(rest):.3f} to {max(rest):.3f}", "italic")


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """An epoch in one line, its validation included if it had one."""
    line = (
        f"epoch {record.epoch}/{epochs}  loss {record.loss:.3f}  lr {record.learning_rate:.1e}  "
        f"{record.patches_per_s:.1f} patches/s  data wait {record.data_share:.0%}"
    )
    if record.mean_dice is None:
        return line
    return f"{line}  validation Dice {record.mean_dice:.3f} ({record.validation_s:.1f} s)"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Values as blocks of eight heights, the lowest the smallest; many are averaged, fewer than 3 give nothing."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 3:
        return ""
    count = min(width, len(finite))
    edges = [n * len(finite) // count for n in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def _dice_in(record: EpochRecord) -> str:
    return f"{score_cell(record.mean_dice)} in epoch {record.epoch}"


def _rank(value: float | None) -> float:
    """For sorting: what could not be scored comes last."""
    return 2.0 if value is None or value != value else value


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


@dataclass(frozen=True)
class Bars:
    """Ways to report progress while the bars are shown: of any work, and of a training."""

    update: Progress
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
    # It is never started: the display below draws it together with the view of a training.
    bars = RichProgress(*columns, console=CONSOLE, speed_estimate_period=_SPEED_S)
    tasks: dict[str, TaskID] = {}
    view = TrainingView()

    def update(done: int, total: int, what: str) -> None:
        if view.begun:  # a training was before, and has ended
            view.finish()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    def on_epoch(record: EpochRecord, epochs: int) -> None:
        view.on_epoch(record, epochs)
        if record.mean_dice is not None or not CONSOLE.is_terminal:
            print_line(view.line())

    def drawn() -> RenderableType:
        return Group(*([bars] if tasks else []), *([view] if view.begun else []))

    # One live display for both: two would overwrite each other's lines.
    with ExitStack() as shown:
        if CONSOLE.is_terminal:
            shown.enter_context(Live(console=CONSOLE, get_renderable=drawn))
        yield Bars(update, view.on_start, view.on_step, on_epoch)
        view.finish()  # not reached by Ctrl-C and errors, after which it stays as it was
