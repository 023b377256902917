"""Opening a dataset folder of whatever layout: :func:`open_dataset` finds the reader that recognises it.

A reader turns a described folder into a dataset. The files that it names need not exist; ``volseg check`` reports them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.paths import composed, entries, is_broken_link, is_named, located
from pipeline.data.dataset import CaseFiles, Dataset, Split
from pipeline.data.descriptions import (
    Description,
    build_dataset,
    channel_names,
    described_labels,
    nnunet_content,
    read_description,
)
from pipeline.data.drishti import is_drishti, read_drishti
from pipeline.data.folder_files import (
    CHANNEL,
    by_name,
    folder_holds,
    group_channels,
    has_folder,
    list_volumes,
    or_unread,
)
from pipeline.data.label_tables import label_table
from pipeline.data.layout_names import LAYOUTS
from pipeline.data.volume_file import (
    PICTURE_SUFFIXES,
    RGB,
    join_source,
    split_source,
    unread_suffix,
    volume_stem,
    volume_suffix,
)
from pipeline.data.volumes import open_header

_ROLE = re.compile(r"[_-](image|img|label|labels|seg|segmentation|mask|rtstruct)$", re.IGNORECASE)
_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"))
_SPLITS: dict[str, Split] = {"train": "train", "training": "train", "val": "validation", "validation": "validation"}

_NORMALIZATIONS = ("nonorm", "zscore", "rescale_to_0_1", "rgb_to_0_1")  # what nnU-Net understands beside CT


def open_dataset(path: Path | str, layout: str | None = None) -> Dataset:
    """Open a dataset.

    Args:
        path: Its folder, or the JSON or CSV file that lists its cases.
        layout: One of LAYOUTS; by default the first that recognises the folder, in their order.

    Returns:
        The dataset. Files of a case may be missing (``volseg check`` reports them).

    Raises:
        DataError: If the path does not exist, the layout is unknown or not recognised, or there is no labelled case.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        rule, advice = f"one of {', '.join(LAYOUTS)}", "Choose one of them"
        raise DataError(sentence("layout", rule, repr(layout), advice, file=path))
    source = read_description(path)
    tried = [layout] if layout else list(LAYOUTS)
    for name in tried:
        recognises, read = _READERS[name]
        if recognises(source):
            return _with_rgb_channels(read(source))
    rule = f"a dataset layout ({'; '.join(f'{name}: {LAYOUTS[name].looks_like}' for name in tried)})"
    advice = "Arrange the files in one of these ways, or list them in a datalist.csv"
    raise DataError(sentence("dataset", rule, *or_unread(source.root, folder_holds(source.root), advice), file=path))


def rgb_channels(file: Path) -> tuple[Path, ...]:
    """Sources of red, green and blue: ``scan.png#channel=1of3``, …; empty unless the file is a colour picture.

    Nothing is refused here: a file that cannot be read counts as none.
    """
    if volume_suffix(file) not in PICTURE_SUFFIXES or split_source(file)[1]:
        return ()
    try:
        colour = open_header(file).is_colour
    except DataError:
        return ()
    return tuple(join_source(file, "channel", n, len(RGB)) for n in range(1, len(RGB) + 1)) if colour else ()


def _with_rgb_channels(dataset: Dataset) -> Dataset:
    """Three channels for cases that are one colour picture, called R, G and B unless the dataset has three names.

    A single one among grey pictures is damaged or a mistake, which its own case reports.
    """

    def split(case: CaseFiles) -> CaseFiles:
        channels = rgb_channels(case.images[0]) if len(case.images) == 1 else ()
        return replace(case, images=channels) if channels else case

    cases, tests = (tuple(map(split, part)) for part in (dataset.cases, dataset.tests))
    before = (*dataset.cases, *dataset.tests)
    colours = sum(case.images != old.images for case, old in zip((*cases, *tests), before, strict=True))
    if not colours or 2 * colours < len(before):
        return dataset
    channels = dataset.channels if len(dataset.channels) == len(RGB) else RGB
    return replace(dataset, cases=cases, tests=tests, channels=channels)


def read_decathlon(source: Description) -> Dataset:
    """Medical Segmentation Decathlon: ``dataset.json`` lists image and label of every case under ``training``.

    With several modalities, an image is a 4D file whose volumes are the channels, a list of files, or, as nnU-Net's
    first version has it, a set of files ``name_0000.nii.gz``, ….

    MONAI's datalists are read as it reads them: cases under ``validation`` are the validation cases of the dataset's
    own split, and a case with a ``fold`` validates in that fold and trains in all others.

    Raises:
        DataError: If an entry is not of this form, or there is no labelled case.
    """
    channels = channel_names(source.content)
    count = len(channels) if channels else 1
    training, validation, *tests = (
        [read_entry(entry, source, count, f"{key}.{n}") for n, entry in enumerate(source.content.get(key) or [])]
        for key in ("training", "validation", "test", "testing")
    )
    if any(case.labelled for case in validation):
        folded = next((case for case in (*training, *validation) if case.fold is not None), None)
        if folded:
            got, advice = f"both, e.g. fold {folded.fold} of case {folded.id}", "Keep one of the two"
            raise DataError(sentence("split", "a validation list or folds", got, advice, file=source.file))
        training = [replace(case, split="train") for case in training]
        validation = [replace(case, split="validation") for case in validation]
    return build_dataset("decathlon", source, [*training, *validation], [case for part in tests for case in part])


def read_nnunet(source: Description) -> Dataset:
    """nnU-Net raw data: ``imagesTr/case_0000.nii.gz``, …, ``labelsTr/case.nii.gz``, ``imagesTs``, ``dataset.json``.

    Where ``dataset.json`` lists the files itself, under ``dataset``, these are the training cases. Three channels may
    be one colour picture ``case_0000.png``.

    Raises:
        DataError: If there is no labelled case.
    """
    content = nnunet_content(source)
    channels = channel_names(content) or ("image",)
    surplus: list[Path] = []
    training, tests = (
        _nnunet_part(source.root, part, len(channels), content.get("file_ending"), surplus) for part in ("Tr", "Ts")
    )
    if content.get("dataset"):
        training, surplus = _nnunet_listed(source, content["dataset"]), []
    notes = []
    if surplus:
        got, advice = listed(file.name for file in surplus), "They are left out; name their channels, or remove them"
        notes.append(sentence("images", f"{len(channels)} channels", got, advice, file=source.file))
    meant = [name for name in channels if name.lower() in _NORMALIZATIONS]
    if meant:
        rule, advice = "names", "nnU-Net normalizes by them; here preprocess.normalization says how"
        notes.append(sentence("channel_names", rule, listed(meant), advice, file=source.file))
    if (source.root / "splits_final.json").is_file():
        notes.append(f"{source.root / 'splits_final.json'}: not read. Copy it to splits.json of the prepared folder.")
    return build_dataset("nnunet", source, training, tests, channels=channels, notes=notes)


def read_pairs(source: Description) -> Dataset:
    """``images/`` and ``labels/`` (or ``imagesTr``, ``labelsTr``) whose files belong together by name.

    The name is compared without its ending, a role (``_image``, ``_label``, ``_seg``, ``_mask``, …) and, where that
    leads to a label map, nnU-Net's channel number ``_0000``. Test images are in ``imagesTs``.

    Raises:
        DataError: If two files have the same name, or there is no labelled case.
    """
    images, labels = _pair_folders(source)[0]
    cases = _paired(source.root / images, source.root / labels)
    # Test images have no label maps to show it: they are named as the training images are.
    numbered = any(case.id != bare_name(case.images[0]) for case in cases)
    tests = _paired(source.root / "imagesTs", source.root / "labelsTs", numbered)
    return build_dataset("pairs", source, cases, tests)


def read_organs(source: Description) -> Dataset:
    """One folder per case: ``ct.nii.gz`` (or ``mri``, ``image``, or one file per channel) and ``segmentations/*``.

    Organs are numbered from 1 in the order of their names, over all cases; with a ``labels.json``, only its organs are
    taken, with its values. A case that lacks an organ's file does not have that organ. Several channels are in the
    order of their file names, and may be named by ``channels`` of the ``labels.json``. Where ``segmentations`` holds
    DICOM files (SEG, RTSTRUCT), their segments are the organs.

    Raises:
        DataError: If there is no labelled case.
    """
    folders = [folder for folder in entries(source.root) if _is_organ_case(folder)]
    masks = {
        folder: None if is_broken_link(folder) else _volumes_by_name(folder / "segmentations") for folder in folders
    }
    dicom = {folder: label for folder in folders if (label := _dicom_labels(folder / "segmentations")) is not None}
    masks |= {folder: {} for folder in dicom}
    organs = sorted({name for found in masks.values() for name in found or ()})
    numbered = {str(value): name for value, name in enumerate(organs, start=1)}
    own_table = described_labels(source)
    table = own_table or label_table(numbered, source.root)
    # An image of a format that is not read may be anything else where others are read.
    listed = {
        folder: {name: file for name, file in (_volumes_by_name(folder) or {}).items() if file.name != "segmentations"}
        for folder in folders
    }
    images = {
        home: {n: file for n, file in found.items() if volume_suffix(file)} or found for home, found in listed.items()
    }
    channels = sorted({name for found in images.values() for name in found})
    # With several channels, all cases must have the same ones: a missing file is named as expected.
    single = all(len(found) <= 1 for found in images.values())
    cases = []
    for folder in folders:
        wanted = [next(iter(images[folder]), "image")] if single else channels
        paths = tuple(images[folder].get(name, folder / f"{name}.nii.gz") for name in wanted)
        organ_names = {value: composed(name) for value, name in table.names.items()}
        there = masks[folder]
        if there is None:  # all are named, so that the case is reported and not taken for one without organs
            there = {name: folder / f"segmentations/{name}.nii.gz" for name in organ_names.values()}
        held = tuple((value, there[name]) for value, name in organ_names.items() if name in there)
        cases.append(CaseFiles(composed(folder.name), paths, dicom.get(folder), organs=held))
    known = {"ct": "CT", "mri": "MRI", "mr": "MRI"}
    names = tuple(known.get(name.lower(), name) for name in channels)
    described = channel_names(source.content) or ()
    if not single and len(described) == len(channels):
        names = described
    clear = not single or (len(channels) == 1 and names[0] in known.values())
    labels = own_table if dicom else table  # without one the segments' names are it
    return build_dataset("organs", source, cases, labels=labels, channels=names if clear else None)


def _is_organ_case(folder: Path) -> bool:
    """Whether a folder has ``segmentations``, or is a link to nowhere, of which no one knows better."""
    return has_folder(folder / "segmentations") or (not folder.suffix and is_broken_link(folder))


def _dicom_labels(folder: Path) -> Path | None:
    """The DICOM labels in a folder: its only file, or the folder itself; None if there are others, or none."""
    try:
        found = list_volumes(folder, dicom_files=True)
    except DataError:
        return None
    if not found or any(volume_suffix(file) or unread_suffix(file) for file in found):
        return None
    return found[0] if len(found) == 1 else folder


def _volumes_by_name(folder: Path) -> dict[str, Path] | None:
    """Volumes of a folder by name; None if it cannot be listed."""
    try:
        return {volume_stem(file): file for file in list_volumes(folder)}
    except DataError:
        return None


def read_datalist(source: Description) -> Dataset:
    """A table of cases, as CSV or JSON: ``case``, ``image``, ``label``, ``group``, ``split``, ``fold``.

    Several channels are ``image_1``, ``image_2``, …, or one ``image`` with a ``;`` between the files (in JSON also a
    list). ``split`` is ``test`` for held-out cases; where some cases are ``validation``, all others name theirs too.
    A case with a ``fold`` validates in that fold and trains in all others.
    Files are relative to the table. Names of labels and channels are in the JSON (``labels``, ``channels``) or in a
    ``labels.json`` beside the CSV (``{"names": {"1": "liver"}, "channels": ["CT"]}``).

    Raises:
        DataError: If a row has no image or an unknown split, only some rows name theirs, or there is no labelled case.
    """
    cases: list[CaseFiles] = []
    tests: list[CaseFiles] = []
    for number, row in enumerate(source.content["cases"], start=1):
        where, split = f"row {number}", (row.get("split") or "").lower()
        if split not in ("", "test", *_SPLITS):
            advice = "Write train, val or test"
            raise DataError(sentence(f"{where}, split", "train, val or test", repr(split), advice, file=source.file))
        case = read_entry(row, source, None, where)
        (tests if split == "test" else cases).append(replace(case, split=_SPLITS.get(split)))
        if case.fold is not None and split:
            got, advice = f"fold {case.fold} and split {split}", "Keep one of the two"
            raise DataError(sentence(where, "a fold or a split", got, advice, file=source.file))
    parts = [case.split for case in cases]
    if "validation" in parts and None in parts:
        got = f"none in {parts.count(None)} of {len(parts)} rows, e.g. case {cases[parts.index(None)].id}"
        advice = "Name the split of every case, or of none to have folds drawn"
        raise DataError(sentence("split", "train or val in every row", got, advice, file=source.file))
    return build_dataset("datalist", source, cases, tests)


def read_entry(row: Mapping[str, Any], source: Description, channels: int | None, where: str = "case") -> CaseFiles:
    """One case of a list, as ``read_content`` gives it; ``where`` names it in messages."""
    names = row.get("image") or []
    if not names:
        got = f"the keys {', '.join(row) or 'none'}"
        advice = "Name the image file of every case"
        raise DataError(sentence(where, "an image, or image_1, image_2, …", got, advice, file=source.file))
    images = tuple(located(source.root, name) for name in names)
    match = CHANNEL.match(volume_stem(images[0]))
    stem = match[1] if match and len(images) > 1 else volume_stem(images[0])
    # In the decathlon one file may hold all modalities.
    if channels is not None and len(images) == 1:
        images = _decathlon_channels(images[0], channels)
    label = located(source.root, row["label"]) if row.get("label") else None
    # The decathlon lists test images by name alone; where labels of theirs were released, they lie here.
    held_out = located(source.root / "labelsTs", split_source(images[0])[0].name)
    if set(row) == {"image"} and is_named(held_out):
        label = held_out
    name = composed(row.get("case") or row.get("id") or stem)
    if re.search(r"[/\\:\x00-\x1f\x7f]|^\.+$", name):
        rule, advice = "a name without / \\ : that is more than dots", "Rename the case: files are named after it"
        raise DataError(sentence(f"{where}, id", rule, repr(name), advice, file=source.file))
    return CaseFiles(name, images, label, group=row.get("group"), fold=row.get("fold"))


def _decathlon_channels(image: Path, channels: int) -> tuple[Path, ...]:
    """The listed file, its volumes if there are several channels, or the ``_0000`` files that stand for it."""
    suffix = volume_suffix(image)
    names = (f"{volume_stem(image)}_{n:04d}{suffix}" for n in range(channels))
    numbered = tuple(located(image.parent, name) for name in names)
    if not is_named(image) and is_named(numbered[0]):
        return numbered
    return (image,) if channels == 1 else tuple(join_source(image, "channel", n + 1, channels) for n in range(channels))


def _nnunet_listed(source: Description, entries: Mapping[str, Mapping[str, Any]]) -> list[CaseFiles]:
    """The cases of nnU-Net's key ``dataset``, whose paths may name variables of the environment, as ``$DATA/a.nii``."""
    cases = []
    for name, entry in entries.items():
        images = [os.path.expandvars(image) for image in entry["images"]]
        label = os.path.expandvars(entry.get("label") or "")
        cases.append(read_entry({"case": name, "image": images, "label": label}, source, None, f"dataset.{name}"))
    return cases


def _nnunet_part(root: Path, part: str, channels: int, ending: str | None, surplus: list[Path]) -> list[CaseFiles]:
    """Cases of ``imagesTr`` or ``imagesTs``; files of further channels are added to ``surplus``."""
    labels = by_name(_as_described(list_volumes(root / f"labels{part}", dicom_files=True), ending))
    images = _as_described(_listed_images(root / f"images{part}", labels), ending)
    groups = group_channels(file for file in images if CHANNEL.match(volume_stem(file)))
    cases = []
    for name in sorted({*groups, *labels}):
        found = groups.get(name, {})
        suffix = ending or volume_suffix(next(iter(found.values()), labels.get(name, Path("case.nii.gz"))))
        # Named although it may be missing, so that check can say which file is.
        expected = (root / f"images{part}" / f"{name}_{n:04d}{suffix}" for n in range(channels))
        sources = tuple(found.get(n, path) for n, path in enumerate(expected))
        # nnU-Net's exception: the colours of a picture are its channels.
        if channels == len(RGB) and set(found) == {0} and rgb_channels(found[0]):
            sources = (found[0],)
        surplus += [found[n] for n in sorted(found) if n >= channels]
        cases.append(CaseFiles(name, sources, labels.get(name)))
    return cases


def _as_described(files: Sequence[Path], ending: str | None) -> list[Path]:
    """Files that end as the description says, in small or capital letters, and DICOM, whatever its names.

    A file with another ending counts as a missing one of the described: whoever opens that says what is there instead.
    """
    if not ending:
        return list(files)
    dicom = [file for file in files if not volume_suffix(file) and not unread_suffix(file)]
    fitting = [file for file in files if file.name.lower().endswith(ending.lower()) or file in dicom]
    there = {volume_stem(file) for file in fitting}
    others = {stem: file for file in files if (stem := volume_stem(file)) not in there}
    return [*fitting, *(file.with_name(f"{stem}{ending}") for stem, file in others.items())]


def _paired(images: Path, labels: Path, numbered: bool | None = None) -> list[CaseFiles]:
    """Cases of two folders, by name.

    Whether names of images end in a channel number is ``numbered``; by default that is so if it leads to a label map.
    """
    references = by_name(list_volumes(labels, dicom_files=True), bare_name)
    files = _listed_images(images, references)
    # Files whose own name leads to a label map are whole images, even if it ends in four digits.
    parts = {file for file in files if bare_name(file) not in references and CHANNEL.match(volume_stem(file))}
    grouped = group_channels(sorted(parts))
    if not (any(name in references for name in grouped) if numbered is None else numbered):
        grouped, parts = {}, set()
    whole = by_name([file for file in files if file not in parts], bare_name)
    found: dict[str, tuple[Path, ...]] = {name: (file,) for name, file in whole.items()}
    # A channel that half of the cases have is one of the dataset; where it is missing, the expected file is named.
    counts = Counter(n for channels in grouped.values() for n in channels)
    usual = {n for n, count in counts.items() if 2 * count >= len(grouped)}
    for name, channels in grouped.items():
        suffix = volume_suffix(next(iter(channels.values())))
        expected = {n: images / f"{name}_{n:04d}{suffix}" for n in usual} | channels
        found[name] = tuple(expected[n] for n in sorted(expected))
    found |= {name: (images / file.name,) for name, file in references.items() if name not in found}
    return [CaseFiles(name, paths, references.get(name)) for name, paths in found.items()]


def _listed_images(folder: Path, cases: Collection[str]) -> list[Path]:
    """Images of a folder; DICOM files by themselves only if some are named as cases, since most are slices."""
    found = list_volumes(folder, dicom_files=True)
    names = {name for file in found for name in (bare_name(file), re.sub(r"_\d{4}$", "", volume_stem(file)))}
    return found if names & {*cases} else list_volumes(folder)


def bare_name(file: Path) -> str:
    """Name of a case that an image or label map belongs to in ``pairs``: the file's, without ending and role."""
    return _ROLE.sub("", volume_stem(split_source(file)[0])) or volume_stem(file)


def _is_decathlon(source: Description) -> bool:
    return isinstance(source.content.get("training"), list)


def _is_nnunet(source: Description) -> bool:
    described = "channel_names" in source.content or "modality" in source.content
    there = has_folder(source.root / "imagesTr") or isinstance(source.content.get("dataset"), Mapping)
    return described and "labels" in source.content and there


def _is_datalist(source: Description) -> bool:
    return isinstance(source.content.get("cases"), list)


def _is_organs(source: Description) -> bool:
    return any(has_folder(folder / "segmentations") for folder in entries(source.root))


def _pair_folders(source: Description) -> list[tuple[str, str]]:
    return [pair for pair in _PAIRS if all(has_folder(source.root / name) for name in pair)]


# Keys as in LAYOUTS: whether a described folder has the layout, and what reads it.
_READERS: dict[str, tuple[Callable[[Description], bool], Callable[[Description], Dataset]]] = {
    "decathlon": (_is_decathlon, read_decathlon),
    "nnunet": (_is_nnunet, read_nnunet),
    "datalist": (_is_datalist, read_datalist),
    "organs": (_is_organs, read_organs),
    "drishti": (is_drishti, read_drishti),
    "pairs": (lambda source: bool(_pair_folders(source)), read_pairs),
}
