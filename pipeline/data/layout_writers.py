"""A dataset in another layout: which labels it can hold, where its files go, and what describes it.

:func:`converted_dataset` says how the dataset will be read back by :mod:`pipeline.data.layouts`;
:func:`write_description` writes the files that make the folder a dataset once the volumes are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.files import write_json
from pipeline.core.labels import LabelTable
from pipeline.core.tables import write_csv
from pipeline.data.dataset import CaseFiles, Dataset, own_split
from pipeline.data.label_tables import label_table
from pipeline.data.layout_names import WRITTEN_LAYOUTS
from pipeline.data.layouts import bare_name
from pipeline.data.organ_masks import safe_file_name
from pipeline.data.volume_file import join_source, split_source

_ENDING = ".nii.gz"
_UNSAFE_IN_PATHS = re.compile(r"[^\w.-]")
_ORGANS_IMAGE = {"CT": "ct", "MRI": "mri"}  # file names that say what the channel is


@dataclass(frozen=True)
class TranslatedLabels:
    """Labels of a converted dataset.

    Args:
        labels: The table as it will be read back; class ``n`` is the source's class ``n``.
        renumbered: Source value → value, of those that change; the ignore label included.
        notes: What changes besides, one sentence each.
    """

    labels: LabelTable
    renumbered: Mapping[int, int]
    notes: tuple[str, ...]


def translate_labels(labels: LabelTable, layout: str) -> TranslatedLabels:
    """Bring a label table into the form that a layout can hold.

    nnU-Net wants the values 1, 2, … without gaps and the ignore label behind them; of regions it has no names of
    single values. The layout ``organs`` wants names that can be file names, and has no place for ignored voxels.

    Raises:
        DataError: If the layout cannot hold the table.
    """
    if layout == "organs":
        return _as_files(labels)
    if layout != "nnunet":
        return TranslatedLabels(labels, {}, ())
    # A name that is a number gets a word in front: {"10": 1} could be read as value 10 with the name 1.
    spelled = {value: f"label_{name}" if name.isdigit() else name for value, name in labels.names.items()}
    table, renumbered = _consecutive(_renamed(labels, spelled))
    content = label_content(table, layout)
    read_back = label_table(content["labels"], "dataset.json", content)
    notes = []
    if renumbered:
        shown = listed(f"{old} -> {new}" for old, new in renumbered.items())
        notes.append(f"labels renumbered, because nnU-Net wants values without gaps: {shown} (all in conversion.json)")
    renamed = [name for name, new in zip(labels.organs, read_back.organs, strict=True) if name != new]
    if renamed:
        reason = "nnU-Net names regions only" if labels.regions else "nnU-Net's names are no numbers"
        notes.append(f"names of label values lost, because {reason}: {', '.join(renamed)}")
    if any(len(needed) > 1 for needed, _ in labels.painting()):
        notes.append("regions cross: where they do, nnU-Net predicts the later one alone")
    return TranslatedLabels(read_back, renumbered, tuple(notes))


def label_content(labels: LabelTable, layout: str) -> dict[str, Any]:
    """What a layout's description says about labels: ``labels`` and the keys that stand beside it.

    It is part of ``dataset.json`` for ``nnunet`` and ``decathlon``, and the content of ``labels.json`` for the others.
    """
    if layout == "nnunet":
        return _nnunet_content(labels)
    own = labels.to_json()
    if layout != "decathlon":
        return own
    names = {"0": "background", **own["names"]}
    if labels.ignore_label is not None:
        names[str(labels.ignore_label)] = "ignore"
    return {"labels": names, **{key: own[key] for key in ("regions", "regions_class_order") if key in own}}


def _nnunet_content(labels: LabelTable) -> dict[str, Any]:
    """nnU-Net's form. A region of one value is a number unless it must be a list to show that there are regions."""
    entries: dict[str, Any] = {"background": 0, **{name: value for value, name in labels.names.items()}}
    order: dict[str, Any] = {}
    if labels.regions:
        # nnU-Net takes a table for one of regions as soon as one entry is a list.
        several = any(len(held) > 1 for held in labels.regions.values())
        regions = {
            name: held[0] if several and labels.names[held[0]] == name else list(held)
            for name, held in labels.regions.items()
        }
        entries, order = {"background": 0, **regions}, {"regions_class_order": list(labels.painted)}
    ignored = {} if labels.ignore_label is None else {"ignore": labels.ignore_label}
    return {"labels": {**entries, **ignored}, **order}


def _consecutive(labels: LabelTable) -> tuple[LabelTable, dict[int, int]]:
    """The table with values 1, 2, …, the ignore label last, and the values that change."""
    ignored = () if labels.ignore_label is None else (labels.ignore_label,)
    new = {value: n for n, value in enumerate((*labels.values, *ignored), start=1)}
    table = labels.renumbered(new, new[ignored[0]] if ignored else None)
    return table, {value: n for value, n in new.items() if value != n}


def _as_files(labels: LabelTable) -> TranslatedLabels:
    if labels.ignore_label is not None:
        rule, got = "a dataset without an ignore label", f"label {labels.ignore_label}"
        advice = "One mask per organ cannot say which voxels were not annotated: convert to another layout"
        raise DataError(sentence("organs layout", rule, got, advice))
    names = {value: safe_file_name(name) or f"label_{value}" for value, name in labels.names.items()}
    changed = [f"{name} -> {names[value]}" for value, name in labels.names.items() if names[value] != name]
    notes = (f"organs renamed, because files are named after them: {', '.join(changed)}",) if changed else ()
    return TranslatedLabels(_renamed(labels, names), {}, notes)


def _renamed(labels: LabelTable, names: Mapping[int, str]) -> LabelTable:
    try:
        return replace(labels, names=names)
    except ValueError as error:
        raise DataError(str(error)) from None


@dataclass(frozen=True)
class ConvertedDataset:
    """A dataset in another layout, before it is written.

    Args:
        dataset: As it will be read back. Its cases and tests are those of the source, in the same order.
        renumbered: Source label value → value, of those that change.
        notes: What changes or is lost, one sentence each.
    """

    dataset: Dataset
    renumbered: Mapping[int, int]
    notes: tuple[str, ...]


def converted_dataset(source: Dataset, out: Path, layout: str) -> ConvertedDataset:
    """Lay a dataset out in another way.

    Case ids are kept where they can be file names and are unique; of several channels in one file, ``images`` names the
    parts.

    Raises:
        DataError: If there is no such layout, or it cannot hold the dataset.
    """
    if layout not in WRITTEN_LAYOUTS:
        raise DataError(sentence("--to", f"one of {', '.join(WRITTEN_LAYOUTS)}", repr(layout), "Choose one of them"))
    translated = translate_labels(source.labels, layout)
    old = [files.id for files in (*source.cases, *source.tests)]
    new = _file_names(old, layout)
    values, count = translated.labels.names, len(source.cases)
    cases, tests = (
        tuple(
            _laid_out(files, _places(out, name, part, source, layout), values, layout, held_out=part == "Ts")
            for files, name in zip(listed, names, strict=True)
        )
        for part, listed, names in (("Tr", source.cases, new[:count]), ("Ts", source.tests, new[count:]))
    )
    dataset = replace(source, root=out, layout=layout, labels=translated.labels, cases=cases, tests=tests, notes=())
    notes = (*translated.notes, *_renamed_note(old, new), *_losses(source, layout))
    return ConvertedDataset(dataset, translated.renumbered, notes)


def _laid_out(
    files: CaseFiles, places: CaseFiles, names: Mapping[int, str], layout: str, *, held_out: bool
) -> CaseFiles:
    """The case with new files: without a reference if it has none; in ``organs`` with a mask for every value."""
    split, fold = (files.split, files.fold) if layout == "datalist" else (None, None)
    if layout != "organs":
        label = places.label if files.labelled else None
        return CaseFiles(places.id, places.images, label, group=files.group, split=split, fold=fold)
    folder = places.images[0].parent / "segmentations"
    wanted = names if files.labelled and not held_out else {}
    organs = tuple((value, folder / f"{organ}{_ENDING}") for value, organ in wanted.items())
    return CaseFiles(places.id, places.images, organs=organs, group=files.group)


def _places(out: Path, name: str, part: str, source: Dataset, layout: str) -> CaseFiles:
    """Where a layout has the image and the label map of a case; ``part`` is ``Tr`` for training, ``Ts`` for testing."""
    count = len(source.channels)
    if layout == "organs":
        names = [f"image_{n:04d}" for n in range(count)]
        if count == 1:
            names = [_ORGANS_IMAGE.get(source.channels[0], "image")]
        return CaseFiles(name, tuple(out / name / f"{stem}{_ENDING}" for stem in names))
    numbered = layout == "nnunet" or (count > 1 and layout != "decathlon")
    endings = [f"_{n:04d}" for n in range(count)] if numbered else [""]
    plain = part == "Tr" and layout in ("datalist", "pairs")  # images/ and labels/, without Tr
    folders = [f"{folder}{'' if plain else part}" for folder in ("images", "labels")]
    images = tuple(out / folders[0] / f"{name}{ending}{_ENDING}" for ending in endings)
    if layout == "decathlon" and count > 1:
        images = tuple(join_source(images[0], "channel", n + 1, count) for n in range(count))
    return CaseFiles(name, images, out / folders[1] / f"{name}{_ENDING}")


def _file_names(ids: Sequence[str], layout: str) -> list[str]:
    """Ids that can be file names, each once. Those that need no change keep their name whatever comes before them."""

    def clean(case: str) -> str:
        name = _UNSAFE_IN_PATHS.sub("_", case).lstrip(".") or "case"
        return f"{name}_case" if layout == "pairs" and bare_name(Path(f"{name}{_ENDING}")) != name else name

    # Ids that are fit to be names are set aside first, so that no other case takes one of them.
    kept = {case for case in ids if clean(case) == case}
    used: set[str] = set()
    names = []
    for case in ids:
        name, number = clean(case), 1
        while name in used or (name != case and name in kept):
            number += 1
            name = f"{clean(case)}_{number}"
        used.add(name)
        names.append(name)
    return names


def _renamed_note(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    changed = [f"{before} -> {after}" for before, after in zip(old, new, strict=True) if before != after]
    if not changed:
        return ()
    reason = f"because files are named after them: {listed(changed)} (all in conversion.json)"
    return (f"{len(changed)} cases renamed, {reason}",)


def _losses(source: Dataset, layout: str) -> tuple[str, ...]:
    notes = []
    if layout not in ("datalist", "nnunet") and own_split(source.cases):
        notes.append(f"the dataset's own split is lost, because {layout} has no place for it; datalist and nnunet have")
    labelled = sum(files.labelled for files in source.tests)
    if layout == "organs" and labelled:
        notes.append(
            f"references of {labelled} held-out cases are left out, because organs would take these cases for training"
        )
    return tuple(notes)


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
    """
    root, layout = dataset.root, dataset.layout
    if layout == "organs":  # a case is a folder with this folder in it, and is held out while that is empty
        for files in dataset.tests:
            (files.images[0].parent / "segmentations").mkdir(exist_ok=True)
    everyone = (*dataset.cases, *dataset.tests)
    grouped = [(files.id, files.group) for files in everyone if files.group is not None]
    if layout != "datalist" and grouped:
        write_csv(root / "groups.csv", [("case", "group"), *sorted(grouped)])
    if layout == "nnunet":
        write_json(root / "dataset.json", _nnunet(dataset, description))
    elif layout == "decathlon":
        write_json(root / "dataset.json", _decathlon(dataset, description))
    else:
        write_json(root / "labels.json", {**label_content(dataset.labels, layout), "channels": list(dataset.channels)})
    if layout == "datalist":
        write_csv(root / "datalist.csv", _rows(dataset))


def _nnunet(dataset: Dataset, description: str) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "description": description,
        "channel_names": _numbered(dataset.channels),
        **label_content(dataset.labels, "nnunet"),
        "numTraining": len(dataset.cases),
        "numTest": len(dataset.tests),
        "file_ending": _ENDING,
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
    folded = any(files.fold is not None for files in dataset.cases)
    rows = [("case", *images, "label", "group", "split", *(["fold"] if folded else []))]
    for part, held_out in ((dataset.cases, ""), (dataset.tests, "test")):
        for files in part:
            label = "" if files.label is None else _relative(files.label, dataset)
            paths = (_relative(path, dataset) for path in files.images)
            fold = ["" if files.fold is None else str(files.fold)] if folded else []
            rows.append((files.id, *paths, label, files.group or "", files.split or held_out, *fold))
    return rows


def _relative(path: Path, dataset: Dataset) -> str:
    """As people write it, on every system: ``./imagesTr/case.nii.gz``."""
    return f"./{split_source(path)[0].relative_to(dataset.root).as_posix()}"


def _numbered(names: Iterable[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}
