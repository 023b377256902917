"""Reference label maps of datasets that keep a mask per organ, so that predictions can be scored against them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, write_json
from pipeline.data.case_files import CaseFiles
from pipeline.data.layout_readers import list_volumes
from pipeline.data.layouts import Dataset, open_dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.volume_file import volume_stem, volume_suffix
from pipeline.data.volumes import write_label_map
from pipeline.engine import default_jobs, open_engine
from pipeline.stages.batch import Progress, collect

__all__ = ["ReferenceTask", "merged_references", "write_reference"]

_RECORD = "references.json"  # names of the label maps that are ours
_LAYOUTS = ("organs", "drishti")  # those that have a mask per organ


@dataclass(frozen=True)
class ReferenceTask:
    """One reference to write, as it travels to a worker."""

    files: CaseFiles
    target: Path


def merged_references(
    predictions: Path, references: Path, out: Path, jobs: int | None, progress: Progress
) -> tuple[Path, list[tuple[str, str]]]:
    """Write the label maps of a dataset whose references are organ masks.

    Of a dataset that fixes its split, only the parts count of which a case was predicted.

    Args:
        predictions: Predicted label map or folder.
        references: Anything that can be scored against.
        out: Folder to write to.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        ``out`` with one label map per case and ``labels.json``, and (case id, sentence) of those that failed; or
        ``references`` itself if it is no such dataset.
    """
    dataset = _opened(references)
    if dataset is None:
        return references, []
    predicted = {volume_stem(file) for file in ([predictions] if predictions.is_file() else list_volumes(predictions))}
    labelled = [files for files in (*dataset.cases, *dataset.tests) if files.organs]
    parts = {files.split for files in labelled if files.id in predicted}
    tasks = [
        ReferenceTask(files, out / f"{files.id}{volume_suffix(files.organs[0][1])}")
        for files in labelled
        if not parts or files.split in parts
    ]
    _remove_earlier(out, {task.target.name for task in tasks})
    write_json(out / "labels.json", dataset.labels.to_json())
    with open_engine(jobs or default_jobs(len(tasks))) as run:
        _, failed = collect(run, write_reference, tasks, [task.files.id for task in tasks], progress, "references")
    return out, failed


def write_reference(task: ReferenceTask) -> None:
    """Merge the organ masks of a case and write the label map.

    Raises:
        VolsegError: If a mask cannot be used, or the label map not be written.
    """
    write_label_map(read_reference(task.files), task.target, like=task.files.organs[0][1])


def _remove_earlier(out: Path, names: set[str]) -> None:
    """Remove the label maps of another dataset, which would count as missed, and note those about to be written."""
    record = out / _RECORD
    for name in read_json(record)["files"] if record.is_file() else ():
        if name not in names:
            (out / Path(name).name).unlink(missing_ok=True)
    write_json(record, {"files": sorted(names)})


def _opened(references: Path) -> Dataset | None:
    for layout in _LAYOUTS if references.is_dir() else ():
        try:
            return open_dataset(references, layout)
        except VolsegError:  # not of this layout; what else is wrong shows when label maps are looked for
            continue
    return None
