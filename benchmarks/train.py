"""Train nnU-Net and volseg on fold 0 of a dataset with the same network, patch and batch; patches/s and time to a Dice.

    python benchmarks/train.py Task04_Hippocampus --nnunet /opt/nnunet/bin --work /tmp/train --minutes 60
    python benchmarks/train.py Task04_Hippocampus --nnunet /opt/nnunet/bin --device cuda --minutes 20 --ceiling
    python benchmarks/train.py --phantom /tmp/ct --work /tmp/train     # data wait at patches of 96^3, volseg alone

First the speeds: short trainings of both by turns, so that what else the machine does meets both; nnU-Net with several
numbers of augmentation workers, of which its best counts. Then one long training each for the time to a Dice: nnU-Net
by its own recipe (1000 epochs), volseg by ``RECIPE``; ``--short-schedule`` trains nnU-Net once more, its learning rate
falling to 0 within the minutes. Time is that of training alone: validation and saving are left out of both.

Dice is the mean over foreground classes of all validation volumes, without mirroring. nnU-Net's checkpoints predict the
files with nnU-Net, ``volseg evaluate`` scores them; volseg's is what ``volseg train`` validates, which the last line of
the output holds against masks of ``volseg predict`` scored in that same way. ``--work`` may be that of preprocess.py,
then nothing is prepared again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from ceiling import ceilings, describe, table
from helpers.commands import Cost, run
from helpers.training_results import (
    WARM_UP,
    Curve,
    Speed,
    curves_table,
    nnunet_curve,
    nnunet_speed,
    plot,
    pooled,
    speed_table,
    volseg_curve,
    volseg_speed,
)
from helpers.training_tools import VOLSEG, Bench

from pipeline.core.machine import processors
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.device import choose_device
from pipeline.model.folder import read_card

PASSES = 3  # forward, gradients of inputs, gradients of weights
PHANTOM = ("sample.patch_size=[96, 96, 96]", "sample.batch_size=2", "infer.overlap=0")
PHANTOM_CASES = 5  # one of them validates, which no training is without: a minute or two on a processor


def arguments() -> argparse.Namespace:
    """The command line; what depends on the device or the minutes is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?", help="left out: no comparison")
    parser.add_argument("--nnunet", type=Path, default=Path(sys.executable).parent, help="folder of its commands")
    parser.add_argument("--work", type=Path, default=Path("train_benchmark"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=60, help="nnU-Net's long training; 0 for speeds alone")
    parser.add_argument("--own-minutes", type=float, help="volseg's budget; by default a fifth")
    parser.add_argument("--target", type=float, default=0.8, help="mean Dice to reach")
    parser.add_argument("--every", type=float, help="s between two scored checkpoints; by default a 30th")
    parser.add_argument("--short-schedule", action="store_true")
    parser.add_argument(
        "--steps", type=int, help="iterations of one training for the speed; by default 15, on GPUs 1000"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of nnU-Net's augmentation workers to try")
    parser.add_argument("--precisions", nargs="+", help="of volseg, for the speed; by default auto, on CPUs fp32 too")
    parser.add_argument("--validate-every", type=int, help="iterations of volseg; by default 20, on GPUs 200")
    parser.add_argument("--ceiling", action="store_true", help="also measure how fast convolutions can be")
    parser.add_argument("--phantom", type=Path, help="folder of CT phantoms, written if there are none")
    chosen = parser.parse_args()
    on_gpu = chosen.device == "cuda"
    chosen.own_minutes = chosen.own_minutes or chosen.minutes / 5
    chosen.every = chosen.every or chosen.minutes * 2
    usual = min(12, os.cpu_count() or 1)  # nnU-Net's own choice on machines it does not know
    chosen.workers = chosen.workers or ([usual] if on_gpu else sorted({0, 2, usual}))
    chosen.precisions = chosen.precisions or (["auto"] if on_gpu else ["auto", "fp32"])
    chosen.validate_every = chosen.validate_every or (200 if on_gpu else 20)
    chosen.epoch = (
        50 if on_gpu else 1
    )  # iterations between two looks at volseg's clock, where a GPU has to be waited for
    return chosen


def timed(chosen: argparse.Namespace) -> tuple[str, ...]:
    """Settings of a training for the speed: short epochs, one validation."""
    epochs = chosen.steps // chosen.epoch + WARM_UP
    length = (f"train.iterations_per_epoch={chosen.epoch}", f"train.epochs={epochs}")
    return (*length, f"train.validate_every={epochs}", "train.validation_cases=1")


def speeds(bench: Bench, chosen: argparse.Namespace) -> dict[str, Speed]:
    """Speeds of all variants, pooled over rounds in which each has its turn."""
    steps = chosen.steps + WARM_UP * chosen.epoch
    found: dict[str, list[Speed]] = {}
    for number in range(chosen.rounds):
        for workers in chosen.workers:
            folder, _ = bench.nnunet(f"nnunet_{workers}_{number}", workers, steps=steps)
            found.setdefault(f"nnU-Net, {workers} workers", []).append(nnunet_speed(folder, chosen.epoch))
        for precision in chosen.precisions:
            settings = (*timed(chosen), f"train.precision={precision}")
            model, _ = bench.volseg(f"volseg_{precision}_{number}", *settings)
            found.setdefault(f"volseg, {precision}", []).append(volseg_speed(model / "fold_0" / "history.csv"))
        for name, rounds in found.items():
            say(f"round {number + 1}: {name}: {rounds[-1].patches_per_s:.3f} patches/s")
    return {name: pooled(rounds) for name, rounds in found.items()}


def sizes(bench: Bench, chosen: argparse.Namespace) -> str:
    """The two networks in a sentence: parameters, and the multiply-adds that they share."""
    theirs = bench.facts(f"nnunet_{chosen.workers[0]}_0")
    spec = read_card(bench.runs / f"volseg_{chosen.precisions[0]}_0").network
    network = spec.build()
    parameters, cost = count_parameters(network), multiply_adds(network, spec.patch_size, spec.in_channels)
    return (
        f"parameters: nnU-Net {theirs['parameters']:,}, volseg {parameters:,} (nnU-Net has a head more, whose loss "
        f"weighs 0); patch {list(spec.patch_size)}, batch {theirs['batch']}, {cost / 1e9:.1f} G multiply-adds per patch"
    )


def long_trainings(bench: Bench, chosen: argparse.Namespace, found: dict[str, Speed]) -> str:
    """The trainings for the Dice; writes the picture, gives the table and the check of volseg's Dice."""
    curves: dict[str, Curve] = {}
    costs: dict[str, Cost] = {}
    images, references = bench.validation_files()
    rates = {workers: found[f"nnU-Net, {workers} workers"].patches_per_s for workers in chosen.workers}
    workers = max(rates, key=lambda number: rates[number])
    schedules: dict[str, dict[str, Any]] = {"nnU-Net": {}}
    if chosen.short_schedule:
        steps = chosen.minutes * 60 * rates[workers] / bench.batch
        schedules["nnU-Net, short schedule"] = {"iterations": 25, "epochs": max(1, round(steps / 25))}
    for number, (name, schedule) in enumerate(schedules.items()):
        limits = {"seconds": chosen.minutes * 60, "every_s": chosen.every, **schedule}
        folder, costs[name] = bench.nnunet(f"nnunet_long_{number}", workers, **limits)
        say(f"{name}: trained")
        curves[name] = nnunet_curve(folder, bench.score_checkpoints(images, references))
    settings = (f"train.iterations_per_epoch={chosen.validate_every}", "train.validate_every=1")
    budget = f"train.budget={chosen.own_minutes * 60:.0f}s"
    model, costs["volseg"] = bench.volseg("volseg_long", *settings, budget)
    curves["volseg"] = volseg_curve(model / "fold_0" / "history.csv")
    picture = bench.work / "train.png"
    plot(curves, chosen.target, picture)
    dice, said = bench.score_model(model, images, references), max(value for _, value in curves["volseg"].dice)
    check = f"volseg's best weights: Dice {said:.4f} in its validation, {dice:.4f} of its masks on disk"
    return f"{curves_table(curves, costs, chosen.target)}\n\n{check}; picture: {picture}"


def against_ceiling(bench: Bench, chosen: argparse.Namespace, found: dict[str, Speed]) -> str:
    """FLOP/s that the training reaches, as a share of what convolutions alone reach."""
    device = choose_device(chosen.device)
    most = ceilings(device)
    spec = read_card(bench.runs / f"volseg_{chosen.precisions[0]}_0").network
    cost = multiply_adds(spec.build(), spec.patch_size, spec.in_channels)
    reached = 2 * PASSES * cost * found[f"volseg, {chosen.precisions[0]}"].patches_per_s
    share = reached / max(most.values())
    return f"{table(most)}\n\nvolseg trains at {reached / 1e12:.3g} TFLOP/s, {share:.1%} of the ceiling"


def phantom_waits(bench: Bench, chosen: argparse.Namespace) -> str:
    """Data wait of volseg on CT phantoms: cases in memory, and read from disk patch by patch."""
    folder, prepared = chosen.phantom, bench.work / "phantom"
    if not (folder / "dataset.json").is_file():
        words = ["--cases", str(PHANTOM_CASES), "--tests", "1", "--size", "full"]
        run([*VOLSEG, "phantom", str(folder), *words], bench.environment)
    run([*VOLSEG, "preprocess", str(folder), "-o", str(prepared)], bench.environment)
    found = {}
    for name, megabytes in (("in memory", 8192), ("from disk", 0)):
        settings = (*PHANTOM, *timed(chosen), f"sample.cache_mb={megabytes}")
        model, _ = bench.volseg(f"phantom_{megabytes}", *settings, prepared=prepared)
        found[f"CT phantom, 96^3, {name}"] = volseg_speed(model / "fold_0" / "history.csv")
    return speed_table(found)


def say(sentence: str) -> None:
    """Progress, apart from the results."""
    print(sentence, file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark."""
    chosen = arguments()
    if shutil.which("nnUNetv2_train", path=chosen.nnunet) is None and chosen.dataset:
        sys.exit(f"--nnunet: expected a folder with nnUNetv2_train, got {chosen.nnunet}. Install nnunetv2 there.")
    bench = Bench(chosen.dataset, chosen.nnunet, chosen.work, chosen.device)
    print(f"{describe(choose_device(chosen.device))}, {processors()} processors, torch {torch.__version__}")
    if chosen.dataset:
        bench.prepare()
        found = speeds(bench, chosen)
        print(f"{sizes(bench, chosen)}\n\n{speed_table(found)}\n", flush=True)
        if chosen.ceiling:
            print(f"{against_ceiling(bench, chosen, found)}\n", flush=True)
        if chosen.minutes:
            print(f"{long_trainings(bench, chosen, found)}\n", flush=True)
    if chosen.phantom:
        print(phantom_waits(bench, chosen))


if __name__ == "__main__":
    main()
