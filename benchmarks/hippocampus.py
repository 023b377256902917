"""Preprocess, train, predict and evaluate fold 0 of the hippocampus set; prints one line of a table per network.

    python benchmarks/hippocampus.py /data/Task04_Hippocampus --work /tmp/hippocampus --budget 10m

The scores are of all cases of the fold, none of which trained. Times are wall-clock and hold for the machine named in
the output; run it on your own, beside the tool you compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from pathlib import Path

from helpers.volseg import CONFIGS, timed

RECIPES = {"unet 3D": "hippocampus.yaml", "unetpp 3D": "hippocampus_unetpp.yaml", "unet 2D": "hippocampus_2d.yaml"}


def fold_images(dataset: Path, prepared: Path, target: Path) -> tuple[Path, Path]:
    """Copy images and references of fold 0's validation cases."""
    cases = json.loads((prepared / "splits.json").read_text())[0]
    for name, part in (("images", "imagesTr"), ("references", "labelsTr")):
        shutil.rmtree(target / name, ignore_errors=True)
        (target / name).mkdir(parents=True)
        for case in cases["validation"]:
            shutil.copy(dataset / part / f"{case}.nii.gz", target / name)
    return target / "images", target / "references"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, default=Path("hippocampus"))
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--networks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    chosen = parser.parse_args()
    prepared = chosen.work / "prepared"
    shutil.rmtree(prepared, ignore_errors=True)
    seconds = timed("preprocess", chosen.dataset, "-o", prepared, "-c", CONFIGS / "hippocampus.yaml")
    images, references = fold_images(chosen.dataset, prepared, chosen.work)
    print(f"{platform.machine()}, {os.cpu_count()} cores; preprocess 208 cases: {seconds:.1f} s")
    print(
        "| network | budget | train s | iterations | patches/s | predict s | cases | Anterior | Posterior | mean Dice |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in chosen.networks:
        folder = chosen.work / RECIPES[name].removesuffix(".yaml")
        shutil.rmtree(folder, ignore_errors=True)
        config = CONFIGS / RECIPES[name]
        trained = timed("train", prepared, "-o", folder / "model", "-c", config, "--budget", chosen.budget)
        predicted = timed("predict", folder / "model", images, "-o", folder / "masks")
        timed("evaluate", folder / "masks", references, "-o", folder / "scores")
        summary = json.loads((folder / "scores" / "summary.json").read_text())
        last = (folder / "model" / "fold_0" / "history.csv").read_text().splitlines()[-1].split(",")
        dice = [entry["dice"]["mean"] for entry in summary["organs"].values()]
        cells = [name, chosen.budget, f"{trained:.0f}", last[1], last[5], f"{predicted:.1f}"]
        cells += [str(summary["overall"]["n_cases"]), *(f"{value:.3f}" for value in [*dice, sum(dice) / len(dice)])]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
