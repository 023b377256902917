"""Runs on real sets that are kept: a folder each, by recipe, and what all finished ones found."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from helpers.real_fold import Cases

Runs = dict[str, dict[int, dict[int, dict[str, Any]]]]
"""What finished runs found: tool or network → seed → fold → content of ``result.json``."""

RESULT, RECIPE = "result.json", "recipe.txt"


def run_folder(work: Path, length: str, name: str, seed: int) -> Path:
    """Where a run of a fold is kept."""
    return work / "runs" / length / f"{name.replace(',', '').replace(' ', '_')}_{seed}"


def is_finished(folder: Path, recipe: str) -> bool:
    """Whether a run is finished; what a run of another recipe left there is thrown away."""
    mark = sha256(recipe.encode()).hexdigest()
    if folder.is_dir() and (not (folder / RECIPE).is_file() or (folder / RECIPE).read_text() != mark):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(mark)
    return (folder / RESULT).is_file()


def keep(folder: Path, name: str, seed: int, fold: int, found: Mapping[str, Any]) -> None:
    """Write what a run found, in one step, and say so."""
    content = {"name": name, "seed": seed, "fold": fold, **found}
    (folder / f"{RESULT}.part").write_text(json.dumps(content, indent=1))
    (folder / f"{RESULT}.part").rename(folder / RESULT)
    print(f"{name}, seed {seed}, fold {fold}: {found['steps']} steps", file=sys.stderr, flush=True)


def finished(work: Path, length: str, folds: Iterable[int], order: Callable[[str], Any]) -> Runs:
    """All finished runs of a length, names in an order; a seed that lacks one of the folds is left out, and named."""
    wanted = list(folds)
    found: Runs = {}
    for path in sorted(work.glob(f"fold_*/runs/{length}/*/{RESULT}")):
        result = json.loads(path.read_text())
        found.setdefault(result["name"], {}).setdefault(result["seed"], {})[result["fold"]] = result
    whole: Runs = {}
    for name in sorted(found, key=order):
        for seed, parts in sorted(found[name].items()):
            lacking = [fold for fold in wanted if fold not in parts]
            if lacking:
                print(f"{name}, seed {seed}: folds {lacking} are still to come", file=sys.stderr)
            else:
                whole.setdefault(name, {})[seed] = {fold: parts[fold] for fold in wanted}
    return whole


def pooled(parts: Mapping[int, Mapping[str, Any]]) -> Cases:
    """The cases of all folds of one seed."""
    return {case: scores for part in parts.values() for case, scores in part["cases"].items()}
