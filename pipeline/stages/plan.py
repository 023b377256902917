"""From a dataset folder to its fingerprint and plan."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.settings import Settings
from pipeline.core.files import signature, write_json
from pipeline.core.progress import Progress, silent
from pipeline.data.layouts import open_dataset
from pipeline.engine.local import Batch, default_jobs, open_engine
from pipeline.preprocess.fingerprint import dataset_fingerprint
from pipeline.preprocess.plan_file import PLAN_FILE, write_plan
from pipeline.report.fingerprint_page import write_fingerprint_page
from pipeline.stages.memory import READING_WORKER_BYTES
from pipeline.stages.prepare import fresh_plan, reading_jobs, require_fitting, take_fingerprints

PAGE_FILE = "fingerprint.html"
"""The page that shows what was measured."""


def plan(
    dataset: Path,
    out: Path,
    settings: Settings,
    *,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Batch:
    """Look at a dataset and plan, without preparing anything.

    Writes what was measured as ``fingerprint.json`` and as a page, ``fingerprint.html``, and the plan as ``plan.yaml``.

    Args:
        dataset: Dataset folder or datalist.
        out: Folder for the three files; those that are there are replaced.
        settings: Section ``preprocess``.
        layout: Name of the dataset's layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        Which cases could be used.

    Raises:
        VolsegError: If there is no dataset, or no usable case.
    """
    opened = open_dataset(dataset, layout)
    require_fitting(opened, out)
    workers = reading_jobs(opened, jobs or default_jobs(len(opened.cases)))
    with open_engine(workers, READING_WORKER_BYTES, light=True) as run:
        prints, failed = take_fingerprints(opened, settings.preprocess, run, progress)
        planned = fresh_plan(opened, prints, settings.preprocess, run)
    found = dataset_fingerprint(opened, prints, orientation=planned.orientation)
    write_json(out / "fingerprint.json", found)
    write_plan(planned, out / PLAN_FILE)
    write_fingerprint_page(
        found,
        out / PAGE_FILE,
        failures=sorted(failed),
        class_weights=planned.class_weights,
        why=planned.reasons["class_weights"],
        **signature(),
    )
    return Batch(tuple(found.id for found in prints), (), tuple(sorted(failed)))
