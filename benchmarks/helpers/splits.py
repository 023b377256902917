"""The real sets and which of their cases test, validate and train; a copy of a set without its test cases.

No test case may decide anything, not even an intensity statistic of the fingerprint. So :func:`hold_out` moves the test
cases out of a copy of the dataset before anything is prepared, into ``imagesTs`` and ``labelsTs``. A few of the other
cases validate (choose the best weights); :func:`write_folds` says which in ``splits.json``. Both tools of a comparison
get the same split. All draws are by a hash of a seed and the case's name, the same on every machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.sample.folds import make_folds

SEED = 12345  # nnU-Net's, and the default of sample.split_seed
HOLD_OUT = 5  # one case of so many, where every n-th tests
BRIGHT = 128  # mean grey level from which an image is of stained tissue on a bright background
PAIRED = ("images", "labels")  # folders of a set that no dataset.json lists


@dataclass(frozen=True)
class Split:
    """Ids of the cases that train, choose the weights, and test; each sorted, none in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class RealSet:
    """A set of real data.

    Args:
        folder: Its name in the folder of all data.
        parts: The test cases of every fold.
        validation: Number of the other cases that choose the weights.
        folds: Folds that are tested if nothing else is said.
        scores: How masks are scored: ``organs``, ``membranes`` or ``images``.
    """

    folder: str
    parts: Callable[[Path], tuple[tuple[str, ...], ...]]
    validation: int
    folds: tuple[int, ...]
    scores: str


def case_files(dataset: Path) -> dict[str, tuple[Path, Path]]:
    """Case id → image and label map, sorted by id: of a Decathlon folder, or of ``images`` and ``labels``."""
    described = dataset / "dataset.json"
    if described.is_file():
        entries = json.loads(described.read_text())["training"]
        pairs = [(dataset / entry["image"], dataset / entry["label"]) for entry in entries]
    else:
        images, labels = (dataset / name for name in PAIRED)
        pairs = [(image, labels / image.name) for image in images.iterdir() if image.suffix == ".png"]
    return {case_id(image): (image, label) for image, label in sorted(pairs)}


def case_id(file: Path) -> str:
    """The case that an image, label map or mask is of."""
    return file.name.removesuffix(".gz").rpartition(".")[0]


def drawn(cases: Iterable[str]) -> list[str]:
    """Cases in an order that is drawn."""
    return sorted(cases, key=lambda case: (sha256(f"{SEED} {case}".encode()).hexdigest(), case))


def in_folds(folds: int) -> Callable[[Path], tuple[tuple[str, ...], ...]]:
    """The folds that ``volseg preprocess`` draws of all cases: every case tests once."""
    return lambda dataset: tuple(
        fold.validation for fold in make_folds(dict.fromkeys(case_files(dataset)), folds, SEED)
    )


def every_fifth(dataset: Path) -> tuple[tuple[str, ...], ...]:
    """One fold: every fifth case tests."""
    return (tuple(case_files(dataset))[::HOLD_OUT],)


def in_blocks(folds: int) -> Callable[[Path], tuple[tuple[str, ...], ...]]:
    """Neighbours test together, so that no slice is tested beside one that shows the same cells and was trained on."""

    def blocks(dataset: Path) -> tuple[tuple[str, ...], ...]:
        parts = np.array_split(np.array(list(case_files(dataset))), folds)
        return tuple(tuple(map(str, part)) for part in parts)

    return blocks


def in_strata(folds: int) -> Callable[[Path], tuple[tuple[str, ...], ...]]:
    """Every fold has its share of each size of image and of each staining, as far as they go up in it."""

    def dealt(dataset: Path) -> tuple[tuple[str, ...], ...]:
        strata: dict[tuple[int, int, bool], list[str]] = {}
        for case, (image, _) in case_files(dataset).items():
            with Image.open(image) as opened:
                strata.setdefault((*opened.size, float(np.mean(np.asarray(opened))) >= BRIGHT), []).append(case)
        # Dealt on from one stratum to the next, so that the small ones do not all begin with the first fold.
        order = [case for key in sorted(strata) for case in drawn(strata[key])]
        return tuple(tuple(sorted(order[fold::folds])) for fold in range(folds))

    return dealt


SETS = {
    "hippocampus": RealSet("Task04_Hippocampus", in_folds(5), 14, (0,), "organs"),
    "hippocampus_fifth": RealSet("Task04_Hippocampus", every_fifth, 14, (0,), "organs"),
    "mouse_brain": RealSet("mouse_brain", in_folds(3), 1, (0, 1, 2), "organs"),
    "em_membrane": RealSet("em_membrane", in_blocks(6), 2, (0, 1, 2, 3, 4, 5), "membranes"),
    "nuclei": RealSet("nuclei", in_strata(3), 20, (0,), "images"),
}


def split_of(name: str, dataset: Path, fold: int) -> Split:
    """The split of a set in which one of its folds tests."""
    chosen = SETS[name]
    test = chosen.parts(dataset)[fold]
    others = [case for case in case_files(dataset) if case not in test]
    validation = drawn(others)[: chosen.validation]
    train = tuple(case for case in others if case not in validation)
    return Split(train, tuple(sorted(validation)), tuple(sorted(test)))


def hold_out(dataset: Path, test: Iterable[str], target: Path) -> None:
    """A copy of a dataset whose test cases have moved to ``imagesTs`` and ``labelsTs``."""
    shutil.rmtree(target, ignore_errors=True)
    held, listed = set(test), (dataset / "dataset.json").is_file()
    entries: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    for case, files in case_files(dataset).items():
        tests = case in held
        folders = ("imagesTs", "labelsTs") if tests else ("imagesTr", "labelsTr") if listed else PAIRED
        moved = [f"{folder}/{file.name}" for folder, file in zip(folders, files, strict=True)]
        for place, file in zip(moved, files, strict=True):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / place)
        entries[tests].append(dict(zip(("image", "label"), moved, strict=True)))
    if listed:
        content: dict[str, Any] = json.loads((dataset / "dataset.json").read_text())
        content |= {"numTraining": len(entries[False]), "numTest": len(entries[True])}
        content |= {"training": entries[False], "test": [entry["image"] for entry in entries[True]]}
        (target / "dataset.json").write_text(json.dumps(content))
    else:
        shutil.copy(dataset / "labels.json", target)


def write_folds(split: Split, prepared: Path) -> None:
    """Make the split the only fold of a prepared dataset, in place of those that ``volseg preprocess`` drew."""
    fold = {"train": list(split.train), "validation": list(split.validation)}
    (prepared / "splits.json").write_text(json.dumps([fold]))


def label_names(dataset: Path) -> dict[int, str]:
    """Label value → name, without the background."""
    described = dataset / "dataset.json"
    entries = json.loads((described if described.is_file() else dataset / "labels.json").read_text())["labels"]
    # Decathlon sets have value: name, others name: value.
    pairs = [(key, value) if str(key).isdigit() else (value, key) for key, value in entries.items()]
    return {int(value): str(name) for value, name in pairs if int(value)}
