"""What a dataset says about itself beside the list of files: label names, channels, groups; and guesses without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.documents import conform, read_json, short
from pipeline.core.errors import DataError, sentence
from pipeline.core.errors import listed as listed_names
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence, composed, is_named
from pipeline.core.tables import read_csv
from pipeline.data.dataset import CaseFiles, Dataset, channels_in_order
from pipeline.data.dicom_cases import (
    scanned_segments,
    segment_aliases,
    series_modality,
    with_dicom_labels,
    with_modalities,
)
from pipeline.data.folder_files import folder_holds, or_unread
from pipeline.data.label_tables import label_table
from pipeline.data.volume_file import LIST_SUFFIXES
from pipeline.data.volumes import is_dicom_label, read_image, read_label_map

_CT_AIR_HU = -500.0  # MR has no such values, CT always has: air is -1000 HU
_CHANNEL_KEYS = ("channel_names", "modality", "channels")  # the first counts
_DATASET = "a folder, or a JSON or CSV file"


@dataclass(frozen=True)
class Description:
    """A dataset folder and what its JSON or CSV file says.

    Args:
        root: Folder that file names are relative to.
        file: The JSON or CSV file, or None.
        content: Its content; rows of a CSV and entries of a bare JSON list are under ``cases``.
        added: Names of the files beside it that were read as well.
    """

    root: Path
    file: Path | None
    content: Mapping[str, Any]
    added: tuple[str, ...] = ()


def read_description(path: Path) -> Description:
    """Read ``dataset.json``, ``datalist.json`` or ``datalist.csv`` of a folder, or the file itself.

    Label names in a ``labels.json`` (which may list ``channels`` beside ``names``) and groups in a ``groups.csv`` of
    the folder are added.

    Raises:
        DataError: If the path does not exist or is a file of another kind.
        VolsegError: If a JSON file cannot be read.
    """
    if gone := absence(path):
        raise DataError(sentence("dataset", _DATASET, *gone, file=path))
    root, file = (path, None) if path.is_dir() else (path.parent, path)
    if file is None:
        names = ("dataset.json", "datalist.json", "datalist.csv")
        file = next((root / name for name in names if is_named(root / name)), None)
    if file is not None and file.suffix.lower() not in LIST_SUFFIXES:
        advice = "Give the dataset's folder or its list of cases"
        raise DataError(sentence("dataset", _DATASET, repr(file.name), advice, file=path))
    content = read_content(file) if file else {}
    # A labels.json or groups.csv beside the description adds to it and never overrules it.
    added = []
    if content.get("labels") is None and is_named(root / "labels.json"):
        added.append("labels.json")
        labels = read_json(root / "labels.json")
        content = {**content, "labels": labels}
        if isinstance(labels, Mapping) and isinstance(labels.get("names"), Mapping) and not channel_names(content):
            content["channels"] = _listed_channels(labels.get("channels"), root / "labels.json")
    if content.get("groups") is None and is_named(root / "groups.csv"):
        added.append("groups.csv")
        rows = read_csv(root / "groups.csv", required=("case", "group"))
        content = {**content, "groups": {row["case"]: row["group"] for row in rows if row["group"]}}
    return Description(root, file, content, tuple(added))


def read_content(file: Path) -> dict[str, Any]:
    """A JSON or CSV file as a description: every key of the right type, lists of cases as objects.

    Raises:
        VolsegError: If it cannot be read, or a key is of another type.
    """
    # Here: pydantic is a tenth of the start of commands that read no description.
    from pipeline.data.description_model import Content

    found = {"cases": read_csv(file)} if file.suffix.lower() == ".csv" else read_json(file)
    content = {"cases": found} if isinstance(found, list) else found
    if not isinstance(content, dict):
        got, advice = type(found).__name__, "See the dataset layouts in the documentation"
        raise DataError(sentence("description", "a JSON object or list", got, advice, file=file))
    checked: dict[str, Any] = conform(content, Content, file)
    return checked


def _listed_channels(found: Any, file: Path) -> tuple[str, ...] | None:
    try:
        return channels_in_order(found)
    except ValueError as error:
        raise DataError(f"{file}: channels: {error}") from None


def nnunet_content(source: Description) -> Mapping[str, Any]:
    """The description with nnU-Net's own keys checked.

    Raises:
        VolsegError: If one is of another type.
    """
    from pipeline.data.description_model import NnunetContent  # as in read_content

    checked: Mapping[str, Any] = conform(source.content, NnunetContent, source.file or source.root)
    return checked


def described_labels(source: Description) -> LabelTable | None:
    """The label table that a description has under ``labels``; None if it has none.

    Raises:
        DataError: If it is no label table.
    """
    found = source.content.get("labels")
    empty = found is None or found == {}
    file = source.root / "labels.json" if "labels.json" in source.added else source.file or source.root
    return None if empty else label_table(found, file, source.content)


def channel_names(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Channel names under ``channel_names``, ``modality`` or ``channels``, in order; None if there are none."""
    return next((content[key] for key in _CHANNEL_KEYS if content.get(key)), None)


def build_dataset(
    layout: str,
    source: Description,
    cases: Iterable[CaseFiles],
    tests: Iterable[CaseFiles] = (),
    *,
    channels: tuple[str, ...] | None = None,
    labels: LabelTable | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Put a dataset together; cases without reference join the tests, missing names are found in the files.

    Args:
        layout: Name of the layout.
        source: Its description.
        cases: Cases for training.
        tests: Held-out cases.
        channels: Channel names, if the layout knows them better than the description.
        labels: Label table, likewise. If no one knows, all label maps are read and their values named ``label_1``, ….
        notes: What the layout has to say; what the description says in vain is added.

    Raises:
        DataError: If there is no labelled case, or no label in any of them, or lists of cases are not read.
    """
    groups = {composed(str(case)): group for case, group in (source.content.get("groups") or {}).items()}

    def grouped(case: CaseFiles) -> CaseFiles:
        return replace(case, group=str(groups[case.id])) if case.group is None and case.id in groups else case

    listed, tests = [grouped(case) for case in cases], list(tests)
    kept = sorted((case for case in listed if case.labelled), key=lambda case: case.id)
    held_out = [*(case for case in listed if not case.labelled), *map(grouped, tests)]
    if not kept:
        got = f"{len(held_out)} cases without a label map" if held_out else folder_holds(source.root)
        advice = "Add label maps, or correct the file names"
        if not isinstance(source.content.get("cases") or source.content.get("training"), list):  # which name the files
            got, advice = or_unread(source.root, got, advice)
        where = source.file or source.root
        raise DataError(sentence(f"{layout} dataset", "at least one labelled case", got, advice, file=where))
    channels = channels or channel_names(source.content) or _guessed_channels(kept)
    kept, held_out = with_modalities(kept, channels), with_modalities(held_out, channels)
    file = source.file or source.root
    aliases, notes = segment_aliases(source.content, file), list(notes)
    if labels is None and (labels := described_labels(source)) is None:
        labels, told = _scanned_labels(kept, aliases, source.root)
        notes += told
    kept, held_out = (with_dicom_labels(part, labels, aliases, file) for part in (kept, held_out))
    name = str(source.content.get("name") or source.root.resolve().name)
    tests_sorted = tuple(sorted(held_out, key=lambda case: case.id))
    dataset = Dataset(name, source.root, layout, channels, labels, tuple(kept), tests_sorted)
    return replace(dataset, notes=(*notes, *_said_in_vain(dataset, source, len(listed), len(tests))))


def _said_in_vain(dataset: Dataset, source: Description, listed: int, tests: int) -> list[str]:
    """What a description says that has no effect, or does not fit what is there, one sentence each."""
    if not source.content:
        return []
    from pipeline.data.description_model import unread_keys, unread_lists  # as in read_content

    content, file = source.content, source.file or source.root
    lists = unread_lists(dataset.layout, content)
    if lists:
        advice = "Keep one kind of lists, or name the layout with --layout"
        raise DataError(sentence(lists[0], f"only lists that {dataset.layout} has", "another", advice, file=file))
    notes = []
    for name, key in (("labels.json", "labels"), ("groups.csv", "groups")):
        # What the description says itself is not overruled by a file beside it.
        if is_named(source.root / name) and source.file and name not in source.added:
            notes.append(f"{source.root / name}: not read, because {source.file.name} has {key}.")
    training = {listed, len(dataset.cases), sum(files.split != "validation" for files in dataset.cases)}
    for key, counts in (("numTraining", training), ("numTest", {tests, len(dataset.tests)})):
        if content.get(key) is not None and str(content[key]) not in map(str, counts):
            advice = "Correct it, or look for the cases that are missing"
            rule = f"the number of cases, {max(counts)}"
            notes.append(sentence(key, rule, short(content[key]), advice, file=file))
    unread = unread_keys(dataset.layout, content)
    if unread:
        advice = "They have no effect; docs/dataset.md lists those that do"
        notes.append(sentence("keys", f"those of layout {dataset.layout}", listed_names(unread), advice, file=file))
    named = {content[key] for key in _CHANNEL_KEYS if content.get(key)}
    if len(named) > 1:
        keys = [key for key in _CHANNEL_KEYS if content.get(key)]
        notes.append(sentence(keys[1], f"the names of {keys[0]}", "others", f"Those of {keys[0]} count", file=file))
    ids = {files.id for files in (*dataset.cases, *dataset.tests)}
    strangers = [case for case in content.get("groups") or {} if composed(case) not in ids]
    if strangers:
        advice = "Correct them: a case without its group may be parted from the patient's others"
        notes.append(sentence("groups", "ids of cases", listed_names(strangers), advice, file=file))
    return notes


def _scanned_labels(
    cases: Sequence[CaseFiles], aliases: Mapping[str, str | None], root: Path
) -> tuple[LabelTable, list[str]]:
    """Names for the values that are in the label maps, or those of segments, and notes on them.

    Files that cannot be read are left to ``volseg check``.
    """
    dicom = [case for case in cases if case.label is not None and is_dicom_label(case.label)]
    if len(dicom) == len(cases):
        return scanned_segments(cases, aliases, root)
    if dicom:
        rule, got = "names where some label files are DICOM and others are not", "none"
        raise DataError(sentence("labels.json", rule, got, 'Write {"1": "liver", "2": "spleen"}', file=root))
    values: set[int] = set()
    problems: list[str] = []
    for case in cases:
        try:
            values.update(read_label_map(case.label_sources[0], case=case.id).values())
        except DataError as error:
            problems.append(str(error))
    if not values - {0}:
        got, advice = "none", 'Check the label maps, or write labels.json: {"1": "liver"}'
        if problems:
            got = f"none ({len(problems)} of {len(cases)} label maps cannot be used)"
            advice = f"The first says: {problems[0]}"
        raise DataError(sentence("label maps", "a value above 0 in at least one", got, advice, file=root))
    return LabelTable({value: f"label_{value}" for value in sorted(values - {0})}), []


def _guessed_channels(cases: Sequence[CaseFiles]) -> tuple[str, ...]:
    """The modality of the first DICOM image; CT if an image has the values of air, otherwise neutral names."""
    modality = series_modality(cases[0].images)
    if modality:
        return (modality,)
    count, lowest = len(cases[0].images), [0.0] * len(cases[0].images)
    for case in cases:
        try:
            image = read_image(case.images, case=case.id)
        except DataError:
            continue
        count, lowest = image.channels, [float(channel.min()) for channel in image.array]
        break
    names = ["image"] if count == 1 else [f"channel_{n + 1}" for n in range(count)]
    return tuple("CT" if low <= _CT_AIR_HU else name for name, low in zip(names, lowest, strict=True))
