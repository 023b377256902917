"""DICOM in datasets: which series is which channel, and what the segments of SEG and RTSTRUCT are called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.labels import LabelTable
from pipeline.data.dataset import CaseFiles
from pipeline.data.dicom import is_dicom, open_series, with_modality
from pipeline.data.dicom_labels import Meaning, OpenedLabels, open_labels
from pipeline.data.segment_names import SegmentNames, name_key
from pipeline.data.volume_file import labels_source, split_source, volume_suffix
from pipeline.data.volumes import is_dicom_label, label_target

_CHANNELS = {"CT": "CT", "MR": "MRI", "PT": "PET"}
_LONGEST_NAME = 200  # as of organs in descriptions
_NAMES_EXAMPLE = 'Write {"names": {"1": "liver"}, "dicom_names": {"Leber": "liver", "BODY": null}}'


def with_modalities(cases: Iterable[CaseFiles], channels: Sequence[str]) -> list[CaseFiles]:
    """DICOM images that name no series stand for the only one of the modality that their channel's name tells."""

    def named(case: CaseFiles) -> CaseFiles:
        if all(volume_suffix(source) for source in case.images) or len(case.images) != len(channels):
            return case
        return replace(case, images=tuple(map(with_modality, case.images, channels)))

    return [named(case) for case in cases]


def series_modality(images: Sequence[Path]) -> str:
    """Name for the channel of a case that is one DICOM series, as people write it; empty of any other."""
    try:
        known = len(images) == 1 and not volume_suffix(images[0]) and is_dicom(split_source(images[0])[0])
        return _CHANNELS.get(open_series(images[0]).series.modality, "") if known else ""
    except DataError:
        return ""


def segment_aliases(content: Mapping[str, Any], file: Path | str) -> dict[str, str | None]:
    """What a description says of the names of segments, under ``dicom_names``, also beside the names of labels.

    Returns:
        Name of a segment → name of an organ; None for segments that are left out.

    Raises:
        DataError: If it is no such table.
    """
    labels = content.get("labels")
    inner = labels.get("dicom_names") if isinstance(labels, Mapping) else None
    found = inner if isinstance(inner, Mapping) else content.get("dicom_names")
    fits = isinstance(found, Mapping) and all(isinstance(name, str | None) for name in found.values())
    if found is not None and not fits:
        raise DataError(sentence("dicom_names", "names of organs by name", "others", _NAMES_EXAMPLE, file=file))
    return {str(segment): name and name.strip() for segment, name in (found or {}).items()}


def with_dicom_labels(
    cases: Iterable[CaseFiles], labels: LabelTable, aliases: Mapping[str, str | None], file: Path | str
) -> list[CaseFiles]:
    """Cases whose DICOM labels say which image they belong to, and which organ each name means.

    Raises:
        DataError: If an alias stands for an organ that is not in the label table.
    """
    known = {*labels.names.values(), *labels.regions}
    strange = [name for name in aliases.values() if name is not None and name not in known]
    if strange:
        rule = f"names of the label table ({listed(labels.targets)})"
        raise DataError(sentence("dicom_names", rule, listed(strange), _NAMES_EXAMPLE, file=file))
    return [_meant(case, Meaning(labels, case.images, aliases)) for case in cases]


def _meant(case: CaseFiles, meaning: Meaning) -> CaseFiles:
    if case.label is None or not is_dicom_label(case.label):
        return case
    home = split_source(case.label)[0].parent
    return replace(case, label=labels_source(case.label, meaning.to_json(home)))


def scanned_segments(
    cases: Sequence[CaseFiles], aliases: Mapping[str, str | None], root: Path
) -> tuple[LabelTable, list[str]]:
    """A label table of the names of all segments, and notes on what was made of them.

    Organs are numbered from 1 in the order of their names. If some overlap, in any case, they are regions, and every
    overlap that occurs has a value. Names that differ in capitals, or in what is between their words, are one. Cases
    that cannot be read are left to ``volseg check``.

    Raises:
        DataError: If there is no segment in any of them.
    """
    opened = list(_opened(cases, aliases))
    spelled: dict[str, Counter[str]] = defaultdict(Counter)
    described = [name for name in aliases.values() if name is not None]
    names = SegmentNames(described, aliases)
    for labels in opened:
        for name in (name for found in labels.names for name in found.values()):
            organ = names.organ(name) if names.knows(name) else name
            if organ is not None:
                spelled[name_key(organ)][organ] += 1
    # The usual spelling; of equally usual ones the first.
    usual = {key: min(found, key=lambda name: (-found[name], name)) for key, found in spelled.items()}
    usual |= {name_key(name): name for name in described}
    organs = sorted(usual.values(), key=lambda name: (name.casefold(), name))
    if not organs:
        got, advice = "none", "Check the label files with volseg inspect"
        raise DataError(sentence("label files", "a segment in at least one", got, advice, file=root))
    notes = []
    varied = [usual[key] for key, found in spelled.items() if len(found) > 1]
    if varied:
        advice = "Other capitals and signs count as the same name"
        notes.append(sentence("names of segments", "one spelling", f"several of {listed(varied)}", advice, file=root))
    together: Counter[frozenset[str]] = Counter()
    for labels in opened:
        together.update(_overlaps(labels, names, usual))
    if not together:
        return LabelTable(dict(enumerate(organs, start=1))), notes
    advice = "They are regions; with a labels.json of names alone every voxel gets one of them"
    rule, got = "organs that do not overlap", f"{len(together)} overlaps, in up to {max(together.values())} cases"
    notes.append(sentence("label files", rule, got, advice, file=root))
    return _with_regions(organs, sorted(together, key=lambda found: (len(found), sorted(found))), root), notes


def _opened(cases: Sequence[CaseFiles], aliases: Mapping[str, str | None]) -> Iterator[OpenedLabels]:
    for case in (_meant(case, Meaning(LabelTable({}), case.images, aliases)) for case in cases):
        try:
            yield open_labels(case.label_sources[0], case=case.id)
        except DataError:
            continue


def _overlaps(labels: OpenedLabels, names: SegmentNames, usual: Mapping[str, str]) -> set[frozenset[str]]:
    """Organs that are together in some voxel."""

    def organ(name: str) -> str | None:
        found = names.organ(name) if names.knows(name) else name
        return None if found is None else usual[name_key(found)]

    organs = [{number: own for number, name in found.items() if (own := organ(name))} for found in labels.names]
    try:
        drawn = labels.draw(label_target(labels), organs)
    except DataError:
        return set()
    present = np.flatnonzero(np.bincount(drawn.index.ravel(), minlength=len(drawn.organs)))
    return {drawn.organs[n] for n in present if len(drawn.organs[n]) > 1}


def _with_regions(organs: Sequence[str], overlaps: Sequence[frozenset[str]], root: Path) -> LabelTable:
    """Every organ a region, with a value of its own and one for each overlap that it is part of."""
    names = dict(enumerate(organs, start=1))
    own: dict[str, tuple[int, ...]] = {organ: (n,) for n, organ in names.items()}
    for value, together in enumerate(overlaps, start=len(organs) + 1):
        joined = " + ".join(sorted(together))
        names[value] = joined if len(joined) <= _LONGEST_NAME and joined not in names.values() else f"overlap_{value}"
        own |= {organ: (*own[organ], value) for organ in together}
    try:
        return LabelTable(names, regions=own, painted=tuple(range(1, len(organs) + 1)))
    except ValueError as error:
        raise DataError(f"{root}: {error} A labels.json of names alone gives every voxel to one organ.") from None
