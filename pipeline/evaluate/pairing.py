"""Which prediction belongs to which reference, and what their label values mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.files import read_json
from pipeline.core.labels import LabelTable
from pipeline.data.label_names import label_table
from pipeline.data.layout_readers import list_volumes
from pipeline.data.layout_tables import described_labels, read_description
from pipeline.data.volume_file import VOLUME_SUFFIXES, volume_stem

__all__ = ["FilePair", "find_images", "find_labels", "pair_files", "unpaired_predictions"]

_LABEL_FOLDERS = ("labelsTs", "labelsTr", "labels")
_CHANNEL = "_0000"
_SHOWN = 3  # names quoted in a message


class FilePair(NamedTuple):
    """A reference and its prediction.

    Args:
        case: Case id: the reference's file name without its suffix.
        prediction: Predicted label map, or None if there is none.
        reference: Reference label map.
    """

    case: str
    prediction: Path | None
    reference: Path


def pair_files(prediction: Path, reference: Path) -> list[FilePair]:
    """Find the prediction of every reference by file name.

    A prediction belongs to the reference of the same name without suffix; a trailing ``_0000`` (the channel number
    that a prediction keeps from its input's name) is ignored. Two files given directly belong together whatever their
    names. In a dataset folder, ``labelsTs``, ``labelsTr`` and ``labels`` are searched, and each of them counts as
    soon as one of its cases was predicted.

    Args:
        prediction: Label map or folder of label maps.
        reference: Label map, folder of label maps, or dataset folder.

    Returns:
        One pair per reference, sorted by case. If ``prediction`` is one file, only its own reference.

    Raises:
        VolsegError: If a path does not exist, holds no volume, or no name matches.
        DataError: If two files claim the same case.
    """
    for what, path in (("prediction", prediction), ("reference", reference)):
        if not path.exists():
            raise VolsegError(sentence(what, "a file or folder", "nothing there", "Check the path", file=path))
    if prediction.is_file() and reference.is_file():
        return [FilePair(volume_stem(reference), prediction, reference)]
    predictions = _by_case(_volumes(prediction, "prediction"), _prediction_case)
    groups = [_by_case(files, volume_stem) for files in _reference_groups(reference)]
    if len(groups) > 1:
        groups = [group for group in groups if _matches(predictions, group)] or groups
    references = _merge(groups)
    named = {case: _lookup(predictions, case) for case in references}
    if not any(named.values()):
        raise _no_match(predictions, references, prediction)
    if prediction.is_file():
        named = {case: path for case, path in named.items() if path}
    return [FilePair(case, named[case], references[case]) for case in sorted(named)]


def unpaired_predictions(prediction: Path, pairs: Sequence[FilePair]) -> tuple[Path, ...]:
    """Predicted files that belong to no reference.

    Args:
        prediction: What was given to :func:`pair_files`.
        pairs: What it returned.
    """
    used = {pair.prediction for pair in pairs}
    return tuple(path for path in list_volumes(prediction) if path not in used) if prediction.is_dir() else ()


def find_labels(prediction: Path, reference: Path) -> LabelTable | None:
    """Label table of the prediction folder (``labels.json``), else of the dataset the references are in.

    Args:
        prediction: Predicted file or folder.
        reference: Reference file or folder; ``dataset.json`` or ``labels.json`` is looked for there and one folder
            above.

    Returns:
        None if there is no such file.

    Raises:
        VolsegError: If a file is there but holds no label table.
    """
    home = prediction if prediction.is_dir() else prediction.parent
    if (home / "labels.json").is_file():
        return label_table(read_json(home / "labels.json"), home / "labels.json")
    beside = reference if reference.is_dir() else reference.parent
    for folder in (beside, beside.resolve().parent):
        found = described_labels(read_description(folder))
        if found is not None:
            return found
    return None


def find_images(prediction: Path, pairs: Sequence[FilePair]) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """Image files of the cases: from ``predictions.json`` beside the predictions, else ``images*`` beside ``labels*``.

    Args:
        prediction: Predicted file or folder.
        pairs: The cases.

    Returns:
        Case id → one file per channel (cases without images are left out), and notes on what could not be read.
    """
    home = prediction if prediction.is_dir() else prediction.parent
    listed: dict[str, tuple[Path, ...]] = {}
    notes: tuple[str, ...] = ()
    record = home / "predictions.json"
    if record.is_file():
        try:
            listed = _listed_images(read_json(record), home)
        except (VolsegError, KeyError, TypeError) as error:
            notes = (f"{record}: expected a list of cases with their images, got {error!r}. Overlays may lack images.",)
    found = {
        pair.case: (listed.get(pair.prediction.name, ()) if pair.prediction else ()) or _images_beside(pair)
        for pair in pairs
    }
    return {case: images for case, images in found.items() if images}, notes


def _listed_images(content: Mapping[str, Any], home: Path) -> dict[str, tuple[Path, ...]]:
    """File name of the prediction → its images; relative paths start at the record's folder."""
    return {
        Path(entry["prediction"]).name: tuple(home / path for path in entry["images"])
        for entry in content["cases"]
        if entry.get("prediction")
    }


def _images_beside(pair: FilePair) -> tuple[Path, ...]:
    folder = pair.reference.resolve().parent
    images = folder.parent / folder.name.replace("labels", "images", 1)
    if images == folder or not images.is_dir():
        return ()
    for suffix in VOLUME_SUFFIXES:
        alone = images / f"{pair.case}{suffix}"
        if alone.is_file():
            return (alone,)
        channels = sorted(images.glob(f"{pair.case}_[0-9][0-9][0-9][0-9]{suffix}"))
        if channels:
            return tuple(channels)
    return ()


def _volumes(path: Path, what: str) -> list[Path]:
    files = [path] if path.is_file() else list_volumes(path)
    if not files:
        rule = f"label maps ({', '.join(VOLUME_SUFFIXES)})"
        raise VolsegError(sentence(f"{what} folder", rule, "none", "Check the path", file=path))
    return files


def _reference_groups(reference: Path) -> list[list[Path]]:
    folders = [reference / name for name in _LABEL_FOLDERS if (reference / name).is_dir()]
    groups = [files for files in map(list_volumes, folders) if files]
    return groups or [_volumes(reference, "reference")]


def _prediction_case(path: Path) -> str:
    return volume_stem(path).removesuffix(_CHANNEL)


def _by_case(files: Iterable[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        case = name(path)
        if case in found:
            got = f"{found[case].name} and {path.name}"
            raise DataError(
                sentence("label maps", "one file", got, "Remove or rename one", case=case, file=path.parent)
            )
        found[case] = path
    return found


def _merge(groups: Iterable[Mapping[str, Path]]) -> dict[str, Path]:
    return _by_case([path for group in groups for path in group.values()], volume_stem)


def _lookup(predictions: Mapping[str, Path], case: str) -> Path | None:
    return predictions.get(case) or predictions.get(case.removesuffix(_CHANNEL))


def _matches(predictions: Mapping[str, Path], references: Mapping[str, Path]) -> bool:
    return any(_lookup(predictions, case) for case in references)


def _no_match(predictions: Mapping[str, Path], references: Mapping[str, Path], folder: Path) -> VolsegError:
    wanted, got = (
        ", ".join([*sorted(names)[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
        for names in (references, predictions)
    )
    advice = "Give predictions the names of their references"
    return VolsegError(sentence("prediction names", f"those of the references ({wanted})", got, advice, file=folder))
