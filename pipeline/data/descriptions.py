"""What a dataset says about itself beside the list of files: label names, channels, groups; and guesses without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.documents import read_json
from pipeline.core.errors import DataError, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence, composed, is_named
from pipeline.core.tables import read_csv
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.folder_files import folder_holds, or_unread
from pipeline.data.label_tables import label_table
from pipeline.data.volumes import read_image, read_label_map

_CT_AIR_HU = -500.0  # MR has no such values, CT always has: air is -1000 HU
_DATASET = "a folder, or a JSON or CSV file"


@dataclass(frozen=True)
class Description:
    """A dataset folder and what its JSON or CSV file says.

    Args:
        root: Folder that file names are relative to.
        file: The JSON or CSV file, or None.
        content: Its content; rows of a CSV and entries of a bare JSON list are under ``cases``.
    """

    root: Path
    file: Path | None
    content: Mapping[str, Any]


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
    content: dict[str, Any] = {}
    if file is not None:
        if file.suffix.lower() not in (".json", ".csv"):
            advice = "Give the dataset's folder or its list of cases"
            raise DataError(sentence("dataset", _DATASET, repr(file.name), advice, file=path))
        found = {"cases": read_csv(file)} if file.suffix.lower() == ".csv" else read_json(file)
        content = {"cases": found} if isinstance(found, list) else found
        if not isinstance(content, dict):
            got, advice = type(found).__name__, "See the dataset layouts in the documentation"
            raise DataError(sentence("description", "a JSON object or list", got, advice, file=file))
    # A labels.json or groups.csv beside the description adds to it and never overrules it.
    if "labels" not in content and is_named(root / "labels.json"):
        labels = read_json(root / "labels.json")
        content = {**content, "labels": labels}
        if isinstance(labels, Mapping) and isinstance(labels.get("names"), Mapping) and not channel_names(content):
            content["channels"] = labels.get("channels")
    if "groups" not in content and is_named(root / "groups.csv"):
        rows = read_csv(root / "groups.csv", required=("case", "group"))
        content = {**content, "groups": {row["case"]: row["group"] for row in rows if row["group"]}}
    return Description(root, file, content)


def described_labels(source: Description) -> LabelTable | None:
    """The label table that a description has under ``labels``; None if it has none.

    Raises:
        DataError: If it is no label table.
    """
    found = source.content.get("labels")
    return label_table(found, source.file or source.root, source.content) if found else None


def channel_names(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Channel names under ``channel_names``, ``modality`` or ``channels``, in order; None if there are none."""
    for key in ("channel_names", "modality", "channels"):
        found = content.get(key)
        if isinstance(found, str):
            return (found,)
        if isinstance(found, list) and found:
            return tuple(str(name) for name in found)
        if isinstance(found, Mapping) and found:
            # Keys are numbers as texts: "10" comes after "9", so shorter ones go first.
            ordered = sorted(found, key=lambda number: (len(str(number)), str(number)))
            return tuple(str(found[number]) for number in ordered)
    return None


def build_dataset(
    layout: str,
    source: Description,
    cases: Iterable[CaseFiles],
    tests: Iterable[CaseFiles] = (),
    *,
    channels: tuple[str, ...] | None = None,
    labels: LabelTable | None = None,
) -> Dataset:
    """Put a dataset together; cases without reference join the tests, missing names are found in the files.

    Args:
        layout: Name of the layout.
        source: Its description.
        cases: Cases for training.
        tests: Held-out cases.
        channels: Channel names, if the layout knows them better than the description.
        labels: Label table, likewise. If no one knows, all label maps are read and their values named ``label_1``, ….

    Raises:
        DataError: If there is no labelled case, or no label in any of them.
    """
    groups = {composed(str(case)): group for case, group in (source.content.get("groups") or {}).items()}

    def grouped(case: CaseFiles) -> CaseFiles:
        return replace(case, group=str(groups[case.id])) if case.group is None and case.id in groups else case

    listed = [grouped(case) for case in cases]
    kept = tuple(sorted((case for case in listed if case.labelled), key=lambda case: case.id))
    held_out = [*(case for case in listed if not case.labelled), *map(grouped, tests)]
    if not kept:
        got = f"{len(held_out)} cases without a label map" if held_out else folder_holds(source.root)
        advice = "Add label maps, or correct the file names"
        if not isinstance(source.content.get("cases") or source.content.get("training"), list):  # which name the files
            got, advice = or_unread(source.root, got, advice)
        where = source.file or source.root
        raise DataError(sentence(f"{layout} dataset", "at least one labelled case", got, advice, file=where))
    if labels is None:
        labels = described_labels(source) or _scanned_labels(kept, source.root)
    channels = channels or channel_names(source.content) or _guessed_channels(kept)
    name = str(source.content.get("name") or source.root.resolve().name)
    tests_sorted = tuple(sorted(held_out, key=lambda case: case.id))
    return Dataset(name, source.root, layout, channels, labels, kept, tests_sorted)


def _scanned_labels(cases: Sequence[CaseFiles], root: Path) -> LabelTable:
    """Names for the values that are in the label maps; files that cannot be read are left to ``volseg check``."""
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
    return LabelTable({value: f"label_{value}" for value in sorted(values - {0})})


def _guessed_channels(cases: Sequence[CaseFiles]) -> tuple[str, ...]:
    """CT if the first readable image has the values of air, otherwise neutral names."""
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
