"""The batches of a training: cut, augmented, and made ahead."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

from pipeline.config import AugmentSettings
from pipeline.sample.augment import augment
from pipeline.sample.randomness import BatchRandom
from pipeline.train.ahead import Ahead
from pipeline.train.source import PatchSource
from pipeline.train.values import Frame

__all__ = ["TrainingBatches"]

Pair = tuple[Tensor, Tensor]
"""Images (B, C, *S) and class indices (B, *S)."""


class TrainingBatches:
    """Augmented batches by number; that of a number is the same in every run and every sitting.

    Use it in a ``with`` block, which ends the thread that makes batches.

    Args:
        source: Where patches come from. Its parts are those of all processes.
        frame: Axes and left/right pairs.
        settings: Section ``augment``.
        parts: Which of the source's parts this process trains on; by default all.
    """

    def __init__(
        self, source: PatchSource, frame: Frame, settings: AugmentSettings, parts: Sequence[int] | None = None
    ) -> None:
        self.source, self.frame, self.settings = source, frame, settings
        self.parts = range(source.parts) if parts is None else parts
        self.ahead = Ahead(self._make)
        self.stream = torch.cuda.Stream(source.device) if source.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def step(self, number: int) -> tuple[list[Pair], float]:
        """The batch of a step.

        Args:
            number: Of the step, from 0 over the whole training.

        Returns:
            Images and class indices of every part, on the device, and the seconds for which they were waited for.
        """
        (made, ready), wait_s = self.ahead.get(number)
        if ready is not None:
            here = torch.cuda.current_stream(self.source.device)
            here.wait_event(ready)
            for pair in made:
                for tensor in pair:
                    tensor.record_stream(here)  # its memory is not reused before this stream is done with it
        return made, wait_s

    def again(self, number: int) -> tuple[Pair, list[str]]:
        """What this process trained on in an earlier step, as one batch made once more, and the ids of its cases."""
        made = [self._part(number, part) for part in self.parts]
        patches, count = self.source.patches(number), self.source.parts
        cases = [patches[place].case for part in self.parts for place in range(part, len(patches), count)]
        return (torch.cat([images for images, _ in made]), torch.cat([labels for _, labels in made])), cases

    def __enter__(self) -> TrainingBatches:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of batches that were made ahead."""
        self.ahead.close()

    def _make(self, number: int) -> tuple[list[Pair], torch.cuda.Event | None]:
        if self.stream is None:
            return [self._part(number, part) for part in self.parts], None
        with torch.cuda.stream(self.stream):  # beside the work of the training
            made = [self._part(number, part) for part in self.parts]
            return made, self.stream.record_event()

    def _part(self, number: int, part: int) -> Pair:
        images, labels, places = self.source.batch(number, part)
        return augment(
            images,
            labels,
            self.settings,
            BatchRandom(self.source.seed, number, places),
            side_pairs=self.frame.side_pairs,
            directions=self.frame.directions,
            spacing_mm=self.frame.spacing_mm,
        )
