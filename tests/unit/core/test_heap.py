"""Freed memory stays with the process for a while, and returns to the system when that is over."""

import subprocess
import sys

import pytest

from pipeline.core import heap
from pipeline.core.heap import keep_freed_memory

_SCRIPT = """
import resource
import torch
from pipeline.core.heap import keep_freed_memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

large = 32 << 20  # times four bytes
usual = faults(large)
before = resident()
with keep_freed_memory():
    faults(large)
    kept, held = faults(large), resident() - before
with keep_freed_memory(64 << 20):
    returned = faults(large)
print(usual, kept, held, resident() - before, returned)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the GNU C library can be told")
def test_freed_memory_is_kept_for_the_block_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    usual, kept, held_mb, left_mb, returned = map(int, done.stdout.split())
    assert kept * 20 < usual
    assert held_mb > 100
    assert left_mb < 40
    assert returned * 2 > usual  # 128 MB at a time are more than the limit


def test_blocks_lie_in_one_another_and_the_last_one_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(heap, "_set", lambda options: told.append(options[heap._MMAP_THRESHOLD]))
    monkeypatch.setattr(heap, "release_freed_memory", lambda: told.append("given back"))
    with keep_freed_memory():
        with keep_freed_memory(100 << 20), keep_freed_memory(200 << 20):
            pass
        assert told == [2**31 - 1, *[100 << 20] * 3, 2**31 - 1]
    assert told[5:] == [32 << 20, "given back"]
