"""The networks of the seed papers on the data of their first experiments, for the same minutes; tables and a plot.

    python benchmarks/seeds.py em_membrane --data /data --minutes 15
    python benchmarks/seeds.py nuclei --data /data --minutes 20 --networks unet unetpp --plot nuclei.png
    python benchmarks/seeds.py em_membrane --data /data --steps 600        # a machine that is not quiet

EM membranes are the data of U-Net 2015, nuclei those of UNet++ 2018. All networks but one are trained by one recipe
(``COMMON``): the same cases, patches, augmentation, loss and optimizer, with batch norm and widths of 16 to 256, which
learn within minutes on two cores; wide U-Net has the paper's ratio to them. ``unet2015`` keeps what makes it: valid
convolutions with overlapping tiles, no normalization, the border weights and the elastic deformation. ``unet2015, its
recipe`` is ``configs/unet2015.yaml`` as it is, at the published width.

With ``--steps`` the padded U-Net makes so many, and every other network as many as take the same time: by
``steps.json``, which ``--measure`` writes on a quiet machine, else by the multiply-adds of a step.

UNet++ with deep supervision is also scored cut off at every depth, and by the mean of its heads; what each costs is
what ``volseg prune`` measures. Test cases leave the dataset before it is prepared, and are scored, as in accuracy.py.
Runs are kept: the same command goes on where it was stopped, and the tables are of all there is for this length.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from ceiling import describe
from helpers.accuracy_tables import by_seed, measures, spread
from helpers.intervals import over_seeds
from helpers.real_fold import RealFold
from helpers.real_runs import Runs, finished, is_finished, keep, pooled, run_folder
from helpers.scores import read_labels
from helpers.splits import SETS, case_files
from helpers.volseg import CONFIGS, length_settings, timed
from matplotlib.figure import Figure

from pipeline.core.machine import processors
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.device import choose_device
from pipeline.model.folder import read_card, write_card
from pipeline.model.spec import build_network

BASE = "unet"
WIDTHS = [16, 32, 64, 128, 256]
WIDER = [18, 35, 70, 140, 280]  # 35 to 560 over 32 to 512, as the UNet++ paper has them
PATCH, BATCH = {"em_membrane": 256, "nuclei": 128}, {"em_membrane": 2, "nuclei": 8}
WHOLE = {"em_membrane": 572, "nuclei": 316}  # patches of the recipe of 2015: its own, and one for images of 256 pixels
MAIN = {"em_membrane": "Dice", "nuclei": "IoU"}
"""What the tables are sorted by, and the plot shows."""

COMMON: dict[str, dict[str, Any]] = {
    "augment": {"flip_axes": ["LR", "AP"], "rotate_degrees": 180},  # slices and smears have no upright
    "model": {"dims": 2, "deep_supervision": False},
    "loss": {"batch_dice": True},
    "train": {
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 1e-2,
        "schedule": "onecycle",
        "ema_decay": 0.98,
        "iterations_per_epoch": 50,
        "validate_every": 5,
    },
    "infer": {"mirror": False},
}


@dataclass(frozen=True)
class Network:
    """One row of the table.

    Args:
        name: ``model.name``.
        options: ``model.options``.
        keys: Further settings; ``{half}`` is half of the patch less one.
        recipe: Config that is used in place of ``COMMON``.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    recipe: Path | None = None


NORMED = {"norm": "batch", "dropout": 0.0, "bias": False}
BORDERS = ("loss.dice_weight=0", "loss.class_weights=balanced", "loss.border_weight=10", "loss.border_sigma_voxels=5")
ELASTIC = ("augment.elastic_p=1", "augment.elastic_sigma_voxels=20", "augment.elastic_grid_voxels={half}")
SUPERVISED = "unetpp, deep supervision"
NETWORKS = {
    "unet2015, its recipe": Network("unet2015", keys=(ELASTIC[-1],), recipe=CONFIGS / "unet2015.yaml"),
    "unet2015": Network("unet2015", {"features": WIDTHS}, (*BORDERS, *ELASTIC)),
    BASE: Network("unet", {"features": WIDTHS, "norm": "batch"}),
    "wide_unet": Network("wide_unet", {"features": WIDER, "norm": "batch", "bias": False}),
    "unetplus": Network("unetplus", {"features": WIDTHS, **NORMED}),
    "unetpp": Network("unetpp", {"features": WIDTHS, **NORMED}),
    SUPERVISED: Network(
        "unetpp", {"features": WIDTHS, **NORMED}, ("model.deep_supervision=true", "loss.head_weights=equal")
    ),
    "attention_unet": Network("attention_unet", {"features": WIDTHS}),
    "resunet": Network("resunet", {"features": WIDTHS}),
    "dense_unet": Network("dense_unet", {"features": WIDTHS}),
}


@dataclass(frozen=True)
class Task:
    """A network on a set: what is trained.

    Args:
        name: Of the row.
        network: Which.
        recipe: Its config.
        patch: Side of what it sees.
        batch: Patches of a step.
        parameters: All trainable ones.
        multiply_adds: Of the convolutions, for the batch of a step, forward.
        pixels: That get logits of it.
    """

    name: str
    network: Network
    recipe: Path
    patch: int
    batch: int
    parameters: int
    multiply_adds: int
    pixels: int

    @classmethod
    def of(cls, name: str, dataset: str, channels: int, common: Path) -> Task:
        """The task of a row of NETWORKS; ``common`` is the file of COMMON."""
        network = NETWORKS[name]
        supervised = {"deep_supervision": True} if name == SUPERVISED else {}
        with torch.device("meta"):
            built: SegmentationNetwork = build_network(network.name, 2, channels, 2, **network.options, **supervised)
        wanted = [PATCH[dataset] + 2 * lost for lost in built.margin]
        patch = WHOLE[dataset] if network.recipe else built.legal_size(wanted)[0]
        batch = 1 if network.recipe else BATCH[dataset]
        costs = batch * multiply_adds(built, (patch, patch), channels), batch * prod(built.output_size((patch, patch)))
        return cls(name, network, network.recipe or common, patch, batch, count_parameters(built), *costs)

    @property
    def keys(self) -> tuple[str, ...]:
        """Its settings over those of its recipe."""
        keys = [key.format(half=(self.patch - 1) / 2) for key in self.network.keys]
        if self.network.recipe is None:
            keys += [f"model.name={self.network.name}", f"model.options={json.dumps(dict(self.network.options))}"]
            keys += [f"sample.batch_size={self.batch}"]
        return (*keys, f"sample.patch_size={[self.patch, self.patch]}")


def steps_of(name: str, tasks: Mapping[str, Task], base_steps: int, measured: Path) -> int:
    """Steps of a network that take as long as so many of the padded U-Net."""
    seconds: dict[str, float] = json.loads(measured.read_text()) if measured.is_file() else {}
    share = tasks[name].multiply_adds / tasks[BASE].multiply_adds
    if {BASE, name} <= set(seconds):
        share = seconds[name] / seconds[BASE]
    return max(1, round(base_steps / share))


def measure(fold: RealFold, tasks: Iterable[Task], measured: Path) -> None:
    """Write the seconds of a step of every network."""
    seconds: dict[str, float] = json.loads(measured.read_text()) if measured.is_file() else {}
    for task in tasks:
        seconds[task.name] = fold.step_s(task.recipe, fold.work / "measured", *task.keys)
        measured.write_text(json.dumps(seconds, indent=1))
        print(f"{task.name}: {seconds[task.name]:.3f} s a step", flush=True)


def levels(fold: RealFold, model: Path, prepared: Path, folder: Path) -> dict[str, Any]:
    """UNet++ cut off at every depth, and the mean of its heads: what ``volseg prune`` measures, and the test scores."""
    timed("prune", model, "--prepared", prepared, "-o", folder / "pruned")
    card, found = read_card(model), {}
    for row in json.loads((folder / "pruned" / "pruning.json").read_text())["rows"]:
        level, part = row["level"], folder / "level"
        # A head of the whole network predicts what the network cut off there would.
        head = {"mode": "accurate"} if level is None else {"mode": "fast", "head": level}
        network = card.network.model_copy(update={"options": {**card.network.options, **head}})
        shutil.rmtree(part, ignore_errors=True)
        (part / "fold_0").mkdir(parents=True)
        shutil.copy(model / "fold_0" / "model.safetensors", part / "fold_0")
        write_card(part, card.model_copy(update={"network": network}))
        costs = {key: row[key] for key in ("parameters", "multiply_adds", "seconds_per_case")}
        found["mean of the heads" if level is None else f"L{level}"] = costs | {"cases": fold.predicted(part, part)}
    return found


def run(fold: RealFold, task: Task, seed: int, length: str, settings: tuple[str, ...]) -> None:
    """Train one network with one seed and score its masks, unless that is done."""
    folder = run_folder(fold.work, length, task.name, seed)
    if is_finished(folder, "\n".join((task.recipe.read_text(), *task.keys, *settings))):
        return
    found = fold.volseg(task.recipe, folder, *task.keys, *settings, f"train.seed={seed}")
    found |= {"parameters": task.parameters, "multiply_adds": task.multiply_adds / task.pixels}
    if task.name == SUPERVISED:
        found["levels"] = levels(fold, folder / "model", fold.prepared(task.recipe), folder)
    keep(folder, task.name, seed, fold.number, found)


def row_of(seeds: Mapping[int, Mapping[int, Mapping[str, Any]]], kind: str) -> dict[str, list[float]]:
    """Measure → value of every seed."""
    arm = {seed: measures(kind, pooled(parts)) for seed, parts in seeds.items()}
    return {measure: list(by_seed(arm, measure).values()) for measure in next(iter(arm.values()))}


def level_runs(found: Runs) -> Runs:
    """The levels of UNet++ with deep supervision, as if each were a network."""
    runs: Runs = {}
    for seed, parts in found.get(SUPERVISED, {}).items():
        for fold, part in parts.items():
            for level, content in part["levels"].items():
                runs.setdefault(level, {}).setdefault(seed, {})[fold] = content
    return runs


def table(found: Runs, kind: str, costs: Mapping[str, tuple[str, str, float]], main: str | None) -> str:
    """Markdown, best first by the main measure, or in the given order.

    Args:
        found: The runs.
        kind: How the set is scored.
        costs: What is told of a run besides: key of its result → heading, format, divisor.
        main: Measure to sort by.
    """
    rows = {name: row_of(seeds, kind) for name, seeds in found.items()}
    named = list(next(iter(rows.values())))
    head = ["network", *(heading for heading, _, _ in costs.values()), "seeds", *named]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in sorted(rows, key=lambda name: -fmean(rows[name][main])) if main else rows:
        parts = [part for folds in found[name].values() for part in folds.values()]
        cells = [name, *(f"{fmean(part[key] for part in parts) / by:{form}}" for key, (_, form, by) in costs.items())]
        cells += [str(len(found[name])), *(spread(over_seeds(values)) for values in rows[name].values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: Runs, kind: str, main: str, path: Path) -> None:
    """PNG: the main measure against multiply-adds, networks on the left, levels of UNet++ on the right."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    runs = (found, level_runs(found))
    for axes, shown, key, told in zip(
        panels, runs, ("multiply_adds", "seconds_per_case"), ("multiply-adds per pixel", "s per case"), strict=True
    ):
        for name, seeds in shown.items():
            spread_over = over_seeds(row_of(seeds, kind)[main])
            place = fmean(part[key] for folds in seeds.values() for part in folds.values())
            axes.errorbar(place, spread_over.mean, yerr=spread_over.sd if len(seeds) > 1 else None, fmt="o", capsize=3)
            axes.annotate(name, (place, spread_over.mean), (5, 5), textcoords="offset points", fontsize=8)
        axes.set(xlabel=told, ylabel=main)
        axes.grid(alpha=0.3)
        axes.margins(0.15)
    panels[0].set(xscale="log", title="networks, the same time to train")
    panels[1].set(title="UNet++ with deep supervision, cut off at each depth")
    figure.savefig(path, dpi=110)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(PATCH))
    parser.add_argument("--data", type=Path, default=os.environ.get("VOLSEG_TEST_DATA"), help="folder of all sets")
    parser.add_argument("--work", type=Path, default=Path("seeds"))
    parser.add_argument("--minutes", type=float, default=15.0, help="of every training")
    parser.add_argument("--steps", type=int, help="of the padded U-Net, instead of minutes")
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings that differ in their seed alone")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="those that test")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--measure", action="store_true", help="only measure what steps take")
    parser.add_argument("--only-table", action="store_true", help="only print what was found before")
    parser.add_argument("--plot", type=Path, help="PNG; by default in the work folder")
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error("--data: expected the folder of all sets, or VOLSEG_TEST_DATA")
    return chosen


def main() -> None:
    """Run the benchmark."""
    chosen = arguments()
    work, dataset = chosen.work.resolve() / chosen.set, Path(chosen.data) / SETS[chosen.set].folder
    work.mkdir(parents=True, exist_ok=True)
    common, measured = work / "common.yaml", work / "steps.json"
    common.write_text(yaml.safe_dump(COMMON))
    image, _ = next(iter(case_files(dataset).values()))
    channels = 3 if read_labels(image).ndim == 3 else 1
    tasks = {name: Task.of(name, chosen.set, channels, common) for name in NETWORKS}
    length = f"{chosen.minutes:g}_minutes" if chosen.steps is None else f"{chosen.steps}_steps"
    if not chosen.only_table:
        folds = [RealFold(chosen.set, dataset, fold, work) for fold in chosen.folds]
        if chosen.measure:
            measure(folds[0], [tasks[name] for name in chosen.networks], measured)
            return
        # Seed by seed, so that what is stopped early has whole seeds.
        for seed in range(chosen.seeds):
            for fold in folds:
                for name in chosen.networks:
                    steps = None if chosen.steps is None else steps_of(name, tasks, chosen.steps, measured)
                    run(fold, tasks[name], seed, length, length_settings(steps, chosen.minutes))
    kind = SETS[chosen.set].scores
    found = finished(work, length, chosen.folds, list(NETWORKS).index)
    if not found:
        sys.exit(f"{work}: expected finished runs of {length}, got none. Leave --only-table out.")
    tested = len(pooled(next(iter(next(iter(found.values())).values()))))
    told = f"{tested} of {len(case_files(dataset))} cases test; mean (SD over seeds)"
    print(f"{chosen.set}, {length}, folds {chosen.folds}: {told}")
    print(f"{describe(choose_device(None))}, {processors()} processors\n")
    costs = {"parameters": ("parameters", ",.0f", 1.0), "multiply_adds": ("multiply-adds per pixel", ",.0f", 1.0)}
    print(table(found, kind, costs | {"steps": ("steps", ".0f", 1.0)}, MAIN[chosen.set]))
    if runs := level_runs(found):
        costs["multiply_adds"] = ("multiply-adds, G", ".2f", 1e9)
        print(f"\n{table(runs, kind, costs | {'seconds_per_case': ('s per case', '.2f', 1.0)}, None)}")
    picture = chosen.plot or work / "seeds.png"
    plot(found, kind, MAIN[chosen.set], picture)
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
