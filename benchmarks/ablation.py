"""What parts of the hippocampus recipe do to the Dice of held-out cases: each left out alone, with several seeds.

    python benchmarks/ablation.py Task04_Hippocampus --work ablation --minutes 5            # a quiet machine
    python benchmarks/ablation.py Task04_Hippocampus --work ablation --measure              # once, where it is quiet
    python benchmarks/ablation.py Task04_Hippocampus --work ablation --steps 600            # then also where it is not

Every fifth case is held out (as in folds.py), fold 0 of the others trains and validates. With ``--minutes`` every
training gets the same time; with ``--steps`` the same work, whatever else the machine does: so many steps of the base,
and of variants whose steps take another time as many as go into the time of these. ``--measure`` trains a few steps of
each variant, writes what one takes to ``steps.json``, and prints the number of steps that ``--minutes`` would hold;
without that file a step counts in proportion to its patches.

Finished runs are kept: the same command goes on, ``--only`` and ``--seeds`` choose some, and the table is of all there
are. A difference is the mean over seeds of a variant minus the base of the same seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from ceiling import describe
from folds import dice
from helpers.splits import every_fifth, hold_out
from helpers.volseg import CONFIGS, STEPS_PER_EPOCH, history, length_settings, timed

from pipeline.core.machine import processors
from pipeline.model.device import choose_device

CONFIG = CONFIGS / "hippocampus.yaml"
MEASURED_STEPS = 100
NO_SURROUNDINGS = "--no-surroundings"  # the first word of a training whose patches are moved within themselves


@dataclass(frozen=True)
class Variant:
    """The recipe with some keys set otherwise.

    Args:
        meaning: For the table.
        keys: ``section.key=value``.
        patches: Of a batch.
        surroundings: Whether moved patches show what lies around them, which no key decides.
    """

    meaning: str
    keys: tuple[str, ...] = ()
    patches: int = 3
    surroundings: bool = True


VARIANTS = {
    "base": Variant("configs/hippocampus.yaml"),
    "no_surroundings": Variant("moved patches show padding instead of what lies around them", surroundings=False),
    "nnunet_strengths": Variant(
        "noise, blur, low resolution and rotation as nnU-Net draws them",
        ("augment.noise_sd=[0,0.1]", "augment.channel_share=0.5", "augment.rotate_degrees=auto"),
    ),
    "batch_6": Variant("6 patches per batch instead of 3", ("sample.batch_size=6",), patches=6),
    "patch_dice": Variant("Dice over each patch instead of the batch", ("loss.batch_dice=false",)),
}


def move_within_patches(words: list[str]) -> None:
    """Run a volseg command whose patches are cut first and moved then, so that padding comes in from their borders."""
    from pipeline.__main__ import main as run_command
    from pipeline.sample.augment import augment
    from pipeline.train.loader import PatchSource

    PatchSource.changed = lambda source, patches, settings, random, geometry: augment(  # type: ignore[method-assign]
        *source.cut(patches), settings, random, geometry
    )
    run_command(words)


def train(variant: Variant, prepared: Path, model: Path, *length: str) -> None:
    """Train fold 0, or go on where an earlier run was stopped."""
    keys = [word for key in (*variant.keys, *length) for word in ("--set", key)]
    words = ["train", prepared, "-o", model, "-c", CONFIG, "--fold", 0, *keys]
    if variant.surroundings:
        timed(*words)
        return
    command = [sys.executable, __file__, NO_SURROUNDINGS, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def measure(prepared: Path, work: Path, names: list[str], minutes: float) -> None:
    """Write the seconds of a step of every variant, without those of the first epoch."""
    path = work / "steps.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    for name in names:
        model = work / "measured" / name
        shutil.rmtree(model, ignore_errors=True)
        epochs = 1 + MEASURED_STEPS // STEPS_PER_EPOCH
        length = (f"train.epochs={epochs}", f"train.validate_every={epochs}", "train.validation_cases=1")
        train(VARIANTS[name], prepared, model, *length)
        seconds[name] = sum(float(epoch["seconds"]) for epoch in history(model)[1:]) / MEASURED_STEPS
        path.write_text(json.dumps(seconds, indent=1))
        print(f"{name}: {seconds[name]:.3f} s a step", flush=True)
    if "base" in seconds:
        print(
            f"--steps {round(60 * minutes / seconds['base'])} is {minutes:g} minutes of the base, without validations"
        )


def steps_of(name: str, base_steps: int, work: Path) -> int:
    """Steps of a variant that take as long as so many of the base."""
    path = work / "steps.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    share = VARIANTS[name].patches / VARIANTS["base"].patches
    if "base" in seconds and name in seconds:
        share = seconds[name] / seconds["base"]
        # The same number of patches is the same work: what differs there is the clock.
        share = share if VARIANTS[name].patches != VARIANTS["base"].patches else 1.0
    return round(base_steps / share)


def run(name: str, seed: int, chosen: argparse.Namespace, dataset: Path, prepared: Path, folder: Path) -> None:
    """Train one variant with one seed, score the held-out cases, and write ``result.json``."""
    if (folder / "result.json").is_file():
        return
    steps = steps_of(name, chosen.steps, chosen.work) if chosen.steps else None
    length = length_settings(steps, chosen.minutes)
    train(VARIANTS[name], prepared, folder / "model", *length, f"train.seed={seed}")
    last = history(folder / "model")[-1]
    found = {"dice": dice(folder / "model", dataset, folder, 0), "steps": int(last["iteration"])}
    (folder / "result.json").write_text(json.dumps(found, indent=1))
    print(f"{name}, seed {seed}: {found}", flush=True)


def table(runs: Path) -> None:
    """Print mean and SD over seeds of every variant that has been run."""
    results: dict[str, dict[int, Mapping[str, float]]] = {}
    steps: dict[str, list[int]] = {}
    for path in sorted(runs.glob("*/result.json")):
        name, _, seed = path.parent.name.rpartition("_")
        found = json.loads(path.read_text())
        results.setdefault(name, {})[int(seed)] = found["dice"]
        steps.setdefault(name, []).append(found["steps"])
    base = results.get("base", {})
    organs = list(next(iter(next(iter(results.values())).values())))
    print(
        f"\n| variant | seeds | steps | {' | '.join(organs)} | mean against base |\n|---{'|---' * (len(organs) + 3)}|"
    )
    for name in (name for name in VARIANTS if name in results):
        seeds = results[name]
        cells = [VARIANTS[name].meaning, ", ".join(map(str, sorted(seeds))), f"{fmean(steps[name]):.0f}"]
        cells += [spread([scores[organ] for scores in seeds.values()], "{:.4f}") for organ in organs]
        both = [seeds[seed]["mean"] - base[seed]["mean"] for seed in seeds if seed in base]
        cells.append(spread(both, "{:+.4f}") if both and name != "base" else "")
        print(f"| {' | '.join(cells)} |")


def spread(values: list[float], form: str) -> str:
    """Mean, and SD in brackets where there are several."""
    sd = f" ({stdev(values):.4f})" if len(values) > 1 else ""
    return f"{form.format(fmean(values))}{sd}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, default=Path("ablation"))
    parser.add_argument("--minutes", type=float, default=5.0, help="of every training, validations included")
    parser.add_argument("--steps", type=int, help="of the base, instead of minutes")
    parser.add_argument("--measure", action="store_true", help="only measure what steps take")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    chosen = parser.parse_args()
    dataset, prepared = chosen.work / "dataset", chosen.work / "prepared"
    if not (prepared / "splits.json").is_file():
        hold_out(chosen.dataset, every_fifth(chosen.dataset)[0], dataset)
        timed("preprocess", dataset, "-o", prepared, "-c", CONFIG)
    if chosen.measure:
        measure(prepared, chosen.work, chosen.only, chosen.minutes)
        return
    length = f"{chosen.steps}_steps" if chosen.steps else f"{chosen.minutes:g}_minutes"
    runs = chosen.work / "runs" / length
    # Seed by seed: a run that is stopped early has whole rows.
    for seed in chosen.seeds:
        for name in chosen.only:
            folder = runs / f"{name}_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            run(name, seed, chosen, dataset, prepared, folder)
    cases = len(list((dataset / "imagesTs").iterdir()))
    print(f"{describe(choose_device(None))}, {processors()} processors, {os.cpu_count()} in the machine; {length}")
    print(f"Dice of {cases} held-out cases, mean (SD) over seeds")
    table(runs)


if __name__ == "__main__":
    if sys.argv[1:2] == [NO_SURROUNDINGS]:
        move_within_patches(sys.argv[2:])
    else:
        main()
