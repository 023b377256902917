"""From images to label maps on their own grids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import InferSettings, load_settings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import remove_leftovers, text_hash
from pipeline.core.heap import keep_freed_memory
from pipeline.data.case_files import CaseFiles
from pipeline.data.inputs import Inputs, find_inputs
from pipeline.infer.predictor import Predictor
from pipeline.model.folder import member_folders, read_card
from pipeline.stages.batch import Batch, Progress, quiet
from pipeline.stages.overlapped import overlapped
from pipeline.stages.predict_case import CaseRead, CaseSegmented, Prediction, read_case, segment_case, write_case
from pipeline.stages.prediction_output import Output, chosen_labels, places, require_own_files, write_labels
from pipeline.stages.prediction_soft import ENTROPY, PROBABILITIES, soft_organs
from pipeline.stages.prediction_statistics import STATISTICS_FILES, earlier_statistics, write_statistics
from pipeline.stages.predictions import earlier_entries, why_failed, write_entries
from pipeline.train.stop import STOPS, stoppable

__all__ = ["infer_settings", "predict", "predict_files"]


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
    progress: Progress = quiet,
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
    progress: Progress = quiet,
    on_stop: Callable[[Batch], None] | None = None,
) -> Batch:
    """Segment files, folders, patterns and lists; every mask keeps its input's name.

    Beside the masks stand ``labels.json`` and ``labels.txt`` (what the values mean, and their colours) and
    ``predictions.json``: for each mask its image, how it came about and on which grid it is. A mask made from the same
    image by the same model is kept. The next image is read, and the last mask written, while one is computed.

    Args:
        predictor: A model that was loaded from its folder; it may be used by other threads at the same time.
        inputs: See :func:`~pipeline.data.inputs.find_inputs`.
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
