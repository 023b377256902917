"""Many cases: the memory that a command's own process takes for each, and one of them that ends its worker."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.config.settings import Settings
from pipeline.engine.local import Outcome, Run
from pipeline.stages import prepare
from pipeline.stages.prepare import check, plan

FEW, MANY = 50, 250
MOST_BYTES = 4_500  # for each further case, at the peak: 90 MB of 20,000
EDGE = 8


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {cases: write_tiny(tmp_path_factory.mktemp(f"tiny_{cases}"), cases) for cases in (FEW, MANY)}


def write_tiny(folder: Path, cases: int) -> Path:
    generator = np.random.default_rng(cases)
    labels = np.zeros((EDGE,) * 3, np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(cases):
        for name, array in (("images", generator.integers(0, 200, labels.shape).astype(np.int16)), ("labels", labels)):
            image = nib.Nifti1Image(array, np.eye(4))
            (folder / name / f"case_{number:05d}.nii").write_bytes(image.to_bytes())
    (folder / "labels.json").write_text('{"1": "box"}')
    return folder


def peak_bytes(call: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("step", ["check", "plan"])
def test_a_further_case_takes_little_memory(datasets: dict[int, Path], tmp_path: Path, step: str) -> None:
    def run(cases: int) -> None:
        if step == "check":
            assert check(datasets[cases], jobs=1).problems == ()
        else:
            assert len(plan(datasets[cases], tmp_path / str(cases), Settings(), jobs=1).done) == cases

    run(FEW)  # what is imported and kept once
    few, many = (peak_bytes(lambda cases=cases: run(cases)) for cases in (FEW, MANY))  # type: ignore[misc]
    assert (many - few) / (MANY - FEW) < MOST_BYTES


def test_a_case_that_ends_its_worker_is_a_problem_of_the_check(
    datasets: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare.open_engine

    @contextmanager
    def engine(jobs: int, worker_bytes: int) -> Iterator[Run]:
        with real(jobs, worker_bytes) as run:

            def loses_one(*batch: Any) -> Iterator[Outcome[Any]]:
                for outcome in run(*batch):
                    yield replace(outcome, value=None, error="worker: killed.") if outcome.index == 7 else outcome

            yield loses_one

    monkeypatch.setattr(prepare, "open_engine", engine)
    report = check(datasets[FEW], jobs=1)
    assert [(problem.case, problem.severity, problem.message) for problem in report.problems] == [
        ("case_00007", "error", "case case_00007: worker: killed.")
    ]
    assert (len(report.cases), report.failed, report.exit_code) == (FEW, ("case_00007",), 2)
