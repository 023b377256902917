"""Train all folds of a set, and score each fold alone and their average on held-out cases; prints a table.

    python benchmarks/folds.py /data/Task04_Hippocampus --work /tmp/folds --budget 10m

Every fifth case of the Decathlon folder is held out: no fold trains on it, validates on it or chooses cleaning by it.
The others are shared out among five folds, each trained for the budget by ``volseg train --fold all``. All masks are
cleaned alike, as that cross-validation found best.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import fmean, stdev

from ceiling import describe
from helpers.splits import every_fifth, hold_out
from helpers.volseg import CONFIGS, timed

from pipeline.core.machine import processors
from pipeline.model.device import choose_device


def dice(model: Path, dataset: Path, work: Path, *folds: int) -> dict[str, float]:
    """Mean Dice of every organ on the held-out cases, and the mean of them, by the average of some folds or of all."""
    masks, scores = work / "masks", work / "scores"
    for folder in (masks, scores):
        shutil.rmtree(folder, ignore_errors=True)
    timed("predict", model, dataset / "imagesTs", "-o", masks, *(word for fold in folds for word in ("--fold", fold)))
    timed("evaluate", masks, dataset / "labelsTs", "-o", scores, "--surface", "none")
    organs = json.loads((scores / "summary.json").read_text())["organs"]
    found = {name: float(organ["dice"]["mean"]) for name, organ in organs.items()}
    return found | {"mean": fmean(found.values())}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, default=Path("folds"))
    parser.add_argument("--budget", default="10m", help="of each fold")
    parser.add_argument("--config", type=Path, default=CONFIGS / "hippocampus.yaml")
    chosen = parser.parse_args()
    dataset, prepared, model = (chosen.work / name for name in ("dataset", "prepared", "model"))
    hold_out(chosen.dataset, every_fifth(chosen.dataset)[0], dataset)
    timed("preprocess", dataset, "-o", prepared, "-c", chosen.config)
    words = ("train", prepared, "-o", model, "-c", chosen.config, "--fold", "all", "--budget", chosen.budget)
    seconds = timed(*words)
    folds = len(json.loads((prepared / "splits.json").read_text()))
    rows = {f"fold {fold}": dice(model, dataset, chosen.work, fold) for fold in range(folds)}
    alone = [values["mean"] for values in rows.values()]
    rows["mean of the folds"] = {name: fmean(row[name] for row in rows.values()) for name in rows["fold 0"]}
    rows["average of the folds' logits"] = together = dice(model, dataset, chosen.work)
    print(f"{describe(choose_device(None))}, {processors()} processors; all folds and their scores: {seconds:.0f} s\n")
    cases = len(list((dataset / "imagesTs").iterdir()))
    print(f"| Dice on {cases} held-out cases | {' | '.join(together)} |\n|---{'|---' * len(together)}|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in row.values())} |")
    gains = (together["mean"] - fmean(alone), together["mean"] - max(alone))
    print(f"\nSD of the folds {stdev(alone):.4f}")
    print(f"the average is {gains[0]:+.4f} from the mean fold, {gains[1]:+.4f} from the best")


if __name__ == "__main__":
    main()
