"""From a dataset with problems to a repaired copy, every change logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.core.files import OutputFolder, remove_leftovers, write_json
from pipeline.core.signals import Progress, silent
from pipeline.core.tables import write_csv
from pipeline.data.check import CaseFacts, CheckReport, check_dataset, lost_case
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.label_tables import read_remap
from pipeline.data.layouts import open_dataset
from pipeline.data.repair_case import RepairOutcome, RepairTask, planned_cases, repair_case, would_repair
from pipeline.data.repair_volumes import REPAIRABLE, Change, LabelRules
from pipeline.data.volume_file import split_source
from pipeline.engine.local import Run, collect, default_jobs, map_cases, open_engine
from pipeline.stages.convert import require_apart
from pipeline.stages.memory import READING_WORKER_BYTES, check_bytes, rewrite_bytes

LOG_FILE = "fixes.json"
"""Every change and every case left out; the record of the folder."""


@dataclass(frozen=True)
class Repair:
    """What became of a dataset.

    Args:
        out: Folder of the copy.
        changes: Every repair, by case.
        copied: Ids of cases that were copied as they are.
        repaired: Ids of cases that were repaired.
        kept: How many of both an earlier run had written already.
        left_out: Case id and one sentence for each case that could not be repaired.
        report: What ``volseg check`` says of the copy; None if no labelled case is left.
    """

    out: Path
    changes: tuple[Change, ...]
    copied: tuple[str, ...]
    repaired: tuple[str, ...]
    kept: int
    left_out: tuple[tuple[str, str], ...]
    report: CheckReport | None

    @property
    def exit_code(self) -> int:
        """0 if every case is in the copy, without errors; 2 if some were left out, 3 if no labelled one is left."""
        return 3 if self.report is None else max(self.report.exit_code, 2 if self.left_out else 0)


def repair(
    dataset: Path,
    out: Path,
    *,
    remap: Sequence[str] = (),
    image_grid: bool = False,
    label_header: bool = False,
    keep_header_text: bool = False,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Repair:
    """Write a repaired copy of a dataset.

    The copy is a datalist: ``datalist.json`` with names, channels, groups and splits, ``images/``, ``labels/``. Sound
    files are copied, without the free text of their headers. ``fixes.json`` and ``fixes.csv`` list every change and
    every case left out. A later run does what is missing or changed.

    Args:
        dataset: Dataset folder or datalist; nothing in it is touched.
        out: Folder of the copy: a new one, or that of an earlier repair of this dataset.
        remap: What unknown label values become, see :func:`pipeline.data.label_tables.read_remap`.
        image_grid: Label maps of the image's shape lie on its grid, whatever their header says.
        label_header: Other label maps lie where their header says, even where nothing proves it.
        keep_header_text: Keep the free text of headers, which may name a patient.
        layout: Name of the dataset's layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If there is no dataset, the replacements contradict it, or the folder holds other files.
    """
    opened = open_dataset(dataset, layout)
    rules = LabelRules(opened.labels, read_remap(remap, opened.labels), image_grid, label_header)
    require_apart(opened, dataset, out)
    folder = OutputFolder(out, LOG_FILE, {"source": str(dataset.resolve())})
    folder.require_own("an earlier repair of this dataset")
    head = {"dataset": opened.name, "layout": opened.layout, **folder.origin}
    # Without changes as long as cases are written: what is listed at the end was done.
    write_json(folder.record, head)
    remove_leftovers(out, deep=True)
    cases = planned_cases(opened)
    tasks = {case.files.id: RepairTask(case, opened.channels, rules, out, keep_header_text) for case in cases}
    with open_engine(jobs or default_jobs(len(tasks)), READING_WORKER_BYTES) as run:
        found, failed = collect(run, repair_case, tasks, progress, "repair", _task_bytes)
        # In the order of the dataset, whatever the order in which workers ended.
        done = [found[case.files.id] for case in cases if case.files.id in found]
        rows = [case.entry for case in done]
        names = {"name": opened.name, "channels": list(opened.channels), "labels": opened.labels.to_json()}
        write_json(out / "datalist.json", {**names, "cases": rows})
        labelled = any("label" in row and row.get("split") != "test" for row in rows)
        report = check_dataset(open_dataset(out), map_cases=_known(done, run, progress)) if labelled else None
    changes = tuple(change for case in done for change in case.changes)
    copied, repaired = (
        tuple(case.entry["case"] for case in done if bool(case.changes) is changed) for changed in (False, True)
    )
    kept = sum(case.facts is None for case in done)
    result = Repair(out, changes, copied, repaired, kept, tuple(sorted(failed)), report)
    table = {str(old): new for old, new in rules.remap.items()}
    asked = {
        "remap": table,
        "image_grid": image_grid,
        "label_header": label_header,
        "keep_header_text": keep_header_text,
    }
    _write_log(out, {**head, **asked}, result)
    return result


def repairable_cases(dataset: Dataset, report: CheckReport, run: Run, progress: Progress) -> tuple[str, ...]:
    """Ids of the cases that a repair without further knowledge would mend; each is tried, nothing is written.

    Cases with an error that no repair solves are not tried.
    """
    kinds = [(problem.case, problem.code in REPAIRABLE, problem.severity == "error") for problem in report.problems]
    hopeless = {case for case, may_be, is_error in kinds if is_error and not may_be}
    wanted = {case for case, may_be, _ in kinds if may_be} - hopeless
    # A case of the copy may have another id: it is known by its first file.
    ids = {split_source(files.images[0])[0]: files.id for files in (*dataset.cases, *dataset.tests)}
    rules = LabelRules(dataset.labels)
    tasks = {
        case.files.id: RepairTask(case, dataset.channels, rules, dataset.root)
        for case in (planned_cases(dataset) if wanted else ())
        if ids[split_source(case.files.images[0])[0]] in wanted
    }
    found, _ = collect(run, would_repair, tasks, progress, "try to repair", _task_bytes)
    return tuple(case for case, repaired in found.items() if repaired)


def _task_bytes(task: RepairTask) -> int:
    return rewrite_bytes(task.case.files)


def _known(done: Sequence[RepairOutcome], run: Run, progress: Progress) -> Callable[..., list[CaseFacts]]:
    """Like ``map``, for checking the copy: cases that were checked as they were written are not read again."""
    facts = {case.facts.id: case.facts for case in done if case.facts is not None}

    def apply(check: Callable[[CaseFiles], CaseFacts], files: Sequence[CaseFiles]) -> list[CaseFacts]:
        missing = [case for case in files if case.id not in facts]
        checked = map_cases(run, progress, "check", check_bytes, lost_case)(check, missing)
        more = {case.id: fact for case, fact in zip(missing, checked, strict=True)}
        return [(facts | more)[case.id] for case in files]

    return apply


def _write_log(out: Path, head: dict[str, Any], result: Repair) -> None:
    """The log twice: for programs and for spreadsheets."""
    left_out = [{"case": case, "message": message} for case, message in result.left_out]
    changes = [asdict(change) for change in result.changes]
    kinds = {"copied": list(result.copied), "repaired": list(result.repaired)}
    write_json(out / LOG_FILE, {**head, **kinds, "left_out": left_out, "changes": changes})
    header = [column.name for column in fields(Change)]
    lost = [(case, "", "", "left out", message, "") for case, message in result.left_out]
    write_csv(out / "fixes.csv", [header, *map(astuple, result.changes), *lost])
