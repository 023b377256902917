"""What this process may use of the machine: processors and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_bytes", "bytes_in_words", "processors", "total_bytes"]


def processors() -> int:
    """Processors that this process may use, which a batch system may have limited."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return int(os.process_cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bytes_in_words(count: int) -> str:
    """Bytes for people: 2.3 GB, 450 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process may still take, by the machine and by its control groups (Linux, version 1 and 2).

    Args:
        proc: Where the kernel tells about processes.
        groups: Where the control groups are.

    Returns:
        The smallest of all; None where nothing is known, as on other systems.
    """
    machine = _entry(proc / "meminfo", "MemAvailable:")
    found = [] if machine is None else [machine * 1024]
    return min((*found, *(free for _, free in _groups(proc, groups))), default=None)


def total_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process could take if nothing else took any; arguments and None as above."""
    machine = _entry(proc / "meminfo", "MemTotal:")
    found = [] if machine is None else [machine * 1024]
    return min((*found, *(limit for limit, _ in _groups(proc, groups))), default=None)


def _groups(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """Limit and free bytes of every control group around this process that has a limit."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            home, limit, usage = groups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            home, limit, usage = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = home / group.lstrip("/")
        for place in (folder, *folder.parents):  # a group around this one may be narrower
            if not place.is_relative_to(home):
                break
            found = _group_bytes(place, limit, usage)
            if found is not None:
                yield found


def _group_bytes(group: Path, limit: str, usage: str) -> tuple[int, int] | None:
    """A control group's limit and the bytes below it, counting file cache that can be dropped; None without a limit."""
    most, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not most.isdecimal() or not used.isdecimal():
        return None
    cache = _entry(group / "memory.stat", "total_inactive_file") or _entry(group / "memory.stat", "inactive_file") or 0
    return int(most), max(0, int(most) - max(0, int(used) - cache))


def _entry(path: Path, name: str) -> int | None:
    """The number behind a name in a kernel table; None if it is not there."""
    lines = (line.split() for line in _text(path).splitlines())
    return next((int(words[1]) for words in lines if len(words) > 1 and words[0] == name), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
