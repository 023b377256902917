"""Waits of the host, launches and copies of a GPU per training step and per window, and bytes of a training step.

    python benchmarks/gpu_counts.py                    # both tables; some minutes
    python benchmarks/gpu_counts.py --only counts      # one of them: counts, memory
    python benchmarks/gpu_counts.py --places           # also which lines wait
    PYTHONPATH=/other/checkout python benchmarks/gpu_counts.py --only counts   # of another state of the code

No GPU is used: the stand-in of the tests takes its place, tensors that say they are on a GPU and compute on the
processor (tests/gpu_stand_in/README.md says what it cannot see). It needs g++.

Training: steps of a 3D U-Net of two levels with deep supervision on toy cases, 2 patches of 16 x 16 x 16, all
augmentations at a probability of 1, gradients clipped, a moving average; the first two steps and the first batch do not
count. The columns of batches are of the thread that makes them, per batch. Prediction: a case of 64 windows of
8 x 8 x 8 with 4 classes, a left and a right organ among them, 4 windows per call, from the prepared image to the labels
on the processor. Every operation but views and allocations is a launch, of a kernel or several. Copies are those of
whole tensors into another memory order, cuDNN's own included, and the bytes that they write. The size from which
instance norm goes a GPU's own way is lifted, as these images are small.
"""

# ruff: noqa: E402  The stand-in has to be there before anything imports PyTorch.
from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path[1:1] = [str(ROOT / "tests" / "gpu_stand_in"), str(ROOT / "tests" / "helpers")]

import stand_in

stand_in.install(stand_in.build(ROOT / ".pytest_cache" / "gpu_stand_in"))

from gpu_tensor import Seen, watch
from toy import toy_case, toy_settings, write_toy

from pipeline.config.settings import AugmentSettings, Settings
from pipeline.infer import trained_model
from pipeline.model import blocks
from pipeline.stages.predict import Predictor
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train
from pipeline.train import loader, log
from pipeline.train.state import Callbacks

STEPS, WINDOWS = 6, 64
EVERYTHING = {name: 1.0 for name in AugmentSettings.model_fields if name.endswith("_p")}
TRAININGS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32": {"train": {"precision": "fp32"}},
    "fp16": {"train": {"precision": "fp16"}},
    "bf16, weights of narrow gaps": {"loss": {"border_weight": 10.0}},
    "bf16, cases on the disk": {"sample": {"cache_mb": 0}},
}
PREDICTIONS: dict[str, tuple[list[str], bool]] = {
    "plain": ([], False),
    "mirrored, 8 passes": (["infer.mirror=true"], False),
    "sums on the CPU": ([], True),
}
"""Settings, and whether the sums over windows lie on the CPU, as they do where the GPU has no room for them."""


@dataclass(frozen=True)
class Counts:
    """What one thread asks of a GPU.

    Args:
        waits: Line → waits of the host.
        launches: Operations that compute.
        copies: Into another memory order.
        copied_bytes: What these write.
    """

    waits: Counter[str]
    launches: int
    copies: int
    copied_bytes: int

    @classmethod
    def of(cls, seen: Seen, thread: str = "MainThread") -> Counts:
        """Of a thread until now."""
        orders = [event for event in seen.copies if event.place.thread == thread and " to channels " in event.what]
        return cls(
            Counter(seen.waits_of(thread)),
            seen.launches[thread],
            sum(seen.copies[event] for event in orders),
            sum(seen.copied_bytes[event] for event in orders),
        )

    def since(self, before: Counts) -> Counts:
        """What was added to earlier counts."""
        return Counts(
            self.waits - before.waits,
            self.launches - before.launches,
            self.copies - before.copies,
            self.copied_bytes - before.copied_bytes,
        )


def prepared_toys(folder: Path) -> Path:
    """Cases with a left and a right organ, and one that no case has."""
    data = write_toy(folder / "data", 4)
    (data / "labels.json").write_text('{"1": "kidney_left", "2": "kidney_right", "3": "liver"}')
    preprocess(data, folder / "prepared", toy_settings(), jobs=1)
    return folder / "prepared"


def settings(**changes: dict[str, Any]) -> Settings:
    """Those of the toys, with everything that a step may do."""
    own = toy_settings()
    given: dict[str, dict[str, Any]] = {"augment": EVERYTHING | {"flip_axes": ["LR"]}, **changes}
    given["train"] = {"epochs": 1, "iterations_per_epoch": STEPS, "precision": "bf16", "ema_decay": 0.9} | given.get(
        "train", {}
    )
    merged = {name: {**getattr(own, name).model_dump(), **values} for name, values in given.items()}
    return Settings.model_validate(own.model_dump() | merged)


class Counted(ThreadPoolExecutor):
    """The thread that makes batches; how many it has made since the first, and what it had asked for by then."""

    seen = Seen()
    first: Counts | None = None
    made = 0

    def submit(self, call: Any, /, *given: Any, **named: Any) -> Any:
        """As ever."""

        def counted() -> Any:
            result = call(*given, **named)
            if Counted.first is None:  # what it does once, and keeps, does not count
                Counted.first = Counts.of(Counted.seen, "batches")
            else:
                Counted.made += 1
            return result

        return super().submit(counted)


def trained(prepared: Path, out: Path, own: Settings) -> tuple[list[Counts], Counts, int]:
    """Counts of each step after the second; of the thread that makes batches after the first, and how many it made."""
    found: list[Counts] = []
    with watch() as seen:
        Counted.seen, Counted.first, Counted.made = seen, None, 0
        note = Callbacks(on_step=lambda share, loss: found.append(Counts.of(seen)))
        train(prepared, out, own, device="cuda", callbacks=note)
    steps = [after.since(before) for before, after in pairwise(found)][1:]
    assert Counted.first is not None
    return steps, Counts.of(seen, "batches").since(Counted.first), Counted.made


def predicted(model: Path, words: Sequence[str], sums_on_cpu: bool) -> Counts:
    """Counts of a case."""
    image, _ = toy_case(9)
    predictor = Predictor.load(model, device="cuda", settings=["infer.batch_size=4", *words])
    full = patch.object(trained_model, "free_bytes", lambda device: 0) if sums_on_cpu else nullcontext()
    with full:
        predictor.predict(image)  # what is kept for the next case
        with watch() as seen:
            predictor.predict(image)
    return Counts.of(seen)


def mean(values: Sequence[float]) -> str:
    """Their mean, with digits only where there are any."""
    value = sum(values) / len(values)
    return f"{value:.0f}" if value == round(value) or value >= 100 else f"{value:.2f}"


def print_counts(places: bool) -> None:
    """Print the table of waits, launches and copies, and which lines wait if wanted."""
    # Measured convolutions that keep a GPU busy for a tenth of a second take minutes here.
    log.convolution_ceiling = lambda *_: 1e12
    loader.ThreadPoolExecutor = Counted  # type: ignore[misc]
    if hasattr(blocks, "_LARGE_ON_GPU"):
        blocks._LARGE_ON_GPU = 0
    waiting: dict[str, Counter[str]] = {}
    print(
        "| training, per step | waits | waits, batches | launches | launches, batches | copies | KB copied |\n"
        "|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepared_toys(Path(folder))
        for number, (name, changes) in enumerate(TRAININGS.items()):
            steps, batches, made = trained(prepared, Path(folder) / f"model_{number}", settings(**changes))
            waits = mean([step.waits.total() for step in steps]), mean([batches.waits.total() / made])
            launches = mean([step.launches for step in steps]), mean([batches.launches / made])
            copies = mean([step.copies for step in steps]), mean([step.copied_bytes / 1024 for step in steps])
            print(f"| {' | '.join((name, *waits, *launches, *copies))} |", flush=True)
            waiting[name] = sum((step.waits for step in steps), Counter())
            waiting[f"{name}, batches"] = batches.waits
        print("\n| prediction, per window | waits | launches | copies | KB copied |\n|---|---|---|---|---|")
        mirrored = {"flip_axes": ["LR", "AP", "SI"]}
        small = settings(sample={"patch_size": (8, 8, 8)}, augment=mirrored, train={"iterations_per_epoch": 1})
        train(prepared, Path(folder) / "model", small, device="cuda")
        for name, (words, sums_on_cpu) in PREDICTIONS.items():
            found = predicted(Path(folder) / "model", words, sums_on_cpu)
            values = found.waits.total(), found.launches, found.copies, found.copied_bytes / 1024
            print(f"| {' | '.join((name, *(mean([value / WINDOWS]) for value in values)))} |", flush=True)
            waiting[f"prediction, {name}"] = found.waits
    for name, found in waiting.items() if places else ():
        print(f"\n{name}:")
        print("\n".join(f"    {count} {line}" for line, count in found.most_common()) or "    no wait")


def print_memory() -> None:
    """Print the table of docs/training.md."""
    # Here, because an older state of the code, whose counts may be asked for, estimates in another way.
    from step_bytes import CONFIGURATIONS, estimated_and_counted

    print("| configuration | estimated (bytes) | counted (bytes) | difference |\n|---|---|---|---|")
    for name in CONFIGURATIONS:
        memory, _, peak = estimated_and_counted(name)
        estimated = memory.state + memory.step
        print(f"| {name} | {estimated:,} | {peak:,} | {100 * (estimated / peak - 1):.2g} % |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("counts", "memory"), help="one of the tables")
    parser.add_argument("--places", action="store_true", help="also print which lines wait, and how often")
    chosen = parser.parse_args()
    if chosen.only != "counts":  # first, as what trainings and predictions leave would be counted, too
        print_memory()
    if chosen.only is None:
        print()
    if chosen.only != "memory":
        print_counts(chosen.places)


if __name__ == "__main__":
    main()
