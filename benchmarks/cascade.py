"""A cascade against the full resolution alone, where patches see a small part of a case; prints a table.

    python benchmarks/cascade.py --work /tmp/cascade

Made-up volumes hold two equal balls and, far from both, a bright slab at one end: the ball on the side of the slab is
``near``, the other one ``far``. A patch of the full resolution is 1/16 of a case and seldom sees slab and ball at once;
on the low resolution one sees everything. Both are trained with the same network, patch, batch and steps by ``volseg
train --fold all``; the Dice is that of new cases, by the average of all folds.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np

from pipeline.config.settings import Settings
from pipeline.core.grid import Grid
from pipeline.core.volume import Image, LabelMap
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import write_image, write_label_map
from pipeline.preprocess.plan_file import FIRST_STAGE, LowResolution, PatchPlan, write_plan
from pipeline.stages.predict import Predictor
from pipeline.stages.prepare import make_plan, preprocess
from pipeline.stages.train_folds import train_folds

SHAPE, PATCH, NEW = (96, 48, 48), (24, 24, 24), 1000  # the patch is 1/16 of the volume; first number of a new case
LOW = LowResolution(spacing_mm=(4.0, 4.0, 4.0), median_shape=(24, 12, 12), patch_size=(24, 12, 12), batch_size=4)


def case(index: int) -> tuple[Image, LabelMap]:
    """Two balls in noise, the slab at the first end in even cases, at the last in odd ones."""
    rng, grid = np.random.default_rng(index), Grid.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    labels, array = np.zeros(SHAPE, np.uint8), rng.normal(0, 0.3, SHAPE)
    array[slice(0, 6) if index % 2 == 0 else slice(-6, None)] += 3
    for value, along in zip((1, 2) if index % 2 == 0 else (2, 1), (33, 63), strict=True):
        centre = (along + rng.integers(-2, 3), *rng.integers(16, 32, 2))
        ball = ((places - centre) ** 2).sum(axis=-1) <= rng.integers(6, 9) ** 2
        labels[ball] = value
        array[ball] += 2
    return Image(array.astype(np.float32)[None], grid), LabelMap(labels, grid)


def write_cases(folder: Path, cases: int) -> Path:
    """A dataset of the first cases."""
    for index in range(cases):
        image, labels = case(index)
        write_image(image, folder / "images" / f"case_{index:02}.nii.gz")
        write_label_map(labels, folder / "labels" / f"case_{index:02}.nii.gz")
    (folder / "labels.json").write_text('{"1": "near", "2": "far"}')
    return folder


def settings(steps: int) -> Settings:
    """A small U-Net, trained for so many steps."""
    train = {"epochs": 3, "iterations_per_epoch": -(-steps // 3), "validate_every": 3, "optimizer": "adamw"}
    train |= {"learning_rate": 3e-3, "schedule": "cosine", "precision": "fp32"}
    model = {"options": {"features": (8, 16, 32), "norm": "instance"}}
    sample = {"batch_size": 4, "folds": 2, "foreground_share": 0.5}
    augment = {"rotate_p": 0.0, "scale_p": 0.0}
    return Settings.model_validate({"train": train, "model": model, "sample": sample, "augment": augment})


def new_dice(model: Path, cases: int) -> list[float]:
    """Mean Dice of near and far over new cases."""
    predictor, found = Predictor.load(model, device="cpu"), []
    for index in range(NEW, NEW + cases):
        image, reference = case(index)
        predicted = predictor.predict(image).array
        pairs = [(predicted == value, reference.array == value) for value in (1, 2)]
        found.append([2 * float((one & other).sum() / (one.sum() + other.sum())) for one, other in pairs])
    return [float(value) for value in np.mean(found, axis=0)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    dataset, wanted = write_cases(chosen.work / "data", chosen.cases), settings(chosen.steps)
    plan = make_plan(open_dataset(dataset), wanted, jobs=1)
    plan = plan.model_copy(update={"patch_3d": PatchPlan(patch_size=PATCH, batch_size=4), "low_resolution": LOW})
    print(f"patch {PATCH}: 1/{np.prod(SHAPE) / np.prod(PATCH):.0f} of a case; {chosen.steps} steps per training")
    print(f"{'':16} {'near':>6} {'far':>6} {'mean':>6} {'processor s':>12}")
    for name, cascade in (("full resolution", False), ("cascade", True)):
        home, began = chosen.work / name.replace(" ", "_"), time.process_time()
        home.mkdir(parents=True)
        write_plan(plan.model_copy(update={"cascade": cascade}), home / "plan.yaml")
        preprocess(dataset, home / "prepared", wanted, plan=home / "plan.yaml", jobs=1)
        result = train_folds(home / "prepared", home / "model", wanted, devices=["cpu"])
        if result.exit_code:
            raise SystemExit(f"{name}: {result}")
        used = f"{time.process_time() - began:12.0f}"
        models = {name: home / "model"} | ({"its first stage": home / "model" / FIRST_STAGE} if cascade else {})
        for shown, model in models.items():
            near, far = new_dice(model, 4)
            print(f"{shown:16} {near:6.3f} {far:6.3f} {(near + far) / 2:6.3f} {used}", flush=True)
            used = ""


if __name__ == "__main__":
    main()
