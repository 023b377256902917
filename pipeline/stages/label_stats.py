"""Volumes, intensities and cut-off organs of label maps that have no reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.core.documents import read_json
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence
from pipeline.core.signals import Progress, silent
from pipeline.core.tables import write_csv
from pipeline.data.folder_files import group_channels, list_volumes, or_unread
from pipeline.data.label_tables import label_table
from pipeline.data.volume_file import VOLUME_SUFFIXES, volume_stem
from pipeline.data.volumes import doubtful, doubtful_note, read_grid, read_image, read_label_map
from pipeline.engine.local import Batch, collect, default_jobs, open_engine
from pipeline.evaluate.label_choice import find_labels
from pipeline.evaluate.organ_statistics import (
    OrganStatistics,
    organ_statistics,
    statistics_columns,
    statistics_entry,
    statistics_row,
)
from pipeline.stages.memory import READING_WORKER_BYTES

_BYTES_PER_VOXEL = 40  # the label map, the image, and both as the widest type of some planes


@dataclass(frozen=True)
class StatsTask:
    """One label map to measure, and its image's first channel if there is one."""

    case: str
    path: Path
    image: Path | None = None


def label_stats(
    label_maps: Path,
    out: Path,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
) -> tuple[Batch, tuple[OrganStatistics, ...]]:
    """Measure label maps and write ``stats.csv``, one row per case and organ, with the columns of a prediction's.

    Args:
        label_maps: A label map or a folder of them.
        out: Folder to write to.
        images: The image, or a folder of images named as their label maps (``_0000`` may follow); then intensities are
            measured too.
        labels: JSON file of label names; by default ``labels.json`` or ``dataset.json`` in the folder or the one above,
            else every value found is an organ called ``label_<value>``.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        What became of the cases, and the rows.

    Raises:
        VolsegError: If there is nothing to measure, or the folder cannot be written to.
        AllFailedError: If no case could be measured.
    """
    tasks = _tasks(label_maps, images)
    table = label_table(read_json(labels), labels) if labels is not None else find_labels(label_maps, label_maps)
    with open_engine(jobs or default_jobs(len(tasks)), READING_WORKER_BYTES) as run:
        work = partial(measure_case, table)
        found, failed = collect(run, work, {task.case: task for task in tasks}, progress, "measure", _task_bytes)
    channels = () if images is None else ("image",)
    rows = [(task, row) for task in tasks if task.case in found for row in found[task.case][0]]
    lines = [
        statistics_row(task.case, row.name, statistics_entry(row, channels if task.image else ()), channels)
        for task, row in rows
    ]
    write_csv(out / "stats.csv", [statistics_columns(channels), *lines])
    notes = [] if table else ["No label table found: organs are named after their label values."]
    without = [task.case for task in tasks if task.image is None and images is not None]
    if without:
        notes.append(f"{len(without)} label maps have no image of their name, e.g. {without[0]}: no intensities.")
    done = tuple(task.case for task in tasks if task.case in found)
    notes += doubtful_note([found[case][1] for case in done])
    batch = Batch(done, (), tuple(sorted(failed)), tuple(notes))
    return batch.require_some((batch, ())), tuple(row for _, row in rows)


def measure_case(labels: LabelTable | None, task: StatsTask) -> tuple[tuple[OrganStatistics, ...], str | None]:
    """Measure one label map, with the intensities of its image if there is one; and why its place is in doubt."""
    label_map = read_label_map(task.path, case=task.case)
    image = read_image(task.image, case=task.case) if task.image is not None else None
    table = labels or LabelTable({value: f"label_{value}" for value in label_map.values() if value > 0})
    return organ_statistics(label_map, table, image), doubtful([task.path])


def _tasks(label_maps: Path, images: Path | None) -> list[StatsTask]:
    for what, path in (("label maps", label_maps), ("images", images)):
        if path is not None and (gone := absence(path)):
            raise VolsegError(sentence(what, "a file or folder", *gone, file=path))
    files = [label_maps] if label_maps.is_file() else list_volumes(label_maps)
    if not files:
        rule, found = f"label maps ({', '.join(VOLUME_SUFFIXES)})", or_unread(label_maps, "none", "Check the path")
        raise VolsegError(sentence("label maps", rule, *found, file=label_maps))
    if images is not None and images.is_file() and label_maps.is_file():
        return [StatsTask(volume_stem(label_maps), label_maps, images)]
    volumes = [] if images is None else [images] if images.is_file() else list_volumes(images)
    known = {name: channels[min(channels)] for name, channels in group_channels(volumes).items()}
    stems = {volume_stem(path): path for path in volumes} | known
    return [StatsTask(volume_stem(path), path, stems.get(volume_stem(path).removesuffix("_0000"))) for path in files]


def _task_bytes(task: StatsTask) -> int:
    return _BYTES_PER_VOXEL * read_grid(task.path).voxels
