"""Run commands and say what they took; what the benchmarks that run another tool share."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.5  # between two looks at the memory


@dataclass(frozen=True)
class Cost:
    """What a command took, its child processes included."""

    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass
class Seen:
    """What was seen of the processes of a session: the largest sum of memory, and the CPU seconds of each."""

    peak_mb: float = 0.0
    cpu_s: dict[int, float] = field(default_factory=dict)


def measured(command: list[str], environment: dict[str, str], result: Path) -> Cost:
    """Run a command twice, from the start: once for its time, once looked at for its processors and memory."""
    shutil.rmtree(result, ignore_errors=True)
    wall_s = run(command, environment).wall_s
    shutil.rmtree(result, ignore_errors=True)
    seen = run(command, environment, every_s=EVERY_S)
    return Cost(wall_s, seen.cpu_s, seen.peak_mb)


def run(command: list[str], environment: dict[str, str], *, every_s: float = 0.0) -> Cost:
    """Run a command in a session of its own; the script ends with its output if it fails.

    Args:
        command: Program and words.
        environment: All of its environment.
        every_s: Seconds between two looks at its processors and memory, which cost time themselves (some ms per
            process and look); 0 for none, and the cost has the wall-clock time alone.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    seen = Seen()
    if every_s:
        threading.Thread(target=watch, args=(process, seen, every_s), daemon=True).start()
    try:
        output, _ = process.communicate()
    finally:
        if process.poll() is None:  # the script was interrupted
            os.killpg(process.pid, signal.SIGTERM)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{output}")
    return Cost(time.monotonic() - began, sum(seen.cpu_s.values()), seen.peak_mb)


def watch(process: subprocess.Popen[str], seen: Seen, every_s: float) -> None:
    """Look at a session's processes until the first has ended: proportional set sizes, user and system time."""
    ticks = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) == process.pid:
                    lines = (folder / "smaps_rollup").read_text().splitlines()
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                    times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
                    seen.cpu_s[int(folder.name)] = sum(map(int, times)) / ticks
            except (OSError, ValueError):  # it has just ended
                continue
        seen.peak_mb = max(seen.peak_mb, total / 1024)
        time.sleep(every_s)


def spent(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of some work by the clock, and of processors, those of child processes that have ended included."""

    def processors() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    began, used = time.monotonic(), processors()
    work()
    return {"seconds": time.monotonic() - began, "cpu_s": processors() - used}
