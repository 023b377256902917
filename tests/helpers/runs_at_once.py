"""Runs several ``volseg`` commands at the same time, as jobs of a batch system do; started by ``test_runs_at_once.py``.

Reads a line of JSON, ``{"log": file, "commands": [["predict", …], …]}``, and answers with the exit codes, until its
input ends. The runs are forked, so that torch is imported once. Each waits, once it has come to its output folder,
until all others have.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from importlib import import_module

from pipeline.__main__ import main
from pipeline.core.together import RunsTogether

for name in ("pipeline.preprocess.prepare_case", "pipeline.stages.predict", "pipeline.stages.prepare"):
    import_module(name)  # for its time


def start(words: list[str], log: int, wait: Callable[[float], object]) -> int:
    process = os.fork()
    if process:
        return process
    code = 70
    os.dup2(log, 1)
    os.dup2(log, 2)
    enter = RunsTogether.__enter__

    def entered(self: RunsTogether) -> RunsTogether:
        enter(self)
        wait(60)
        return self

    RunsTogether.__enter__ = entered  # type: ignore[method-assign]
    try:
        main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


for line in sys.stdin:
    task = json.loads(line)
    gate = multiprocessing.get_context("fork").Barrier(len(task["commands"]))
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    running = [start(words, log, gate.wait) for words in task["commands"]]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running]
    os.close(log)
    sys.stdout.write(f"{json.dumps(codes)}\n")
    sys.stdout.flush()
