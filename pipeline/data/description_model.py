"""What a dataset's description may hold: the type of every key, and which keys count in which layout.

Loaded only where there is a description: pydantic is a tenth of the start of commands that read none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic takes that of the standard library from Python 3.12 on

from pipeline.core.documents import short
from pipeline.data.dataset import channels_in_order, possible_file

_FOLDS = 1000


def _blank_is_none(value: Any) -> Any:
    """An empty cell of a table says nothing."""
    return None if isinstance(value, str) and not value.strip() else value


def _word(value: Any) -> Any:
    """Ids and groups may be numbers without quotes."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18 else value


def _printable(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"expected printable characters, got {short(text)}. Correct it.")
    return text


def _no_folder(name: str) -> str:
    if name.rsplit("/", 1)[-1].strip() in ("", ".", ".."):
        raise ValueError(f"expected the name of a file, got {short(name)}. Correct it.")
    return possible_file(name)


def _no_truth(value: Any) -> Any:
    """True is no number, although Python counts with it."""
    return str(value) if isinstance(value, bool) else value


def _parts(value: Any) -> Any:
    """The files of the channels: a list, or one text with a ``;`` between them."""
    return [part.strip() for part in value.split(";")] if isinstance(value, str) else value or []


def _entry(value: Any) -> Any:
    """An entry with all its files under ``image``; a file name alone is one, too."""
    if not isinstance(value, Mapping):
        return {"image": value} if isinstance(value, str) else value
    numbered = {int(key[6:]): key for key in value if re.fullmatch(r"image_[0-9]{1,4}", str(key)) and value[key]}
    if numbered and value.get("image"):
        raise ValueError(f"expected image, or image_1, image_2, …, got image and {min(numbered.values())}. Keep one.")
    kept = {key: item for key, item in value.items() if not re.fullmatch(r"image_[0-9]{1,4}", str(key))}
    return kept if not numbered else {**kept, "image": [value[numbered[n]] for n in sorted(numbered)]}


FileName = Annotated[str, Field(strict=True), AfterValidator(_no_folder)]
Word = Annotated[str, BeforeValidator(_word), Field(strict=True, max_length=1000), AfterValidator(_printable)]
MaybeFile = Annotated[FileName | None, BeforeValidator(_blank_is_none)]
MaybeWord = Annotated[Word | None, BeforeValidator(_blank_is_none)]
MaybeFold = Annotated[
    Annotated[int, BeforeValidator(_no_truth), Field(ge=0, lt=_FOLDS)] | None, BeforeValidator(_blank_is_none)
]
Channels = Annotated[Any, AfterValidator(channels_in_order)]


class _Open(TypedDict):
    """Base of what may have further keys, which :func:`unread_keys` names."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class Entry(_Open, total=False):
    """A case of a list. Lists of label maps to evaluate have the last four keys."""

    case: MaybeWord
    id: MaybeWord
    image: Annotated[list[FileName], BeforeValidator(_parts)]
    label: MaybeFile
    group: MaybeWord
    fold: MaybeFold
    split: MaybeWord
    prediction: MaybeFile
    reference: MaybeFile
    mask: MaybeFile
    file: MaybeFile


Entries = list[Annotated[Entry, BeforeValidator(_entry)]] | None


class Content(_Open, total=False):
    """A ``dataset.json``, ``datalist.json`` or table; label names and regions are read by ``label_tables``."""

    name: MaybeWord
    channel_names: Channels
    modality: Channels
    channels: Channels
    groups: dict[str, MaybeWord] | None
    dicom_names: dict[str, MaybeWord] | None
    training: Entries
    validation: Entries
    test: Entries
    testing: Entries
    cases: Entries


class NnunetCase(_Open):
    """A case of nnU-Net's key ``dataset``."""

    images: list[FileName]
    label: NotRequired[MaybeFile]


class NnunetContent(_Open, total=False):
    """What only nnU-Net's ``dataset.json`` has."""

    dataset: dict[str, NnunetCase] | None
    file_ending: Annotated[str, Field(strict=True, pattern=r"^(\.\w+)+$", max_length=20)] | None


# Which keys count in which layout. The same lists are in docs/dataset.md.
_CHECKED = {"numTraining", "numTest"}
_LABELS = {"labels", "regions", "regions_class_order", "dicom_names"}
_EVERYWHERE = {"name", "groups", "channel_names", "modality", "channels", *_LABELS, *_CHECKED}
_KEYS: dict[str, set[str]] = {
    "decathlon": _EVERYWHERE | {"training", "validation", "test", "testing"},
    "nnunet": _EVERYWHERE | {"dataset", "file_ending"},
    "datalist": _EVERYWHERE | {"cases"},
    "organs": _EVERYWHERE,
    "drishti": {"name", "groups", *_CHECKED},
    "pairs": _EVERYWHERE,
}
# What only people read, or says what is seen from the files.
_FOR_PEOPLE = {
    *("description", "reference", "citation", "licence", "license", "release", "version", "date", "author", "authors"),
    *("url", "converted_by", "tensorImageSize", "overwrite_image_reader_writer"),
}
_CASE_LISTS = ("training", "validation", "test", "testing", "cases", "dataset")
_ENTRY_KEYS = {"image", "label", "case", "id", "group", "fold"}
_LABELS_FILE = {"names", "ignore_label", "channels", "chosen_from", "colors", *_LABELS}


def unread_lists(layout: str, content: Mapping[str, Any]) -> list[str]:
    """Keys that list cases and are not read in a layout that is itself a list."""
    if layout not in ("decathlon", "datalist"):
        return []
    return [key for key in _CASE_LISTS if key not in _KEYS[layout] and isinstance(content.get(key), list | dict)]


def unread_keys(layout: str, content: Mapping[str, Any]) -> list[str]:
    """Keys that have no effect: of the description, of its entries, and of a ``labels.json``."""
    found = _beyond(_KEYS[layout] | _FOR_PEOPLE, [content])
    if layout == "nnunet":
        found += _beyond({"images", "label"}, (content.get("dataset") or {}).values())
    known = _ENTRY_KEYS | ({"split"} if layout == "datalist" else set())
    lists = [content.get(key) or [] for key in _CASE_LISTS if key in _KEYS[layout] and key != "dataset"]
    found += _beyond(known, (entry for entries in lists for entry in entries))
    labels = content.get("labels")
    if isinstance(labels, Mapping) and any(isinstance(labels.get(key), Mapping) for key in ("names", "labels")):
        found += _beyond(_LABELS_FILE, [labels])
    return found


def _beyond(known: set[str], entries: Iterable[Mapping[str, Any]]) -> list[str]:
    anyhow = known & {*_FOR_PEOPLE, "regions"}  # the only ones whose capitals do not count
    return list(
        dict.fromkeys(key for entry in entries for key in entry if key not in known and key.lower() not in anyhow)
    )
