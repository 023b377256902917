"""Making batches ahead: a thread prepares the next ones while the current one is trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Values by number, of which the next few are made before they are asked for.

    What making a value raises is raised when the value is asked for.

    Args:
        make: Makes the value of a number, in a thread of its own.
        count: How many are made ahead.
    """

    def __init__(self, make: Callable[[int], T], count: int = 2) -> None:
        self.make, self.count = make, count
        self.coming: dict[int, Future[T]] = {}
        # one thread of computation: the processors belong to the training
        self.pool = ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,))

    def get(self, number: int) -> tuple[T, float]:
        """The value of a number, and the seconds for which it had to be waited for."""
        for following in range(number, number + 1 + self.count):
            if following not in self.coming:
                self.coming[following] = self.pool.submit(self.make, following)
        began = time.monotonic()
        value = self.coming.pop(number).result()
        return value, time.monotonic() - began

    def close(self) -> None:
        """End the thread and let go of what nobody asked for."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.coming.clear()
