"""A real hippocampus by a model that comes with volseg, then the whole pipeline on phantoms, in a few minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.config.settings import Settings
from pipeline.core.files import write_bytes, write_json
from pipeline.core.signals import Progress, silent
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate.overlap import overlaps
from pipeline.model.folder import fold_folder
from pipeline.model.zoo import zoo_model
from pipeline.phantom.torso import write_phantom
from pipeline.report.overlay import case_overlay
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.stages.prepare import preprocess
from pipeline.stages.report import report
from pipeline.stages.train import train
from pipeline.train.state import NO_CALLBACKS, Callbacks

DEMO_SETTINGS = Path(__file__).with_name("demo.yaml")
"""Settings of the demo: a network small enough for two processor cores."""


def run_demo(
    out: Path,
    settings: Settings,
    *,
    cases: int = 24,
    tests: int = 8,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = silent,
    callbacks: Callbacks = NO_CALLBACKS,
) -> dict[str, Any]:
    """Segment an example, then make phantoms, prepare, train, predict the held-out ones, evaluate, write the report.

    Args:
        out: Folder for everything; what an earlier demo finished there is kept.
        settings: All settings, by default read from :data:`DEMO_SETTINGS`.
        cases: Phantoms to train and validate with.
        tests: Held-out phantoms.
        seed: Seed of the phantoms.
        device: Name of the device; by default the best there is.
        progress: Told after every case of a step.
        callbacks: As for ``train``; ``log`` gets the name of every step before it begins, where the picture of the
            example is, and nothing of the training.

    Returns:
        Content of ``scores.json``: ``{"mean_dice", "organs": {name: {"dice", …}}, …}``.

    Raises:
        VolsegError: If a step fails.
    """
    dataset, prepared, model = out / "dataset", out / "prepared", out / "model"
    predictions, scores = out / "predictions", out / "evaluation"
    log = callbacks.log
    log("1/7 a real hippocampus, by a model that comes with volseg")
    picture, dice = segment_example("hippocampus", out, device=device, progress=progress)
    log(f"Look at {picture}: outlines are the reference, mean Dice {dice:.3f}")
    log("2/7 phantoms")
    write_phantom(dataset, cases=cases, tests=tests, seed=seed, progress=progress)
    log("3/7 preprocess")
    preprocess(dataset, prepared, settings, progress=progress)
    log("4/7 train")
    train(prepared, model, settings, device=device, callbacks=replace(callbacks, log=NO_CALLBACKS.log))
    log("5/7 predict")
    predict(model, [dataset / "imagesTs"], predictions, device=device, progress=progress)
    log("6/7 evaluate")
    summary = evaluate(predictions, dataset / "labelsTs", scores, progress=progress)
    log("7/7 report")
    curves = fold_folder(model, 0) / "curves.png"
    report(
        scores,
        out / "report.html",
        title="volseg demo: phantoms",
        curves=curves if curves.is_file() else None,
        show_names=True,
    )
    content = _scores(summary)
    write_json(out / "scores.json", content)
    return content


def segment_example(
    name: str, out: Path, *, device: str | None = None, progress: Progress = silent
) -> tuple[Path, float]:
    """Segment the example of a model that comes with volseg, and draw it beside its reference.

    Args:
        name: Name of the model.
        out: Folder for the folder of the mask and the picture, which have that name.
        device: Name of the device; by default the best there is.
        progress: As for ``predict``.

    Returns:
        The picture, and the mean Dice of the organs.

    Raises:
        VolsegError: If the model is not known, or something cannot be written.
    """
    model = zoo_model(name)
    image, reference = model.example
    predict(model.folder, image, out / name, device=device, progress=progress)
    labels = model.plan.label_table
    expected, found = read_label_map(reference), read_label_map(out / name / image.name)
    drawn = case_overlay(expected, found, labels, labels.values, read_image(image))
    write_bytes(out / f"{name}.png", drawn.png)
    return out / f"{name}.png", fmean(organ.dice for organ in overlaps(expected.array, found.array, labels))


def _scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers of the summary that answer whether the demo worked."""
    overall = summary["overall"]
    return {
        "mean_dice": overall["dice"]["mean"],
        "interval_95": overall["dice"]["interval_95"],
        "cases": overall["n_cases"],
        "organs": {
            name: {"dice": entry["dice"]["mean"], "iou": entry["iou"]["mean"], "n": entry["n"]}
            for name, entry in summary["organs"].items()
        },
        "conventions": summary["conventions"],
    }
