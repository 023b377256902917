"""From predictions and references to scores: ``scores.csv`` and ``summary.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import AllFailedError, VolsegError, sentence
from pipeline.core.files import OutputFolder, text_hash, write_json
from pipeline.core.labels import LabelTable
from pipeline.core.signals import Progress, silent
from pipeline.core.together import RunsTogether
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.folder_files import list_volumes
from pipeline.data.layout_names import LAYOUTS
from pipeline.data.layouts import open_dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.volume_file import volume_stem, volume_suffix
from pipeline.data.volumes import is_dicom_label, read_grid, write_label_map
from pipeline.engine.local import collect, default_jobs, map_cases, open_engine
from pipeline.evaluate.label_choice import MatchLabels, choose_labels
from pipeline.evaluate.metrics import Measures
from pipeline.evaluate.pairing import LABEL_FOLDERS, FilePair, is_list, listed_maps, pair_files
from pipeline.evaluate.results import Evaluation, joined, read_evaluation, write_evaluation
from pipeline.evaluate.scoring import evaluate as score
from pipeline.evaluate.summary import read_metadata, summarize_subgroups
from pipeline.stages.memory import READING_WORKER_BYTES

# Reference label maps of datasets that keep a mask per organ, so that predictions can be scored against them.

_RECORD = "references.json"  # names of the label maps that are ours


@dataclass(frozen=True)
class ReferenceTask:
    """One reference to write, as it travels to a worker."""

    files: CaseFiles
    target: Path


def merged_references(
    predictions: Path, references: Path, out: Path, jobs: int | None, progress: Progress, runs: RunsTogether
) -> tuple[Path, list[tuple[str, str]]]:
    """Write the label maps of a dataset whose references are organ masks, or DICOM.

    Of a dataset that fixes its split, only the parts count of which a case was predicted.

    Returns:
        ``out`` with one label map per case and ``labels.json``, and (case id, sentence) of those that failed; or
        ``references`` itself if it is no such dataset.
    """
    dataset = _opened(references)
    if dataset is None:
        return references, []
    predicted = {volume_stem(file) for file in ([predictions] if predictions.is_file() else list_volumes(predictions))}
    labelled = [files for files in (*dataset.cases, *dataset.tests) if files.organs or _is_dicom(files)]
    parts = {files.split for files in labelled if files.id in predicted}
    tasks = [
        ReferenceTask(files, out / f"{files.id}{(files.organs and volume_suffix(files.organs[0][1])) or '.nii.gz'}")
        for files in labelled
        if not parts or files.split in parts
    ]
    with runs.alone():
        _remove_earlier(out, {task.target.name for task in tasks}, runs)
        write_json(out / "labels.json", dataset.labels.to_json())
    with open_engine(jobs or default_jobs(len(tasks))) as run:
        _, failed = collect(run, write_reference, {task.files.id: task for task in tasks}, progress, "references")
    if failed and len(failed) == len(tasks):
        raise VolsegError(f"All {len(tasks)} references failed. The first: {failed[0][1]}")
    return out, failed


def write_reference(task: ReferenceTask) -> None:
    """Merge the organ masks of a case, or read its DICOM labels, and write the label map."""
    like = task.files.organs[0][1] if task.files.organs else None
    write_label_map(read_reference(task.files), task.target, like=like)


def _remove_earlier(out: Path, names: set[str], runs: RunsTogether) -> None:
    """Remove the label maps of another dataset, which would count as missed, and note those about to be written."""
    folder = OutputFolder(out, _RECORD)
    if runs.others():  # theirs are needed
        names = names | folder.listed("files")
    folder.remove(folder.listed("files") - names)
    write_json(folder.record, {"files": sorted(names)})


def _opened(references: Path) -> Dataset | None:
    for layout in (name for name, known in LAYOUTS.items() if known.organ_masks and references.is_dir()):
        try:
            return open_dataset(references, layout)
        except VolsegError:  # not of this layout; what else is wrong shows when label maps are looked for
            continue
    named = False
    with suppress(VolsegError):  # as above
        named = _names_dicom(references)
    return open_dataset(references) if named else None


def _is_dicom(files: CaseFiles) -> bool:
    return files.label is not None and is_dicom_label(files.label)


def _names_dicom(references: Path) -> bool:
    """Whether a dataset folder, or a list of cases, has DICOM labels: of folders the first file is looked at."""
    if is_list(references):
        return any(map(is_dicom_label, listed_maps(references, "reference").values()))
    folders = (references / name for name in LABEL_FOLDERS)
    return any(map(is_dicom_label, (file for home in folders for file in list_volumes(home, dicom_files=True)[:1])))


_BYTES_PER_VOXEL = 16  # two label maps, twice each, and the faces of their organs


@dataclass(frozen=True)
class Meaning:
    """What label values mean, where a user says so.

    Args:
        labels: File with the label table.
        match: Whether labels of predictions and references belong together by value or by name.
        remap: Label values of the predictions and what they stand for, each ``from=to`` or a file of these.
    """

    labels: Path | None = None
    match: MatchLabels | None = None
    remap: tuple[str, ...] = ()


def evaluate(
    predictions: Path | str,
    references: Path | str,
    out: Path | str,
    *,
    labels: LabelTable | None = None,
    measures: Measures | None = None,
    meaning: Meaning | None = None,
    metadata: Path | str | None = None,
    by: Sequence[str] = (),
    jobs: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score label maps against references: ``scores.csv`` with every row, ``summary.json`` with the statistics.

    Of a dataset that keeps a mask per organ, the label maps they make are written to ``references/`` first.

    Args:
        predictions: Predicted label map, folder or list of cases.
        references: Reference label map, folder of them, dataset folder or list of cases.
        out: Folder for the scores.
        labels: The organs; by default found beside the predictions or references.
        measures: What to measure; by default overlap, volumes and exact surface distances.
        meaning: What label values mean.
        metadata: CSV file of what is known about the cases: then there are scores by its columns.
        by: Which columns; by default those of few values.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        The summary.

    Raises:
        VolsegError: If there is nothing to score, or label tables contradict each other.
        AllFailedError: If no case could be scored; the scores and the reasons are written.
    """
    predictions, references, out = Path(predictions), Path(references), Path(out)
    known = None if metadata is None else read_metadata(Path(metadata))  # first: a wrong path costs no scoring
    measures = measures or Measures()
    if measures.probabilities is not None and not measures.probabilities.is_dir():
        got, advice = "nothing there", "Check the path"
        raise VolsegError(sentence("probabilities", "a folder", got, advice, file=measures.probabilities))
    asked = text_hash(str(references.resolve()), json.dumps(measures.to_json()))
    with RunsTogether(out, "evaluation") as runs:
        with runs.alone():
            rule, advice = "scores of the same references and measures", "Use another output folder"
            runs.require(rule, "others being taken", advice, asked=asked)
            runs.tell(asked=asked)
        # Masks per organ become label maps first, since predictions are compared with these.
        references, failed = merged_references(predictions, references, out / "references", jobs, progress, runs)
        pairs = pair_files(predictions, references)
        notes: tuple[str, ...] = ()
        if labels is None:
            labels, measures, notes = _labels(predictions, references, measures, meaning or Meaning())
        with open_engine(jobs or default_jobs(len(pairs)), READING_WORKER_BYTES) as run:
            mapped = map_cases(run, progress, "evaluate", _case_bytes)
            result = score(predictions, references, labels, mapped, measures, notes)
        result = replace(result, failures=(*result.failures, *failed))
        with runs.alone():
            result, said = _with_earlier(result, out, runs)
            extra = {} if known is None else {"subgroups": summarize_subgroups(result.rows, known, by)}
            summary = write_evaluation(result, out, extra=extra)
            runs.tell(scored=True)
    summary = summary | {"notes": [*summary["notes"], *said, *runs.notes]}
    if exit_code(summary) == 3:
        raise AllFailedError(summary, result.failures)
    return summary


def _with_earlier(result: Evaluation, out: Path, runs: RunsTogether) -> tuple[Evaluation, tuple[str, ...]]:
    """The scores with those of runs that were at work at the same time; else a note on others that are replaced."""
    try:
        there = read_evaluation(out)
    except VolsegError:  # none, or damaged: replaced
        return result, ()
    if not any(other.get("scored") for other in runs.together()):
        gone = sorted({case.id for case in there.cases} - {case.id for case in result.cases})
        if not gone:
            return result, ()
        advice = "Cases are scored together by one list, or by runs that are at work at the same time."
        return result, (f"{out}: replaced the scores of {len(gone)} other cases, e.g. {gone[0]}. {advice}",)
    return joined(there, result), ()


def exit_code(summary: Mapping[str, Any]) -> int:
    """Exit code of an evaluation: 0 all fine, 2 some cases could not be scored, 3 none could."""
    # Cases whose references could not be made from their masks are among the failures alone.
    failed, cases = ({entry["case"] for entry in summary[key]} for key in ("failures", "cases"))
    return 0 if not failed else 2 if cases - failed else 3


def _labels(
    predictions: Path, references: Path, measures: Measures, meaning: Meaning
) -> tuple[LabelTable | None, Measures, tuple[str, ...]]:
    """The label table, what is measured with the predictions' values replaced by its, and notes."""
    chosen = choose_labels(predictions, references, meaning.labels, meaning.match, meaning.remap)
    return chosen.labels, replace(measures, remap=chosen.remap, unscored=chosen.unscored), chosen.notes


def _case_bytes(pair: FilePair) -> int:
    """Memory to score a case, by the header of its reference."""
    return _BYTES_PER_VOXEL * read_grid(pair.reference).voxels
