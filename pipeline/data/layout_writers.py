"""The files that describe a dataset folder, one writer per layout; what they say, ``layout_readers`` reads back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.core.files import write_json, write_text
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.target_labels import label_content
from pipeline.data.volume_file import split_source

__all__ = ["description_file", "write_description"]

_DESCRIPTIONS = {"nnunet": "dataset.json", "decathlon": "dataset.json", "datalist": "datalist.csv"}


def description_file(dataset: Dataset) -> Path:
    """The file that makes the folder a dataset and is written last; ``labels.json`` where there is no such list."""
    return dataset.root / _DESCRIPTIONS.get(dataset.layout, "labels.json")


def write_description(dataset: Dataset, description: str) -> None:
    """Write what describes a dataset whose volumes are there already.

    Groups are in ``groups.csv``, apart from those of a datalist, which has a column for them.

    Args:
        dataset: The dataset, in one of the layouts that can be written; its root is the folder.
        description: Where it comes from, for people.

    Raises:
        VolsegError: If a file cannot be written.
    """
    root, layout = dataset.root, dataset.layout
    if layout == "organs":  # a case is a folder with this folder in it, and is held out while that is empty
        for files in dataset.tests:
            (files.images[0].parent / "segmentations").mkdir(exist_ok=True)
    everyone = (*dataset.cases, *dataset.tests)
    grouped = [(files.id, files.group) for files in everyone if files.group is not None]
    if layout != "datalist" and grouped:
        write_text(root / "groups.csv", _table([("case", "group"), *sorted(grouped)]))
    if layout == "nnunet":
        write_json(root / "dataset.json", _nnunet(dataset, description))
    elif layout == "decathlon":
        write_json(root / "dataset.json", _decathlon(dataset, description))
    else:
        write_json(root / "labels.json", {**label_content(dataset.labels, layout), "channels": list(dataset.channels)})
    if layout == "datalist":
        write_text(root / "datalist.csv", _table(_rows(dataset)))


def _nnunet(dataset: Dataset, description: str) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "description": description,
        "channel_names": _numbered(dataset.channels),
        **label_content(dataset.labels, "nnunet"),
        "numTraining": len(dataset.cases),
        "numTest": len(dataset.tests),
        "file_ending": ".nii.gz",
    }


def _decathlon(dataset: Dataset, description: str) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "description": description,
        "tensorImageSize": "3D" if len(dataset.channels) == 1 else "4D",
        "modality": _numbered(dataset.channels),
        **label_content(dataset.labels, "decathlon"),
        "numTraining": len(dataset.cases),
        "numTest": len(dataset.tests),
        "training": [
            {"image": _relative(files.files[0], dataset), "label": _relative(files.files[-1], dataset)}
            for files in dataset.cases
        ],
        "test": [_relative(files.files[0], dataset) for files in dataset.tests],
    }


def _rows(dataset: Dataset) -> list[tuple[str, ...]]:
    count = len(dataset.channels)
    images = ["image"] if count == 1 else [f"image_{n + 1}" for n in range(count)]
    rows = [("case", *images, "label", "group", "split")]
    for part, held_out in ((dataset.cases, ""), (dataset.tests, "test")):
        rows += [_row(files, dataset, files.split or held_out) for files in part]
    return rows


def _row(files: CaseFiles, dataset: Dataset, split: str) -> tuple[str, ...]:
    label = "" if files.label is None else _relative(files.label, dataset)
    return (files.id, *(_relative(path, dataset) for path in files.images), label, files.group or "", split)


def _relative(path: Path, dataset: Dataset) -> str:
    """As people write it, on every system: ``./imagesTr/case.nii.gz``."""
    return f"./{split_source(path)[0].relative_to(dataset.root).as_posix()}"


def _numbered(names: Iterable[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _table(rows: Iterable[tuple[str | None, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
