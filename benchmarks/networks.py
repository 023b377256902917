"""Train every network on fold 0 of the hippocampus set with the same data, recipe and time; table and scatter plot.

    python benchmarks/networks.py /data/Task04_Hippocampus --work /tmp/networks --budget 2m --parallel 2

Only ``model.name`` changes from row to row, and the recipe and batch with ``model.dims``. Networks with free widths get
16 to 128 channels, so that a processor can train them in minutes; ``--published`` keeps the papers' widths, for a GPU.
Dice is the mean over both organs on all validation cases; memory is the peak resident memory of the training process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import torch

from pipeline.model.cost import count_parameters
from pipeline.model.folder import read_card
from pipeline.model.registry import list_networks
from pipeline.model.spec import build_network

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {2: CONFIGS / "hippocampus_2d.yaml", 3: CONFIGS / "hippocampus.yaml"}
FEATURES = [16, 32, 64, 128]
BATCH = {2: 24, 3: 2}
"""Smaller than the recipes': in so short a time the number of steps decides."""
STAGES = {"vnet": {"convs_per_stage": [1, 2, 3, 2], "decoder_convs": [2, 1, 1]}}
"""Networks whose other options go with their depth."""
OWN_WIDTHS = ("ciresan_n4",)
"""Networks too small to be narrowed."""
VARIANTS = {"unetpp, batch norm, no dropout": ("unetpp", {"norm": "batch", "dropout": 0.0, "bias": False})}


@dataclass(frozen=True)
class Row:
    """One trained network; memory in GiB, Dice None if the training failed, which ``note`` explains."""

    name: str
    dims: int
    parameters: int
    dice: float | None
    iterations: int
    patches_per_s: float
    memory_gib: float
    note: str = ""


def options_of(name: str, published: bool) -> dict[str, object]:
    """Narrow widths where the network has free ones; every other option is the network's own."""
    own, extra = VARIANTS.get(name, (name, {}))
    defaults = next(info.defaults for info in list_networks() if info.name == own)
    if published or own in OWN_WIDTHS or "features" not in defaults:
        return dict(extra)
    return {"features": FEATURES, **STAGES.get(own, {}), **extra}


def run(command: list[str], log: Path, threads: int) -> tuple[int, float]:
    """Run a command; its exit code and peak resident memory in GiB."""
    with log.open("w") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 2**20


def train(name: str, dims: int, prepared: Path, work: Path, chosen: argparse.Namespace) -> Row:
    """Train one network in a process of its own."""
    model = work / f"{name.replace(', ', '_').replace(' ', '_')}_{dims}d"
    shutil.rmtree(model, ignore_errors=True)
    own, _ = VARIANTS.get(name, (name, {}))
    options = options_of(name, chosen.published)
    with torch.device("meta"):
        network = build_network(own, dims, 1, 3, **options)
    patch = {2: (56, 40), 3: (40, 56, 40)}[dims]
    wanted = [n + 2 * lost for n, lost in zip(patch, network.margin, strict=True)]
    size = (95, 95) if own == "ciresan_n4" else network.legal_size(wanted)
    settings = [f"model.name={own}", f"model.options={json.dumps(options)}", f"sample.patch_size={list(size)}"]
    settings += [f"sample.batch_size={BATCH[dims]}"]
    command = [sys.executable, "-m", "pipeline", "train", prepared, "-o", model, "-c", RECIPES[dims]]
    command += ["--budget", chosen.budget, *(word for text in settings for word in ("--set", text))]
    log = work / f"{model.name}.log"
    code, memory = run([str(word) for word in command], log, chosen.threads)
    if code:
        note = log.read_text().strip().splitlines()[-1]
        return Row(name, dims, count_parameters(network), None, 0, 0.0, memory, note)
    scores = json.loads((model / "fold_0" / "validation.json").read_text())
    header, *lines = (line.split(",") for line in (model / "fold_0" / "history.csv").read_text().splitlines())
    column = {title: n for n, title in enumerate(header)}
    rates = sorted(float(line[column["patches_per_s"]]) for line in lines)
    trained = count_parameters(read_card(model).network.build())
    iterations = int(lines[-1][column["iteration"]])
    return Row(name, dims, trained, scores["mean_dice"], iterations, rates[len(rates) // 2], memory)


def table(rows: list[Row]) -> str:
    """Markdown table, best Dice first."""
    lines = ["| network | parameters | iterations | patches/s | memory GiB | Dice |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -(row.dice or 0.0)):
        dice = f"{row.dice:.3f}" if row.dice is not None else row.note
        cells = [f"`{row.name}` {row.dims}D", f"{row.parameters:,}", f"{row.iterations:,}"]
        lines.append(f"| {' | '.join([*cells, f'{row.patches_per_s:.1f}', f'{row.memory_gib:.1f}', dice])} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Dice against patches per second, 2D and 3D apart; names stand beside each panel, so that none covers another."""
    figure, panels = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for axes, dims, color in zip(panels, (2, 3), ("#1b6ca8", "#d1603d"), strict=True):
        shown = sorted(
            (row for row in rows if row.dims == dims and row.dice is not None), key=lambda row: row.dice or 0
        )
        axes.scatter([row.patches_per_s for row in shown], [row.dice for row in shown], c=color)
        axes.set(xscale="log", ylim=(-0.03, 1.0), xlabel="patches per second", title=f"{dims}D")
        for row, height in zip(shown, apart([row.dice or 0.0 for row in shown], 0.05), strict=True):
            axes.annotate(
                f"{row.name}  {row.dice:.2f}",
                (row.patches_per_s, row.dice or 0.0),
                (1.03, height),
                textcoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6", "relpos": (0, 0.5)},
            )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean Dice, 42 validation cases")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def apart(heights: list[float], gap: float) -> list[float]:
    """Rising heights moved to lie at least a gap apart, between 0 and 0.98 where they fit."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else max(height, 0.0))
    for place in range(len(moved) - 1, -1, -1):
        most = 0.98 if place == len(moved) - 1 else moved[place + 1] - gap
        moved[place] = min(moved[place], most)
    return moved


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, default=Path("networks"))
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--networks", nargs="+", help="Names; by default all.")
    parser.add_argument("--parallel", type=int, default=1, help="Trainings at a time.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each training.")
    parser.add_argument("--published", action="store_true", help="Keep the papers' widths.")
    parser.add_argument("--plot", type=Path, help="PNG of the scatter plot; by default in the work folder.")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    prepared = chosen.work / "prepared"
    command = [sys.executable, "-m", "pipeline", "preprocess", chosen.dataset, "-o", prepared, "-c", RECIPES[3]]
    if run([str(word) for word in command], chosen.work / "preprocess.log", os.cpu_count() or 1)[0]:
        sys.exit((chosen.work / "preprocess.log").read_text())
    listed = [(info.name, dims) for info in list_networks() for dims in info.dims]
    listed += [(variant, dims) for variant in VARIANTS for dims in (2, 3)]
    jobs = [job for job in listed if not chosen.networks or job[0] in chosen.networks]
    store = chosen.work / "rows.json"
    rows = [Row(**entry) for entry in json.loads(store.read_text())] if store.exists() else []
    rows = [row for row in rows if (row.name, row.dims) not in jobs]
    began = time.monotonic()
    with ThreadPoolExecutor(chosen.parallel) as pool:
        for row in pool.map(lambda job: train(*job, prepared, chosen.work, chosen), jobs):
            rows.append(row)
            store.write_text(json.dumps([asdict(entry) for entry in rows], indent=1))
            print(f"{time.monotonic() - began:6.0f} s  {row}", file=sys.stderr, flush=True)
    print(table(rows))
    plot(rows, chosen.plot or chosen.work / "networks.png")


if __name__ == "__main__":
    main()
