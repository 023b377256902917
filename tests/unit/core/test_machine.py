"""What this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import machine as heap
from pipeline.core.machine import (
    available_bytes,
    bytes_in_words,
    keep_freed_memory,
    large_pages,
    processors,
    total_bytes,
)

GIB = 2**30


def test_processors_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 9}, raising=False)
    assert processors() == 3
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert processors() == 5
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors() == 64


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_available_memory_is_the_smallest_of_machine_and_control_groups(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert available_bytes(proc, groups) is None
    write(proc / "meminfo", f"MemTotal: {64 * 2**20} kB\nMemAvailable:   {20 * 2**20} kB\n")
    assert available_bytes(proc, groups) == 20 * GIB
    assert total_bytes(proc, groups) == 64 * GIB
    write(proc / "self" / "cgroup", "1:cpu:/\n0::/jobs/mine\n")
    write(groups / "jobs" / "mine" / "memory.max", "max\n")
    write(groups / "jobs" / "memory.max", f"{8 * GIB}\n")  # the limit of the group around mine
    write(groups / "jobs" / "memory.current", f"{5 * GIB}\n")
    write(groups / "jobs" / "memory.stat", f"anon 1\ninactive_file {2 * GIB}\n")  # cache that can be dropped
    assert available_bytes(proc, groups) == 5 * GIB
    assert total_bytes(proc, groups) == 8 * GIB
    write(proc / "self" / "cgroup", "4:memory:/old\n0::/\n")
    write(groups / "memory" / "old" / "memory.limit_in_bytes", f"{3 * GIB}\n")
    write(groups / "memory" / "old" / "memory.usage_in_bytes", f"{4 * GIB}\n")
    assert available_bytes(proc, groups) == 0
    assert total_bytes(proc, groups) == 3 * GIB


@pytest.mark.parametrize(
    ("count", "words"),
    [(450_400_000, "450 MB"), (999_000_000, "999 MB"), (2_345_000_000, "2.3 GB"), (7 * 10**39, "7e+30 GB")],
)
def test_bytes_are_told_to_people(count: int, words: str) -> None:
    assert bytes_in_words(count) == words


# Large pages, which PyTorch asks for or not from its first tensor on.

_LARGE_PAGES = """
import sys
import torch
{first}
tensor = torch.ones(64 << 20, dtype=torch.uint8)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("AnonHugePages")))
"""


def megabytes_on_large_pages(first: str, **variables: str) -> int:
    """What a process has on large pages with a tensor of 64 MB, which it makes after a first line."""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | variables
    script, python = _LARGE_PAGES.format(first=first), sys.executable
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


def system_gives_large_pages() -> bool:
    """To programs that ask for them, and to no others."""
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return file.is_file() and "[madvise]" in file.read_text()


@pytest.mark.skipif(not system_gives_large_pages(), reason="this system gives no large pages to those who ask")
def test_inference_has_large_pages_and_training_has_not() -> None:
    infer = "import pipeline.infer.inferer"
    assert megabytes_on_large_pages(infer) >= 60
    assert megabytes_on_large_pages(f"{infer}; pipeline.infer.inferer.large_pages(False)") == 0
    assert megabytes_on_large_pages(infer, THP_MEM_ALLOC_ENABLE="0") == 0


def test_large_pages_are_left_alone_where_they_were_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setattr(heap, "_large_pages_are_ours", False)
    large_pages(False)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setattr(heap, "_large_pages_are_ours", True)
    large_pages(False)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


# Freed memory stays with the process for a while, and returns to the system when that is over.

_SCRIPT = """
import resource
import torch
from pipeline.core.machine import keep_freed_memory

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
"""

_KEPT = """
with keep_freed_memory():
    # Something small may take a piece of a freed tensor's place, until malloc has a few small pieces of its own.
    for _ in range(6):
        faults(large)
    kept, held = faults(large), resident() - before
print(usual, kept, held, resident() - before)
"""

# A process of its own: the places that an unlimited block leaves in the heap are used again, whatever the limit is.
_ABOVE_THE_LIMIT = """
with keep_freed_memory(64 << 20):
    returned = faults(large)
print(usual, returned)
"""


def _run(script: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT + script], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the GNU C library can be told")
def test_freed_memory_is_kept_for_the_block_alone() -> None:
    usual, kept, held_mb, left_mb = _run(_KEPT)
    assert kept * 20 < usual
    assert held_mb > 100
    assert left_mb < 40
    usual, returned = _run(_ABOVE_THE_LIMIT)
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
