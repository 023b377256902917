"""How much memory a piece of work takes at its peak, on the device that does it."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread

import torch

from pipeline.core.heap import release_freed_memory

__all__ = ["MEMORY_MEANS", "watch_memory"]

MEMORY_MEANS = {
    "cuda": "what PyTorch allocated on the GPU",
    "cpu": "how far the process's own resident memory, sampled every 5 ms, rose above its size before the first level",
}
"""What the figure is on each kind of device; elsewhere nothing is measured."""

_STATM = Path("/proc/self/statm")
_PERIOD_S = 0.005  # a layer of a network worth measuring takes longer


@contextmanager
def watch_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Watch the memory of a device while the block runs.

    On the CPU it is the resident memory of the whole process without the pages of files: program code comes and goes as
    the system likes. What libraries keep for reuse, such as scratch space of convolutions, counts for all later work:
    to compare several pieces of work, do the smallest first, and ask after each.

    Args:
        device: Where the work is done.

    Yields:
        A function that tells the highest use since it was last asked, in bytes above that at the start; None where the
        system (other than Linux) or the device does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: _cuda_peak(device) - allocated
    elif device.type == "cpu" and _STATM.exists():
        with _sampled() as peak:
            yield peak
    else:
        yield lambda: None


def _cuda_peak(device: torch.device) -> int:
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


@contextmanager
def _sampled() -> Iterator[Callable[[], int]]:
    release_freed_memory()
    before = _own_pages()
    highest, stop, lock = [before], Event(), Lock()  # the lock: no sample from before a question counts after it

    def sample() -> None:
        while not stop.wait(_PERIOD_S):
            with lock:
                highest[0] = max(highest[0], _own_pages())

    def peak() -> int:
        with lock:
            found = max(highest[0], _own_pages()) - before
            gc.collect()
            release_freed_memory()
            highest[0] = before
        return found * mmap.PAGESIZE

    thread = Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _own_pages() -> int:
    """Resident pages that belong to no file."""
    words = _STATM.read_text(encoding="ascii").split()
    return int(words[1]) - int(words[2])
