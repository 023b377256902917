"""From a dataset with problems to a repaired copy, every change logged."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.progress import Progress, silent
from pipeline.data.check import CaseFacts, CheckReport, check_dataset, lost_case
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.label_tables import read_remap
from pipeline.data.layouts import open_dataset
from pipeline.data.repair_case import RepairOutcome, RepairTask, planned_cases, repair_case
from pipeline.data.repair_volumes import Change, LabelRules
from pipeline.engine.local import Run, collect, default_jobs, map_cases, open_engine
from pipeline.stages.memory import READING_WORKER_BYTES, check_bytes, rewrite_bytes

_LOG = "fixes.json"
_LISTED = 20  # cases left out that are printed before the rest is only counted


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

    def lines(self) -> tuple[str, ...]:
        """The summary for reading: what was repaired in how many cases, what was left out and why."""
        cases = Counter((problem, done) for _, problem, done in {(c.case, c.problem, c.done) for c in self.changes})
        fixed = [f"fixed  {problem}: {done} ({_cases(number)})" for (problem, done), number in sorted(cases.items())]
        texts = [text if text.startswith(f"case {case}") else f"case {case}: {text}" for case, text in self.left_out]
        left = [f"left out  {text}" for text in texts[:_LISTED]]
        more = [f"… and {len(texts) - _LISTED} more, see {self.out / _LOG}"] if len(texts) > _LISTED else []
        count = f"{_cases(len(self.repaired))} repaired, {len(self.copied)} copied as they are, {len(texts)} left out"
        again = f" ({self.kept} up to date)" if self.kept else ""
        return (*fixed, *left, *more, f"{count}{again}: {self.out}. Every change: {self.out / 'fixes.csv'}")


def repair(
    dataset: Path,
    out: Path,
    *,
    remap: Sequence[str] = (),
    image_grid: bool = False,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Repair:
    """Write a repaired copy of a dataset.

    The copy is a datalist: ``datalist.json`` with names, channels, groups and splits, ``images/``, ``labels/``. Sound
    files are copied byte by byte. ``fixes.json`` and ``fixes.csv`` list every change and every case left out. A later
    run does what is missing or changed.

    Args:
        dataset: Dataset folder or datalist; nothing in it is touched.
        out: Folder of the copy: a new one, or that of an earlier repair of this dataset.
        remap: What unknown label values become, see :func:`pipeline.data.label_tables.read_remap`.
        image_grid: Label maps of the image's shape lie on its grid, whatever their header says.
        layout: Name of the dataset's layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If there is no dataset, the replacements contradict it, or the folder holds other files.
    """
    opened = open_dataset(dataset, layout)
    rules = LabelRules(opened.labels, read_remap(remap, opened.labels), image_grid)
    _require_own_folder(opened, dataset, out)
    head = {"dataset": opened.name, "layout": opened.layout, "source": str(dataset.resolve())}
    write_json(out / _LOG, head)  # first: it marks the folder as ours
    cases = planned_cases(opened)
    tasks = [RepairTask(case, opened.channels, rules, out) for case in cases]
    ids = [case.files.id for case in cases]
    with open_engine(jobs or default_jobs(len(tasks)), READING_WORKER_BYTES) as run:
        found, failed = collect(
            run, repair_case, tasks, ids, progress, "repair", lambda task: rewrite_bytes(task.case.files)
        )
        done = [found[case.files.id] for case in cases if case.files.id in found]
        rows = [case.entry for case in done]
        names = {"name": opened.name, "channels": list(opened.channels), "labels": opened.labels.to_json()}
        write_json(out / "datalist.json", {**names, "cases": rows})
        labelled = any("label" in row and row.get("split") != "test" for row in rows)
        report = check_dataset(open_dataset(out), map_cases=_known(done, run, progress)) if labelled else None
    result = _summed(out, done, sorted(failed), report)
    table = {str(old): new for old, new in rules.remap.items()}
    _write_log(out, {**head, "remap": table, "image_grid": image_grid}, result)
    return result


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"


def _known(done: Sequence[RepairOutcome], run: Run, progress: Progress) -> Callable[..., list[CaseFacts]]:
    """Like ``map``, for checking the copy: cases that were checked as they were written are not read again."""
    facts = {case.facts.id: case.facts for case in done if case.facts is not None}

    def apply(check: Callable[[CaseFiles], CaseFacts], files: Sequence[CaseFiles]) -> list[CaseFacts]:
        missing = [case for case in files if case.id not in facts]
        checked = map_cases(run, progress, "check", check_bytes, lost_case)(check, missing)
        more = {case.id: fact for case, fact in zip(missing, checked, strict=True)}
        return [(facts | more)[case.id] for case in files]

    return apply


def _summed(
    out: Path, done: Sequence[RepairOutcome], left_out: Sequence[tuple[str, str]], report: CheckReport | None
) -> Repair:
    ids = {True: [case.entry["case"] for case in done if case.changes]}
    ids[False] = [case.entry["case"] for case in done if not case.changes]
    changes = tuple(change for case in done for change in case.changes)
    kept = sum(case.facts is None for case in done)
    return Repair(out, changes, tuple(ids[False]), tuple(ids[True]), kept, tuple(left_out), report)


def _write_log(out: Path, head: dict[str, Any], result: Repair) -> None:
    """The log twice: for programs and for spreadsheets."""
    left_out = [{"case": case, "message": message} for case, message in result.left_out]
    changes = [asdict(change) for change in result.changes]
    kinds = {"copied": list(result.copied), "repaired": list(result.repaired)}
    write_json(out / _LOG, {**head, **kinds, "left_out": left_out, "changes": changes})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([column.name for column in fields(Change)])
    writer.writerows(astuple(change) for change in result.changes)
    writer.writerows((case, "", "", "left out", message, "") for case, message in result.left_out)
    write_text(out / "fixes.csv", table.getvalue())


def _require_own_folder(opened: Dataset, dataset: Path, out: Path) -> None:
    """Refuse a folder within the dataset, and one that holds anything but an earlier repair of it."""
    place, root = out.resolve(), opened.root.resolve()
    advice = "Choose another folder"
    folders = {file.resolve().parent for case in (*opened.cases, *opened.tests) for file in case.files}
    around = place == root or any(place in (folder, *folder.parents) for folder in folders)
    if around or (dataset.is_dir() and root in place.parents):  # around a list of cases there may be other files
        got = f"one of the dataset {opened.root}"
        raise VolsegError(sentence("output folder", "a folder outside the dataset", got, advice, file=out))
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    found = read_json(out / _LOG) if (out / _LOG).is_file() else None
    if not isinstance(found, dict) or found.get("source") != str(dataset.resolve()):
        rule = "a new folder, or an earlier repair of this dataset"
        raise VolsegError(sentence("output folder", rule, "one with other files", advice, file=out))
