"""From images to label maps on their own grids."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config.settings import InferSettings
from pipeline.config.yaml_file import load_settings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import remove_leftovers, text_hash
from pipeline.core.labels import keep_values
from pipeline.core.machine import keep_freed_memory
from pipeline.core.progress import Progress, silent
from pipeline.core.signals import STOPS, StopRequest, stoppable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles, content_hashes
from pipeline.data.organ_masks import write_organs
from pipeline.data.prediction_inputs import Inputs, find_inputs
from pipeline.data.volume_file import split_source
from pipeline.data.volumes import read_image, read_label_map, write_label_map
from pipeline.engine.local import Batch
from pipeline.infer import predictor
from pipeline.infer.probability_maps import SoftPrediction
from pipeline.infer.roi import SearchRegion
from pipeline.model.folder import member_folders, read_card
from pipeline.stages.model_files import provenance
from pipeline.stages.prediction_files import (
    ENTROPY,
    PROBABILITIES,
    STATISTICS_FILES,
    Labels,
    Output,
    Place,
    chosen_labels,
    earlier_entries,
    earlier_statistics,
    measure,
    note_prediction,
    places,
    prediction_entry,
    require_own_files,
    soft_organs,
    why_failed,
    write_entries,
    write_labels,
    write_soft,
    write_statistics,
)

# Reading the next case and writing the last one while one is computed.

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


def overlapped(
    items: Sequence[T],
    read: Callable[[T], A],
    work: Callable[[A], B],
    write: Callable[[B], None],
    *,
    failed: Callable[[T, Exception], None],
    worked: Callable[[], None],
    stop: StopRequest,
) -> None:
    """Take every item through three steps, of which the first and the last have a thread of their own.

    At most one item is read ahead, and at most one waits to be written, so that memory does not grow with their number.
    An item that fails in any step does not end the others. What ends the work early (Ctrl-C, SIGTERM) is raised once
    the item that is being written has been written.

    Args:
        items: One per case.
        read: First step, in a thread.
        work: Second step, in this thread; a signal may end it at any place.
        write: Last step, in a thread.
        failed: Told the item and the error, in this thread.
        worked: Called after the second step of every item, also where one failed.
        stop: Whether someone asked for an end.

    Raises:
        KeyboardInterrupt, Stopped: If someone did.
    """

    def settle(writing: tuple[T, Future[None]] | None) -> None:
        if writing is not None:
            try:
                writing[1].result()
            except Exception as error:  # of the disk, say
                failed(writing[0], error)

    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        writing: tuple[T, Future[None]] | None = None
        coming = [reader.submit(read, item) for item in items[:1]]
        try:
            for number, item in enumerate(items):
                current = coming.pop()
                coming = [reader.submit(read, following) for following in items[number + 1 : number + 2]]
                try:
                    with stop.at_once():
                        made = work(current.result())
                except Exception as error:
                    failed(item, error)
                else:
                    before, writing = writing, None
                    settle(before)
                    writing = item, writer.submit(write, made)
                    del made
                del current  # and with it the image
                worked()
        finally:
            for future in coming:
                future.cancel()
            settle(writing)


# One case of a prediction: read and compared with what is there, segmented, written with all that belongs to it.


@dataclass(frozen=True)
class Prediction:
    """What all cases of a prediction share.

    Args:
        predictor: The model.
        model: Its folder.
        identity: Hash of all that a mask depends on beside its image.
        output: What to write.
        labels: Names and colours of it.
        places: Case id → where.
        out: Folder of the masks.
        entries: Entries of ``predictions.json`` by file name; kept up to date.
        statistics: Entries of ``statistics.json`` by file name; kept up to date.
    """

    predictor: Predictor
    model: Path
    identity: str
    output: Output
    labels: Labels
    places: Mapping[str, Place]
    out: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseRead:
    """A case before it is segmented.

    Args:
        files: Its files.
        hashes: Of their content.
        digest: Of all that its mask depends on.
        image: None if nothing is to be done with it.
        label_map: Its mask, if there is one already but not all that is to be made of it.
        kept: Whether its mask is there already, and what else only the network gives.
        same: Whether what is there is of the same image and model.
    """

    files: CaseFiles
    hashes: tuple[str, ...]
    digest: str
    image: Image | None
    label_map: LabelMap | None
    kept: bool
    same: bool


@dataclass(frozen=True)
class CaseSegmented:
    """A case to be written.

    Args:
        read: What was read, without what is no longer needed.
        entry: Its entry of ``predictions.json``.
        soft: Probabilities and entropy, where they are wanted.
    """

    read: CaseRead
    entry: dict[str, Any]
    soft: SoftPrediction | None = None


def read_case(run: Prediction, files: CaseFiles) -> CaseRead:
    """Read a case, as far as something is to be done.

    Raises:
        VolsegError: If a file cannot be used.
    """
    place, hashes = run.places[files.id], tuple(content_hashes(files))
    digest, entry = text_hash(run.identity, *hashes), run.entries.get(place.mask.name, {})
    same = place.mask.is_file() and entry.get("hash") == digest
    kept = same and _soft_there(run, place, entry)
    there = all((place.folder / name).is_file() for name in place.organ_files.values())
    split = not place.organ_files or (entry.get("organ_files") == list(place.organ_files.values()) and there)
    measured = run.statistics.get(place.mask.name, {}).get("hash") == digest or not run.output.statistics
    wanted = not (kept and measured)
    image = read_image(files.images, case=files.id) if wanted else None
    label_map = read_label_map(place.mask, case=files.id) if kept and not (split and measured) else None
    return CaseRead(files, hashes, digest, image, label_map, kept, same)


def segment_case(run: Prediction, read: CaseRead) -> CaseSegmented:
    """Segment a case that has no mask yet.

    Raises:
        DataError: If the image does not suit the model.
    """
    place = run.places[read.files.id]
    if read.kept or read.image is None:
        return CaseSegmented(read, dict(run.entries[place.mask.name]))
    origin, began = _origin(run.predictor), time.monotonic()
    label_map, soft, region = _segmented(run, read.image, read.files.id)
    if run.output.organs:
        label_map = LabelMap(keep_values(label_map.array, run.labels.table.values), label_map.grid)
    grid = label_map.grid
    cleaning = run.predictor.cleaning.to_json() if run.predictor.cleaning else None
    entry = prediction_entry(read.files, place.mask.name, cleaning) | {
        "organs": list(run.output.organs) or None,
        "inputs": dict(zip(map(str, read.files.files), read.hashes, strict=True)),
        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
        "model": {"folder": str(run.model.resolve()), "hash": run.identity},
        "roi": None if region is None else region.to_json(),
        "settings": [member.settings.model_dump(mode="json") for member in run.predictor.members],
        "provenance": origin | {"seconds": round(time.monotonic() - began, 3)},
    }
    if soft is not None:
        entry["confidence"] = {name: soft.confidence.get(name) for name in run.labels.table.targets}
    if read.same:
        earlier = run.entries[place.mask.name]
        entry |= {name: earlier[name] for name in ("organ_files", "soft_files") if name in earlier}
    image = read.image if run.output.statistics else None
    return CaseSegmented(replace(read, image=image, label_map=label_map), entry, soft)


def write_case(run: Prediction, made: CaseSegmented) -> None:
    """Write what a case gave: its mask, a file per organ, its statistics and its entry.

    The entry is written first without its hash, so that a killed run knows its own file, and last with it.

    Raises:
        VolsegError: If something cannot be written.
    """
    read, place = made.read, run.places[made.read.files.id]
    if read.label_map is None:
        return
    like, organ_files = split_source(read.files.images[0])[0], list(place.organ_files.values())
    entry = made.entry | ({"organ_files": organ_files} if organ_files else {})
    if made.soft is not None:
        files = {file.relative_to(run.out).as_posix() for file in place.soft.files}
        entry["soft_files"] = sorted(files.union(entry.get("soft_files", ())))
        _take_over(run, place.mask.name, files)
    if not read.same:
        _remove_earlier(run, place)
    note_prediction(run.out, run.entries, entry)
    if not read.kept:
        write_label_map(read.label_map, place.mask, like=like, legend=run.labels.legend)
    if place.organ_files:
        write_organs(read.label_map, run.labels.table, place.folder, place.organ_files, run.labels.colors, like=like)
    if made.soft is not None:
        write_soft(made.soft, place.soft, like=like)
    if run.output.statistics and read.image is not None:
        organs = measure(read.label_map, run.labels.table, read.image, run.predictor.card.plan.channels)
        about = {"case": read.files.id, "prediction": place.mask.name, "hash": read.digest}
        run.statistics[place.mask.name] = {**about, "organs": organs}
    note_prediction(run.out, run.entries, {**entry, "hash": read.digest})


def _soft_there(run: Prediction, place: Place, entry: Mapping[str, Any]) -> bool:
    """Whether an earlier run wrote all that is wanted beside the winner of every voxel."""
    if not run.output.soft:
        return True
    known = set(entry.get("soft_files", ()))
    there = all(file.is_file() and file.relative_to(run.out).as_posix() in known for file in place.soft.files)
    return there and "confidence" in entry


def _segmented(run: Prediction, image: Image, case: str) -> tuple[LabelMap, SoftPrediction | None, SearchRegion | None]:
    """The mask, how sure the model is if that is wanted, and where it looked if that was not everywhere."""
    output, regions = run.output, list[SearchRegion]()
    if not output.soft:
        label_map = run.predictor.predict(image, case, regions.append)
        return label_map, None, regions[0] if regions else None
    soft = run.predictor.predict_soft(image, output.probabilities, entropy=output.entropy, case=case, scratch=run.out)
    return soft.label_map, soft, None


def _origin(predictor: Predictor) -> dict[str, str]:
    """Versions, device and date; of several devices all."""
    devices = dict.fromkeys(str(device) for member in predictor.members for device in member.devices)
    several = {"devices": ", ".join(devices)} if len(devices) > 1 else {}
    return provenance(predictor.members[0].device) | several


def _remove_earlier(run: Prediction, place: Place) -> None:
    """Remove what was made of a mask of another image or model."""
    entry = run.entries.get(place.mask.name, {})
    for name in entry.get("organ_files") or ():
        (place.folder / Path(name).name).unlink(missing_ok=True)
    for name in entry.get("soft_files") or ():
        path = run.out / name
        if path.resolve().is_relative_to(run.out.resolve()):  # the file can be edited
            path.unlink(missing_ok=True)


def _take_over(run: Prediction, mask: str, files: set[str]) -> None:
    """No other entry may say that these are its soft outputs, as that of a mask in another format would."""
    for name, entry in run.entries.items():
        if name != mask and files.intersection(entry.get("soft_files", ())):
            run.entries[name] = {**entry, "soft_files": sorted(set(entry["soft_files"]) - files)}


def infer_settings(model: Path, overrides: Sequence[str] = ()) -> InferSettings:
    """Section ``infer`` that the model (of an ensemble, its first member) was trained with, some keys overridden.

    Args:
        model: Model folder.
        overrides: ``infer.key=value``.

    Raises:
        ConfigError: If a key or value is wrong, or is not of this section.
    """
    own = read_card(member_folders(model)[0]).settings.infer
    changed = load_settings(None, overrides)
    problems = [
        f"--set {text}: expected infer.key=value, got another section. Only these can change after training."
        for text in overrides
        if not text.startswith("infer.")
    ]
    if problems:
        raise ConfigError(problems, str(model))
    names = {text.partition("=")[0].removeprefix("infer.").strip() for text in overrides}
    return own.model_copy(update={name: getattr(changed.infer, name) for name in names})


def predict(
    model: Path,
    inputs: Sequence[Path | str],
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    device: str | None = None,
    settings: InferSettings | None = None,
    max_memory_gb: float | None = None,
    output: Output | None = None,
    progress: Progress = silent,
    on_stop: Callable[[Batch], None] | None = None,
) -> Batch:
    """Load a model and segment files, folders, patterns and lists with it.

    Args:
        model: Model folder.
        inputs: As for :func:`predict_files`, and so are ``out``, ``output``, ``progress`` and ``on_stop``.
        out: Folder for the masks.
        folds: Folds to average; by default all that are trained.
        device: Name of the device, or of several, as for :meth:`~pipeline.infer.predictor.Predictor.load`.
        settings: Section ``infer``; by default the model's own.
        max_memory_gb: Memory, in units of 1e9 bytes, that the logits of an image may take; by default what is free. An
            image that needs more fails alone.
        output: What to write.
        progress: Told after every case that was computed.
        on_stop: Told what became of the cases when the work is ended.

    Raises:
        VolsegError: If there is no trained model; or as :func:`predict_files`.
        KeyboardInterrupt, Stopped: As there.
    """
    predictor = Predictor.load(model, folds=folds, device=device, settings=settings, max_memory_gb=max_memory_gb)
    return predict_files(predictor, inputs, out, output=output, progress=progress, on_stop=on_stop)


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    output: Output | None = None,
    progress: Progress = silent,
    on_stop: Callable[[Batch], None] | None = None,
) -> Batch:
    """Segment files, folders, patterns and lists; every mask keeps its input's name.

    Beside the masks stand ``labels.json`` and ``labels.txt`` (what the values mean, and their colours) and
    ``predictions.json``: for each mask its image, how it came about and on which grid it is. A mask made from the same
    image by the same model is kept. The next image is read, and the last mask written, while one is computed.

    Args:
        predictor: A model that was loaded from its folder; it may be used by other threads at the same time.
        inputs: See :func:`~pipeline.data.prediction_inputs.find_inputs`.
        out: Folder for the masks; no two calls may write to one at the same time.
        output: What to write; by default a mask per case in its image's format.
        progress: Told after every case that was computed; those that are kept do not count.
        on_stop: Told what became of the cases when Ctrl-C or SIGTERM ends the work.

    Raises:
        VolsegError: If the predictor has no folder, there is nothing to segment, two inputs would be written to one
            file, an organ is not known, or a file is in the way.
        KeyboardInterrupt, Stopped: If someone ended the work. What is finished is noted, and no file half written.
    """
    run, found = _planned(predictor, inputs, Path(out), output or Output())
    if found.cases:
        remove_leftovers(run.out)  # of a run that was killed
        for name in (PROBABILITIES, ENTROPY):
            remove_leftovers(run.out / name, deep=True)
        write_entries(run.out, run.entries)  # first: it marks the folder as ours
        write_labels(run.out, run.labels)
    with keep_freed_memory():
        batch, stopped = _work(run, found.cases, progress)
    batch = Batch(batch.done, batch.kept, tuple(sorted((*found.failed, *batch.failed))), (*found.notes, *batch.notes))
    if stopped is not None:
        if on_stop is not None:
            on_stop(batch)
        raise stopped
    return batch


def _planned(
    predictor: Predictor, inputs: Sequence[Path | str], out: Path, output: Output
) -> tuple[Prediction, Inputs]:
    """What is to be done, checked before anything is written."""
    if predictor.folder is None:
        rule, got = "one that was loaded from a model folder", "one of networks in memory"
        raise VolsegError(sentence("predictor", rule, got, "Take Predictor.load, or call predict for each image"))
    labels = chosen_labels(predictor.labels, output.organs)
    if output.soft:
        predictor.require_whole_images()
    organs = soft_organs(predictor.labels, labels.table, output.probabilities)
    output = replace(output, probabilities=organs)
    found = find_inputs(inputs, len(predictor.card.plan.channels))
    entries = earlier_entries(out)
    where = places(found.cases, out, output, labels.table, predictor.labels)
    files = ("labels.json", "labels.txt", *(STATISTICS_FILES if output.statistics else ()))
    require_own_files(out, where.values(), files, entries, labels.table)
    measured = earlier_statistics(out) if entries else {}
    identity = _identity(predictor, output.organs)
    return Prediction(predictor, predictor.folder, identity, output, labels, where, out, entries, measured), found


def _work(run: Prediction, cases: Sequence[CaseFiles], progress: Progress) -> tuple[Batch, BaseException | None]:
    """Take all cases through reading, segmenting and writing; also what ended it early, if something did."""
    done: list[str] = []
    kept: list[str] = []
    failed: list[tuple[str, str]] = []
    count = {"seen": 0, "kept": 0}
    stopped: BaseException | None = None

    def segment(read: CaseRead) -> CaseSegmented:
        count["kept"] += read.kept
        return segment_case(run, read)

    def write(made: CaseSegmented) -> None:
        write_case(run, made)
        (kept if made.read.kept else done).append(made.read.files.id)

    def fail(files: CaseFiles, error: Exception) -> None:
        failed.append((files.id, why_failed(files.id, error)))

    def worked() -> None:  # cases that are kept take no time, and would make the time left look short
        count["seen"] += 1
        progress(count["seen"] - count["kept"], len(cases) - count["kept"], "predict")

    try:
        with stoppable() as stop:
            overlapped(cases, partial(read_case, run), segment, write, failed=fail, worked=worked, stop=stop)
    except STOPS as error:
        stopped = error
    left = len(cases) - len(done) - len(kept) - len(failed)
    notes = [f"{left} of {len(cases)} cases were not reached."] if left else []
    try:
        _finish_statistics(run)
    except VolsegError as error:
        failed.append(("statistics", str(error)))
    return Batch(tuple(done), tuple(kept), tuple(failed), tuple(notes)), stopped


def _finish_statistics(run: Prediction) -> None:
    """Write the statistics of all masks in the folder; those of masks that were replaced since are dropped."""
    current = {
        name: _with_confidence(entry, run.entries[name].get("confidence", {}))
        for name, entry in run.statistics.items()
        if entry.get("hash") and run.entries.get(name, {}).get("hash") == entry["hash"]
    }
    if run.output.statistics or current != run.statistics:
        write_statistics(run.out, current, run.predictor.card.plan.channels)


def _with_confidence(entry: Mapping[str, Any], known: Mapping[str, float | None]) -> dict[str, Any]:
    """The statistics of a mask, and how sure the networks were of its organs."""
    organs = {
        name: dict(organ) | ({"confidence": known[name]} if name in known else {})
        for name, organ in entry["organs"].items()
    }
    return {**entry, "organs": organs}


def _identity(predictor: Predictor, organs: Sequence[str]) -> str:
    """Hash of all that a mask depends on beside its image."""
    parts = [json.dumps(predictor.cleaning.to_json())]
    for member in predictor.members:
        parts += [*member.sources, member.settings.model_dump_json()]
    return text_hash(*parts, *([json.dumps(sorted(organs))] if organs else []))


# The predictor of the public API: one that also takes files, folders, patterns and lists.


class Predictor(predictor.Predictor):
    """A trained model, or an ensemble of several, ready to segment images and files.

    It may be used by several threads at the same time.

    Example:
        >>> predictor = Predictor.load("model")                       # doctest: +SKIP
        >>> label_map = predictor.predict(read_image("scan.nii.gz"))  # doctest: +SKIP
        >>> batch = predictor.predict_files(["scans"], "masks")       # doctest: +SKIP
    """

    def predict_files(
        self,
        inputs: Sequence[Path | str],
        out: Path | str,
        *,
        output: Output | None = None,
        progress: Progress = silent,
    ) -> Batch:
        """Segment files, folders, patterns and lists, as ``volseg predict`` does, with the model that is loaded.

        Args:
            inputs: As for :func:`~pipeline.stages.predict.predict_files`, and so is all else.
            out: Folder for the masks; no two calls may write to one at the same time.
            output: What to write; by default a mask per case in its image's format.
            progress: Told after every case that was computed.

        Returns:
            Which cases were done, kept and failed; a case that fails ends no other.

        Raises:
            VolsegError: As there.
        """
        return predict_files(self, inputs, out, output=output, progress=progress)
