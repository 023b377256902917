"""Which prediction belongs to which reference, by their names or as lists say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.core.documents import read_json, short
from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.paths import absence, composed, is_named, located, real
from pipeline.data.dataset import possible_file
from pipeline.data.descriptions import read_description
from pipeline.data.folder_files import CHANNEL, by_name, list_volumes, or_unread
from pipeline.data.layouts import rgb_channels
from pipeline.data.prediction_record import RECORD_FILE, journal_entries
from pipeline.data.volume_file import LIST_SUFFIXES, VOLUME_SUFFIXES, volume_stem, volume_suffix

LABEL_FOLDERS = ("labelsTs", "labelsTr", "labels")
"""Those of a dataset folder that hold references."""

_CHANNEL = "_0000"
_ENDING = re.compile(
    r"([-_. ](0000|seg|segm|segmentation|mask|label|labels|pred|prediction|predicted|gt|ref|reference))+$"
)
"""What tools append to the name of a case; compared without it only where names differ otherwise."""
_SHOWN = 3  # names quoted in a message


class FilePair(NamedTuple):
    """A case, its prediction if there is one, and its reference; the id is the reference's name without its suffix."""

    case: str
    prediction: Path | None
    reference: Path


def pair_files(prediction: Path, reference: Path) -> list[FilePair]:
    """Find the prediction of every reference by file name.

    A prediction belongs to the reference of the same name without suffix; a trailing ``_0000`` (the channel number
    that a prediction keeps from its input's name) is ignored. What is left without a partner is compared once more in
    lower case and without endings such as ``_seg``, ``_pred`` or ``-label``. A list of cases (CSV or JSON) names them
    itself. Two files given directly belong together whatever their names. In a dataset folder, ``labelsTs``,
    ``labelsTr`` and ``labels`` are searched, and each of them counts as soon as one of its cases was predicted.

    Args:
        prediction: Label map, folder of label maps, or list of cases.
        reference: Label map, folder of label maps, dataset folder, or list of cases.

    Returns:
        One pair per reference, sorted by case. If ``prediction`` is one file, only its own reference.

    Raises:
        VolsegError: If a path does not exist, holds no volume, or no name matches.
        DataError: If two files claim the same case.
    """
    for what, path in (("prediction", prediction), ("reference", reference)):
        if gone := absence(path):
            raise VolsegError(sentence(what, "a file or folder", *gone, file=path))
    alone = prediction.is_file() and not is_list(prediction)
    if alone and reference.is_file() and not is_list(reference):
        return [FilePair(volume_stem(reference), prediction, reference)]
    if is_list(prediction):
        predictions = listed_maps(prediction, "prediction")
    else:
        predictions = _by_case(_volumes(prediction, "prediction"), _prediction_case)
    if is_list(reference):
        groups = [listed_maps(reference, "reference")]
    else:
        groups = [_by_case(files, volume_stem) for files in _reference_groups(reference)]
    # Of a dataset folder, the parts count of which a case was predicted; training cases that nobody predicted are no
    # misses.
    if len(groups) > 1:
        groups = [group for group in groups if any(_partners(predictions, group).values())] or groups
    references = groups[0]
    if len(groups) > 1:
        references = _by_case([path for group in groups for path in group.values()], volume_stem)
    named = _partners(predictions, references)
    if not any(named.values()):
        raise _no_match(predictions, references, prediction)
    if alone:
        named = {case: path for case, path in named.items() if path}
    return [FilePair(case, named[case], references[case]) for case in sorted(named)]


def unpaired_predictions(prediction: Path, pairs: Sequence[FilePair]) -> tuple[Path, ...]:
    """Predicted files that belong to no reference, of what was given to :func:`pair_files` and what it returned."""
    used = {pair.prediction for pair in pairs}
    if is_list(prediction):
        files = list(listed_maps(prediction, "prediction").values())
    else:
        files = list_volumes(prediction) if prediction.is_dir() else []
    return tuple(path for path in files if path not in used)


def prediction_names(prediction: Path) -> tuple[str, ...]:
    """What the case of a predicted file may be called: the file's name, also without a channel number."""
    return volume_stem(prediction), _prediction_case(prediction)


def _volumes(path: Path, what: str) -> list[Path]:
    files = list_volumes(path) if path.is_dir() else [path]
    if not files:
        rule = f"label maps ({', '.join(VOLUME_SUFFIXES)})"
        raise VolsegError(sentence(f"{what} folder", rule, *or_unread(path, "none", "Check the path"), file=path))
    return files


def _reference_groups(reference: Path) -> list[list[Path]]:
    folders = [reference / name for name in LABEL_FOLDERS if is_named(reference / name)]
    groups = [files for files in map(list_volumes, folders) if files]
    return groups or [_volumes(reference, "reference")]


def _prediction_case(path: Path) -> str:
    return volume_stem(path).removesuffix(_CHANNEL)


def _by_case(files: Iterable[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    def twice(first: Path, second: Path) -> DataError:
        got, place = f"{first.name} and {second.name}", second.parent
        return DataError(sentence("label maps", "one file", got, "Remove or rename one", case=name(first), file=place))

    return by_name(files, name, twice)


def _partners(predictions: Mapping[str, Path], references: Mapping[str, Path]) -> dict[str, Path | None]:
    """The prediction of every reference, or None."""
    found = {case: predictions.get(case) or predictions.get(case.removesuffix(_CHANNEL)) for case in references}
    taken = set(found.values())
    left = [path for path in predictions.values() if path not in taken]
    # A looser comparison may only decide where it fits one prediction and one reference, never between several.
    for case, bare in [(case, _bare(case)) for case, path in found.items() if path is None]:
        alike = [path for path in left if _bare(volume_stem(path)) == bare]
        rivals = [other for other, path in found.items() if path is None and _bare(other) == bare]
        if len(alike) == len(rivals) == 1:
            found[case] = alike[0]
    return found


def _bare(name: str) -> str:
    """A name in lower case without the endings that tools append."""
    return _ENDING.sub("", name.lower()) or name.lower()


def _no_match(predictions: Mapping[str, Path], references: Mapping[str, Path], folder: Path) -> VolsegError:
    wanted, got = (
        ", ".join([*sorted(names)[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
        for names in (references, predictions)
    )
    advice = "Give predictions the names of their references"
    return VolsegError(sentence("prediction names", f"those of the references ({wanted})", got, advice, file=folder))


# Lists of cases, CSV or JSON, as predictions or references.


def is_list(path: Path) -> bool:
    """Whether a path is a file that lists cases."""
    return path.suffix.lower() in LIST_SUFFIXES and not path.is_dir()


def listed_maps(path: Path, what: Literal["prediction", "reference"]) -> dict[str, Path]:
    """Label maps that a list of cases names: case id → file.

    Args:
        path: CSV, or JSON with a list, or with one under ``cases`` or ``training``. Each entry has ``prediction`` or
            ``reference``, or else ``label``, ``mask`` or ``file``, relative to the list, and may have ``case`` (or
            ``id``, else the name of its ``image`` or label map is the case's). Entries without are left out.
        what: Which of the two is wanted.

    Raises:
        DataError: If no entry names a label map, or two are of the same case.
    """
    keys = (what, "label", "mask", "file")
    source = read_description(path)
    rows = next((rows for key in ("cases", "training") if isinstance(rows := source.content.get(key), list)), [])
    found: dict[str, Path] = {}
    for row in rows:
        name = next((str(row[key]) for key in keys if isinstance(row, Mapping) and row.get(key)), None)
        if name is None:
            continue
        case = _case(row, name)
        if case in found:
            advice = "Give every case its own id"
            raise DataError(sentence("cases", "one entry per case", "two", advice, case=case, file=path))
        found[case] = located(source.root, name)
    if not found:
        rule, advice = f"entries with one of {', '.join(keys)}", "Name the label map of every case"
        raise DataError(sentence(f"{what} list", rule, "none", advice, file=path))
    return found


def _case(row: Mapping[str, Any], name: str) -> str:
    given = row.get("case") or row.get("id")
    images = row.get("image") or []
    if given:
        return composed(str(given))
    return volume_stem(images[0] if len(images) == 1 else name).removesuffix(_CHANNEL)


# The images of the cases, which reports show.


def find_images(prediction: Path, pairs: Sequence[FilePair]) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """Image files of the cases: from ``predictions.json`` beside the predictions, else ``images*`` beside ``labels*``.

    Returns:
        Case id → one source per channel, three of a colour picture (cases without images are left out), and notes on
        what could not be read.
    """
    home = prediction if prediction.is_dir() else prediction.parent
    listed: dict[str, tuple[Path, ...]] = {}
    notes: tuple[str, ...] = ()
    record, later = home / RECORD_FILE, journal_entries(home)
    if is_named(record):
        try:
            listed = _listed_images([*read_json(record)["cases"], *later], home)
        except (VolsegError, LookupError, TypeError, ValueError, AttributeError) as error:
            rule, got = "a list of cases with their images", short(error)
            notes = (f"{record}: expected {rule}, got {got}. Overlays may lack images.",)
    found: dict[str, tuple[Path, ...]] = {}
    folders: dict[Path, dict[str, tuple[Path, ...]]] = {}
    for pair in pairs:
        images = listed.get(composed(pair.prediction.name), ()) if pair.prediction else ()
        if not images and (folder := _images_folder(pair)):
            if folder not in folders:
                folders[folder] = _images_by_case(folder)
            images = folders[folder].get(composed(pair.case), ())
            images = (rgb_channels(images[0]) if len(images) == 1 else ()) or images
        if images:
            found[pair.case] = images
    return found, notes


def _listed_images(entries: Sequence[Mapping[str, Any]], home: Path) -> dict[str, tuple[Path, ...]]:
    """File name of the prediction → its images; relative paths start at the record's folder."""
    return {
        composed(Path(entry["prediction"]).name): tuple(located(home, possible_file(path)) for path in entry["images"])
        for entry in entries
        if entry.get("prediction")
    }


def _images_folder(pair: FilePair) -> Path | None:
    """The folder ``images*`` beside the folder ``labels*`` of a reference."""
    folder = real(pair.reference).parent
    images = folder.parent / folder.name.replace("labels", "images", 1)
    return images if images != folder and images.is_dir() else None


def _images_by_case(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Case → the image of its name, else its numbered channels; of several formats the first of VOLUME_SUFFIXES."""
    found: dict[str, dict[tuple[int, bool], list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in (file for file in list_volumes(folder) if volume_suffix(file)):
        rank, stem = VOLUME_SUFFIXES.index(volume_suffix(file)), volume_stem(file)
        found[stem][rank, False].append(file)
        if match := CHANNEL.match(stem):
            found[match[1]][rank, True].append(file)
    return {case: tuple(files[min(files)]) for case, files in found.items()}
