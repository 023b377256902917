"""Random draws for a batch that depend on nothing but a seed, the batch's number and a sample's place in it.

So any batch of a training can be made at any time: a training that was interrupted goes on with the same batches, they
may be made ahead, and processes that share a batch draw what one process would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def seeded(*numbers: int) -> np.random.Generator:
    """A generator whose draws depend on these numbers alone, each at least 0."""
    return np.random.default_rng(numbers)


class BatchRandom:
    """One source of draws per sample of a batch.

    Draws come from the CPU, so that a seed gives the same changes on every device and a GPU never has to wait for a
    decision; only :meth:`normal` draws on the device it is asked for.

    Args:
        seed: Of the training.
        batch: Number of the batch.
        places: Places of the samples in the batch.
    """

    def __init__(self, seed: int, batch: int, places: Iterable[int]) -> None:
        # One seed out of three numbers; hashed, so that neighbouring batches and places have nothing in common.
        states = [np.random.SeedSequence((seed, batch, place)).generate_state(2) for place in places]
        self.generators = [torch.Generator().manual_seed(int(low) | int(high) << 32) for low, high in states]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.generators)

    def of(self, samples: Sequence[int]) -> BatchRandom:
        """The same sources, of some of the samples only."""
        part = BatchRandom(0, 0, ())
        part.generators = [self.generators[sample] for sample in samples]
        return part

    def uniform(self, shape: Sequence[int], limits: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Draw evenly between two limits: (N, *shape) float32."""
        low, high = limits
        drawn = torch.empty((len(self), *shape))
        for target, generator in zip(drawn, self.generators, strict=True):
            target.uniform_(generator=generator)
        return drawn * (high - low) + low

    def chosen(self, probability: float) -> Tensor:
        """Choose each sample with a probability: (N,) bool."""
        return self.uniform(()) < probability

    def normal(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw from the standard normal distribution: (N, *shape) float32 on the device, whose generator is seeded."""
        drawn = torch.empty((len(self), *shape), device=device)
        for target, generator in zip(drawn, self.generators, strict=True):
            # A GPU draws millions of values itself: copying them would take longer than the change they are for.
            if device.type != "cpu":
                seed = torch.randint(2**62, (), generator=generator)
                generator = torch.Generator(device).manual_seed(int(seed))
            target.normal_(generator=generator)
        return drawn
