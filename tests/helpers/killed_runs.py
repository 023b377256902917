"""Commands in forked processes that are killed and run again; started by ``test_killed_runs.py``.

    python killed_runs.py moments <folder> <trials> <seed> <command> ...   kill each command at random moments
    python killed_runs.py renames <dataset> <folder>                       kill preprocess before every rename

Forked, so that no run waits seconds for its imports. Of ``moments``, ``<folder>/inputs`` holds what the commands read.
``<folder>/<command>/whole`` is not
killed; every ``killed_<n>`` is killed once, and run again to its end. Prints how
many runs were killed, then a line for everything in which a killed run differs from the whole one.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads but its own

import numpy as np
import torch
from safetensors.torch import load_file
from toy import toy_case, toy_settings, write_toy

import pipeline.report.report
import pipeline.stages.choose
import pipeline.stages.demo
import pipeline.stages.predict
import pipeline.stages.prune
import pipeline.stages.train
from pipeline.__main__ import main
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import write_label_map
from pipeline.phantom.torso import write_phantom

torch.set_num_threads(1)
# Making its 32 phantoms would take most of the time.
pipeline.stages.demo.run_demo = partial(pipeline.stages.demo.run_demo, cases=3, tests=1)
assert pipeline.report  # imported, with the stages, for their time

ENDS_S = 60  # within which a run that gets SIGTERM ends

TRAIN = ["--config", "settings.json", "--device", "cpu"]
COMMANDS: dict[str, list[str]] = {
    "check": ["check", "data", "--jobs", "1", "--json", "OUT/check.json"],
    "fix": ["check", "broken", "--jobs", "1", "--fix", "OUT"],
    "share": ["share", "model", "--out", "OUT"],
    "plan": ["plan", "data", "--jobs", "1", "-o", "OUT"],
    "preprocess": ["preprocess", "phantom", "--jobs", "1", "-o", "OUT"],
    "train": ["train", "prepared", "-o", "OUT", *TRAIN, "--fold", "all"],
    "cross-validate": ["cross-validate", "OUT", "--prepared", "prepared", "--jobs", "1", "--device", "cpu"],
    "predict": ["predict", "model", "data/images", "-o", "OUT", "--device", "cpu", "--set", "infer.overlap=0.9"],
    "split": [
        *["predict", "model", "data/images", "-o", "OUT", "--device", "cpu", "--split"],
        *["--probabilities", "all", "--statistics", "--entropy"],
    ],
    "evaluate": ["evaluate", "masks", "data/labels", "--jobs", "1", "-o", "OUT"],
    "report": ["report", "scores", "-o", "OUT/report.html"],
    "compare": ["compare", "scores", "scores_b", "-o", "OUT"],
    "stats": ["stats", "masks", "--images", "data/images", "--jobs", "1", "-o", "OUT"],
    "convert": ["convert", "data", "--to", "nnunet", "--jobs", "1", "-o", "OUT"],
    "organs": ["convert", "data", "--to", "organs", "--jobs", "1", "-o", "OUT"],
    "phantom": ["phantom", "OUT", "--cases", "3", "--tests", "1"],
    "preview": ["preview", "prepared", "-c", "settings.json", "-o", "OUT/preview.html", "--patches", "2"],
    "choose": ["choose", "model", "model_b", "--jobs", "1", "--device", "cpu", "-o", "OUT"],
    "demo": [
        *["demo", "-o", "OUT", "--device", "cpu", "--set", "train.budget=null", "--set", "train.epochs=2"],
        *["--set", "train.iterations_per_epoch=4", "--set", "model.options.features=[4, 8, 16]"],
        *["--set", "train.validate_every=1", "--set", "preprocess.spacing_mm=[10, 10, 10]"],
        *["--set", "sample.patch_size=[24, 24, 24]"],
    ],
    "prune": ["prune", "model", "--prepared", "prepared", "--device", "cpu", "-o", "OUT"],
}
"""Command by command, its words; relative to the folder of inputs, but for OUT."""

# What differs between two whole runs: times, and what is drawn of them.
VOLATILE = re.compile(r"^(started|ended|finished|written|created|date)$|seconds|_s$|_per_s|peak_|memory|flops|share")
MOMENTS = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.+Z]+( UTC)?|\d+ (min|s)\b")
DRAWN = re.compile(r"events/events|training\.html$|curves\.png$|pruning\.(md|png)$|^demo/report\.html$")


def inputs(folder: Path, commands: Sequence[str]) -> None:
    """What the commands read: datasets whole and broken, a prepared one, two models, masks and scores."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_phantom(folder / "phantom", cases=3, tests=0, seed=0)
    if set(commands) <= {"preprocess", "demo"}:
        return
    write_toy(folder / "data", 4)
    write_toy(folder / "broken", 4)
    for index in range(4):  # another orientation, which a repair turns back
        labels = toy_case(index)[1].reoriented("PSL")
        write_label_map(labels, folder / "broken" / "labels" / f"toy_{index}.nii.gz")
        moved = LabelMap(np.roll(toy_case(index)[1].array, 1, axis=0), toy_case(index)[1].grid)
        write_label_map(moved, folder / "moved" / f"toy_{index}.nii.gz")
    settings = toy_settings(name="unetpp", deep_supervision=True)
    settings = settings.model_copy(update={"sample": settings.sample.model_copy(update={"folds": 2})})
    (folder / "settings.json").write_text(settings.model_dump_json())
    run(["preprocess", "data", "-o", "prepared", "-c", "settings.json", "--jobs", "1"])
    run([*COMMANDS["train"][:3], "model", *COMMANDS["train"][4:]])
    shutil.copytree("model", "model_b")
    run(["predict", "model", "data/images", "-o", "masks", "--device", "cpu"])
    for masks, scores in (("masks", "scores"), ("moved", "scores_b")):
        run(["evaluate", masks, "data/labels", "--jobs", "1", "-o", scores])


def run(
    words: Sequence[str],
    *,
    temporary: Path | None = None,
    kill: tuple[float, signal.Signals] | None = None,
    kill_at_rename: int | None = None,
) -> bool:
    """Run a command in a process group of its own; whether it was killed, after seconds or before its nth rename."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setsid()
            if temporary is not None:
                temporary.mkdir(parents=True, exist_ok=True)
                os.environ["TMPDIR"] = str(temporary)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            if kill_at_rename is not None:
                fall_at_rename(kill_at_rename)
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill is not None:
        end = time.monotonic() + kill[0]
        while os.getsid(process) != process or time.monotonic() < end:  # it has no group yet, or lives too short
            time.sleep(0.001)
        os.killpg(process, kill[1])
    end = time.monotonic() + ENDS_S
    while kill is not None and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            sys.exit(f"{' '.join(words)}: expected an end within {ENDS_S} s of {kill[1].name}, got none")
        time.sleep(0.005)
    status = os.waitpid(process, 0)[1]
    wanted = (0, signal.SIGKILL, *((signal.SIGTERM, (128 + signal.SIGTERM) << 8) if kill else ()))
    if status not in wanted:
        sys.exit(f"{' '.join(words)}: expected exit code 0 or a kill, got status {status}")
    return status != 0


def fall_at_rename(number: int) -> None:
    """Have this process kill itself when it renames a file for the nth time, from 0."""
    rename, renames = Path.replace, count()

    def replace(self: Path, target: Path) -> Path:
        if next(renames) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign]


def at_moments(command: str, folder: Path, trials: int, seed: int) -> tuple[int, list[str]]:
    """Kill one run in each part of the time that a run takes, so that all parts are hit, and one at its first file."""
    exact = command == "preprocess"  # a store holds no times
    moments, killed, found = random.Random(f"{seed} {command}"), 0, list[str]()

    def begin(name: str) -> tuple[list[str], Path, Path]:
        home = folder / command / name
        out, temporary = home / "out", home / "temporary"
        if command == "cross-validate":
            shutil.copytree("model", out, ignore=shutil.ignore_patterns("cross_validation", "postprocessing*"))
        return [word.replace("OUT", str(out)) for word in COMMANDS[command]], out, temporary

    words, whole, temporary = begin("whole")
    began = time.monotonic()
    run(words, temporary=temporary)
    seconds, expected = time.monotonic() - began, contents(whole, whole, exact)
    usual = {path.name for path in temporary.rglob("*")}
    for trial in range(trials + 1):
        words, out, temporary = begin(f"killed_{trial}")
        moment = seconds * (trial + moments.random()) / trials
        number = moments.choice((signal.SIGKILL, signal.SIGTERM))
        if trial < trials:
            killed += run(words, temporary=temporary, kill=(moment, number))
        else:  # the moment that is hit by chance only rarely: a file is written, but not in its place
            killed += run(words, temporary=temporary, kill_at_rename=0)
        run(words, temporary=temporary)
        got = contents(out, whole, exact)
        names = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        found += [f"{command} {trial}, {number.name} after {moment:.2f} s: {name}" for name in names]
        left = {path.name for path in temporary.rglob("*")} - usual  # libraries keep caches there
        found += [f"{command} {trial}, {number.name} after {moment:.2f} s: left {path}" for path in left]
        if not names:
            shutil.rmtree(out.parent)
    return killed, found


def contents(folder: Path, whole: Path, exact: bool) -> dict[str, Any]:
    """Every file and folder below a folder, hidden ones too, with what does not depend on time and place, or all."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = re.sub(r"tfevents\..*", "tfevents", path.relative_to(folder).as_posix())
        if path.is_dir() or DRAWN.search(f"{folder.parent.parent.name}/{name}"):
            found[name] = None
        else:
            found[name] = path.read_bytes() if exact else content(path, folder, whole)
    return found


def content(path: Path, folder: Path, whole: Path) -> Any:
    if path.suffix == ".safetensors":
        # What a training wrote beside the weights has times in it, and in the order of its run.
        return {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in load_file(path).items()}
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text().replace(str(folder), str(whole))), path.name)
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        return [{key: value for key, value in row.items() if not VOLATILE.search(key)} for row in rows]
    if path.suffix in (".html", ".md", ".txt", ".yaml"):
        return MOMENTS.sub("", path.read_text().replace(str(folder), str(whole)))
    return path.read_bytes()


def without_times(value: Any, file: str) -> Any:
    if isinstance(value, dict):
        # The hash of a model covers the time of its training.
        kept = {key: item for key, item in value.items() if not VOLATILE.search(key) and (key, file) not in HASHES}
        return {key: without_times(item, file) for key, item in kept.items()}
    return [without_times(item, file) for item in value] if isinstance(value, list) else value


HASHES = {("hash", "predictions.json"), ("hash", "statistics.json"), ("model", "pruning.json")}


def at_renames(dataset: Path, folder: Path) -> int:
    """Kill a run before its first rename, another before its second, and so on until one comes to its end."""
    words = ["preprocess", str(dataset), "--jobs", "1", "--out"]
    run([*words, str(folder / "whole")])
    for trial in count():
        out = str(folder / f"killed_{trial}")
        if not run([*words, out], kill_at_rename=trial):
            return trial
        run([*words, out])
    raise AssertionError


if __name__ == "__main__":
    if sys.argv[1] == "renames":
        lines: list[object] = [at_renames(Path(sys.argv[2]), Path(sys.argv[3]))]
    else:
        home = Path(sys.argv[2]).resolve()
        inputs(home / "inputs", sys.argv[5:])
        total, differences = 0, list[str]()
        for name in sys.argv[5:]:
            some, more = at_moments(name, home, int(sys.argv[3]), int(sys.argv[4]))
            total, differences = total + some, differences + more
        lines = [total, *differences]
    sys.stdout.write("\n".join(["killed", *map(str, lines)]))
