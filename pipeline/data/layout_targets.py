"""Where the files of a dataset go in another layout: the converted dataset, as it will be read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.core import DataError, sentence
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.layout_readers import bare_name
from pipeline.data.target_labels import translate_labels
from pipeline.data.volume_file import join_source

__all__ = ["TARGET_LAYOUTS", "Target", "target_dataset"]

TARGET_LAYOUTS = ("nnunet", "decathlon", "datalist", "organs", "pairs")
"""Layouts that can be written."""

_ENDING = ".nii.gz"
_UNSAFE = re.compile(r"[^\w.-]")
_ORGANS_IMAGE = {"CT": "ct", "MRI": "mri"}  # file names that say what the channel is
_LISTED = 5  # case ids quoted in a note


@dataclass(frozen=True)
class Target:
    """A dataset in another layout, before it is written.

    Args:
        dataset: As it will be read back. Its cases and tests are those of the source, in the same order.
        renumbered: Source label value → value, of those that change.
        notes: What changes or is lost, one sentence each.
    """

    dataset: Dataset
    renumbered: Mapping[int, int]
    notes: tuple[str, ...]


def target_dataset(source: Dataset, out: Path, layout: str) -> Target:
    """Lay a dataset out in another way.

    Args:
        source: The dataset.
        out: Folder it will be written to.
        layout: One of TARGET_LAYOUTS.

    Returns:
        The dataset in ``out``. Case ids are kept where they can be file names and are unique; of several channels in
        one file, ``images`` names the parts.

    Raises:
        DataError: If there is no such layout, or it cannot hold the dataset.
    """
    if layout not in TARGET_LAYOUTS:
        raise DataError(sentence("--to", f"one of {', '.join(TARGET_LAYOUTS)}", repr(layout), "Choose one of them"))
    translated = translate_labels(source.labels, layout)
    old = [files.id for files in (*source.cases, *source.tests)]
    new = _file_names(old, layout)
    count = len(source.cases)
    place = _PLACES[layout]
    values = translated.labels.names
    cases = [
        _laid_out(files, name, place(out, name, "Tr", source), values, layout)
        for files, name in zip(source.cases, new[:count], strict=True)
    ]
    tests = [
        _laid_out(files, name, place(out, name, "Ts", source), values, layout, held_out=True)
        for files, name in zip(source.tests, new[count:], strict=True)
    ]
    dataset = replace(source, root=out, layout=layout, labels=translated.labels, cases=tuple(cases), tests=tuple(tests))
    notes = (*translated.notes, *_renamed_note(old, new), *_losses(source, layout))
    return Target(dataset, translated.renumbered, notes)


def _laid_out(
    files: CaseFiles, name: str, places: CaseFiles, names: Mapping[int, str], layout: str, held_out: bool = False
) -> CaseFiles:
    """The case with new files: without a reference if it has none; in ``organs`` with a mask for every value."""
    split = files.split if layout == "datalist" else None
    if layout != "organs":
        label = places.label if files.labelled else None
        return CaseFiles(name, places.images, label, group=files.group, split=split)
    folder = places.images[0].parent / "segmentations"
    wanted = names if files.labelled and not held_out else {}
    organs = tuple((value, folder / f"{organ}{_ENDING}") for value, organ in wanted.items())
    return CaseFiles(name, places.images, organs=organs, group=files.group)


def _nnunet_place(out: Path, name: str, part: str, source: Dataset) -> CaseFiles:
    return _place(out, name, f"images{part}", f"labels{part}", [f"_{n:04d}" for n, _ in enumerate(source.channels)])


def _pairs_place(out: Path, name: str, part: str, source: Dataset) -> CaseFiles:
    held_out = "" if part == "Tr" else part
    several = [f"_{n:04d}" for n, _ in enumerate(source.channels)]
    return _place(out, name, f"images{held_out}", f"labels{held_out}", several if len(several) > 1 else [""])


def _decathlon_place(out: Path, name: str, part: str, source: Dataset) -> CaseFiles:
    place, total = _place(out, name, f"images{part}", f"labels{part}", [""]), len(source.channels)
    if total == 1:
        return place
    return replace(place, images=tuple(join_source(place.images[0], "channel", n + 1, total) for n in range(total)))


def _organs_place(out: Path, name: str, part: str, source: Dataset) -> CaseFiles:
    channels = source.channels
    stems = [f"image_{n:04d}" for n, _ in enumerate(channels)]
    if len(channels) == 1:
        stems = [_ORGANS_IMAGE.get(channels[0], "image")]
    return CaseFiles(name, tuple(out / name / f"{stem}{_ENDING}" for stem in stems))


def _place(out: Path, name: str, images: str, labels: str, endings: Sequence[str]) -> CaseFiles:
    paths = tuple(out / images / f"{name}{ending}{_ENDING}" for ending in endings)
    return CaseFiles(name, paths, out / labels / f"{name}{_ENDING}")


_PLACES: dict[str, Callable[[Path, str, str, Dataset], CaseFiles]] = {
    "nnunet": _nnunet_place,
    "decathlon": _decathlon_place,
    "datalist": _pairs_place,
    "organs": _organs_place,
    "pairs": _pairs_place,
}


def _file_names(ids: Sequence[str], layout: str) -> list[str]:
    """Ids that can be file names, each once. Those that need no change keep their name whatever comes before them."""

    def clean(case: str) -> str:
        name = _UNSAFE.sub("_", case).lstrip(".") or "case"
        return f"{name}_case" if layout == "pairs" and bare_name(Path(f"{name}{_ENDING}")) != name else name

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
    shown = f"{', '.join(changed[:_LISTED])}{', …' if len(changed) > _LISTED else ''}"
    return (f"{len(changed)} cases renamed, because files are named after them: {shown} (all in conversion.json)",)


def _losses(source: Dataset, layout: str) -> tuple[str, ...]:
    notes = []
    if layout not in ("datalist", "nnunet") and any(files.split == "validation" for files in source.cases):
        notes.append(f"the dataset's own split is lost, because {layout} has no place for it; datalist and nnunet have")
    labelled = sum(files.labelled for files in source.tests)
    if layout == "organs" and labelled:
        notes.append(
            f"references of {labelled} held-out cases are left out, because organs would take these cases for training"
        )
    return tuple(notes)
