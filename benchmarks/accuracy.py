"""How good masks of a real set are: volseg beside nnU-Net, for equal minutes on equal cores and the same cases.

    python benchmarks/accuracy.py hippocampus --data /data --minutes 10 --seeds 3 --peer nnunet --nnunet nnunet/bin
    python benchmarks/accuracy.py mouse_brain --data /data --minutes 20 --no-config
    python benchmarks/accuracy.py em_membrane --data /data --steps 600 --folds 0 1      # a machine that is not quiet
    python benchmarks/accuracy.py em_membrane --data /data --minutes 15 --only-table

Test cases leave a copy of the dataset before anything is prepared, so they decide nothing (``helpers/splits.py``): both
tools get the same cases to train on and the same few to choose weights by. volseg is trained by ``configs/SET.yaml``,
by another ``--config``, or without one (``--no-config``). nnU-Net 2.8.1 trains by its own plan, augmentation and
optimizer; its learning rate falls to 0 within the minutes, as in its own trainers of fewer epochs. volseg's minutes
include its validations, nnU-Net's do not. Both predict as they do by default; nnU-Net averages mirror images.

With ``--steps`` volseg makes so many steps instead, and nnU-Net as many as take the same time by ``steps.json``, which
``--measure`` writes on a quiet machine; without it the same number.

All masks are scored by ``helpers/scores.py``, which shares no code with volseg. A training, its masks and its
``result.json`` are kept in the work folder: the same command goes on where it was stopped, and the table is of all that
there is for this length. A mean over seeds has Student's interval, one over cases a bootstrap's (of the means over
seeds); the difference of two tools is taken case by case and seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ceiling import describe
from helpers.accuracy_tables import Arm, differences_table, means_table, measures, structures
from helpers.real_fold import MEASURED_STEPS, Cases, RealFold
from helpers.real_runs import Runs, finished, is_finished, keep, pooled, run_folder
from helpers.splits import SETS, case_files
from helpers.volseg import CONFIGS, length_settings

from pipeline.core.machine import processors
from pipeline.model.device import choose_device

PEER = "nnU-Net"
PUBLISHED = {
    "hippocampus": "nnU-Net trained to its end, another split: Dice 0.9034 anterior, 0.8866 posterior",
    "nuclei": "UNet++ L4, another split: IoU 0.9263",
}
WARM_UP = 3  # steps of nnU-Net before those that are timed
SHOWN = 5  # structures at either end of a long list


@dataclass(frozen=True)
class Length:
    """How long trainings are: so many minutes, or so many steps of volseg.

    Args:
        minutes: Of every training.
        steps: Of volseg, in place of minutes.
        measured: File with the seconds of a step of every tool, if there is one.
    """

    minutes: float
    steps: int | None
    measured: Path

    @property
    def name(self) -> str:
        """For folders and headings."""
        return f"{self.minutes:g}_minutes" if self.steps is None else f"{self.steps}_steps"

    def peer_clock(self, own: str) -> dict[str, float]:
        """Limit of nnU-Net's training beside volseg's, which is called ``own``."""
        if self.steps is None:
            return {"seconds": 60 * self.minutes}
        seconds: dict[str, float] = json.loads(self.measured.read_text()) if self.measured.is_file() else {}
        known = {own, PEER} <= set(seconds)
        return {"steps": max(1, round(self.steps * seconds[own] / seconds[PEER])) if known else self.steps}


def arm_name(config: Path | None) -> str:
    """How a training of volseg is called in tables."""
    return f"volseg, {config.name if config else 'no config'}"


def workers() -> int:
    """Processes that augment for nnU-Net: one where a core is left beside the training."""
    return min(1, processors() - 1)


def measure(fold: RealFold, chosen: argparse.Namespace, path: Path) -> None:
    """Write the seconds that a step takes."""
    seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    folder = fold.work / "measured"
    seconds[arm_name(chosen.config)] = fold.step_s(chosen.config, folder)
    if chosen.peer:
        noted = folder / "noted"
        noted.mkdir()
        fold.prepared_nnunet(chosen.nnunet, folder / "results").train(noted, workers(), steps=MEASURED_STEPS + WARM_UP)
        rows = (noted / "iterations.csv").read_text().splitlines()[1 + WARM_UP :]
        seconds[PEER] = fmean(float(row.split(",")[2]) for row in rows)
    path.write_text(json.dumps(seconds, indent=1))
    print("\n".join(f"{name}: {value:.3f} s a step" for name, value in seconds.items()))


def run(fold: RealFold, tool: str, seed: int, length: Length, chosen: argparse.Namespace) -> None:
    """Train one tool with one seed and score its masks, unless that is done."""
    folder = run_folder(fold.work, length.name, tool, seed)
    recipe = chosen.config.read_text() if chosen.config and tool != PEER else ""
    if is_finished(folder, recipe):
        return
    if tool == PEER:
        clock = length.peer_clock(arm_name(chosen.config))
        found = fold.nnunet(chosen.nnunet, folder, workers(), seed=seed, fall=True, **clock)
    else:
        keys = (*length_settings(length.steps, length.minutes), f"train.seed={seed}")
        found = fold.volseg(chosen.config, folder, *keys)
    keep(folder, tool, seed, fold.number, found)


def show(found: Runs, kind: str) -> None:
    """Print the tables."""
    arms: dict[str, Arm] = {}
    steps, lists = {}, []
    for tool, seeds in found.items():
        arms[tool] = {seed: measures(kind, pooled(parts)) for seed, parts in seeds.items()}
        steps[tool] = fmean(part["steps"] for parts in seeds.values() for part in parts.values())
        for seed, parts in seeds.items() if kind == "organs" else ():
            lists += extremes(f"{tool}, seed {seed}", pooled(parts))
    print(means_table(arms, steps))
    if len(arms) > 1:
        print(f"\n{differences_table(arms)}")
    if lists:
        print("\n" + "\n".join(lists))


def extremes(name: str, cases: Cases) -> list[str]:
    """The structures with the lowest Dice, and those of which most lies on the other side."""
    lines = []
    for score, part in (("dice", slice(0, SHOWN)), ("exchanged", slice(-1, -SHOWN - 1, -1))):
        listed = structures(cases, score)[part]
        told = ", ".join(f"{key.removeprefix(score).strip()} {mean:.3f}" for key, mean in listed)
        lines += [f"{name}, {score}: {told}"] if told else []
    return lines


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("--data", type=Path, default=os.environ.get("VOLSEG_TEST_DATA"), help="folder of all sets")
    parser.add_argument("--work", type=Path, default=Path("accuracy"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of every training")
    parser.add_argument("--steps", type=int, help="of volseg, instead of minutes")
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings that differ in their seed alone")
    parser.add_argument("--folds", type=int, nargs="+", help="by default those of the set")
    parser.add_argument("--config", type=Path, help="by default configs/SET.yaml")
    parser.add_argument("--no-config", action="store_true", help="train volseg without a config")
    parser.add_argument("--peer", choices=["nnunet"], help="train it, too")
    parser.add_argument("--nnunet", type=Path, help="folder of nnU-Net's commands")
    parser.add_argument("--measure", action="store_true", help="only measure what steps take")
    parser.add_argument("--only-table", action="store_true", help="only print what was found before")
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error("--data: expected the folder of all sets, or VOLSEG_TEST_DATA")
    own = chosen.config or CONFIGS / f"{chosen.set.removesuffix('_fifth')}.yaml"
    if not chosen.no_config and not chosen.only_table and not own.is_file():
        parser.error(f"--config: expected a file, got {own}. Give another one, or --no-config.")
    chosen.config = None if chosen.no_config else own.resolve()
    if chosen.peer and chosen.nnunet is None and not chosen.only_table:
        parser.error(
            "--nnunet: expected the folder of nnU-Net's commands. Install nnunetv2 in an environment of its own."
        )
    chosen.folds = chosen.folds or list(SETS[chosen.set].folds)
    return chosen


def main() -> None:
    """Run the benchmark."""
    chosen = arguments()
    work, dataset = chosen.work.resolve() / chosen.set, Path(chosen.data) / SETS[chosen.set].folder
    length = Length(chosen.minutes, chosen.steps, work / "steps.json")
    if not chosen.only_table:
        folds = [RealFold(chosen.set, dataset, fold, work) for fold in chosen.folds]
        if chosen.measure:
            measure(folds[0], chosen, length.measured)
            return
        # Seed by seed, so that what is stopped early has whole seeds.
        for seed in range(chosen.seeds):
            for fold in folds:
                for tool in (arm_name(chosen.config), *([PEER] if chosen.peer else [])):
                    run(fold, tool, seed, length, chosen)
    # volseg before nnU-Net, so that differences are of the one to the other.
    found = finished(work, length.name, chosen.folds, lambda tool: (tool == PEER, tool == arm_name(None), tool))
    if not found:
        sys.exit(f"{work}: expected finished runs of {length.name}, got none. Leave --only-table out.")
    machine = f"{describe(choose_device(None))}, {processors()} processors"
    parts = next(iter(next(iter(found.values())).values())).values()
    tested = sum(len(part["cases"]) for part in parts)
    print(
        f"{chosen.set}, {length.name}, folds {chosen.folds}: {tested} of {len(case_files(dataset))} cases; {machine}\n"
    )
    show(found, SETS[chosen.set].scores)
    if chosen.set in PUBLISHED:
        print(f"\nPublished: {PUBLISHED[chosen.set]}")


if __name__ == "__main__":
    main()
