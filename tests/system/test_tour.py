"""The notebook docs/tour.ipynb runs from top to bottom, here with a budget of seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"


def test_every_cell_of_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = 'BUDGET = "10s"\nCASES, TESTS = 5, 1'
    # The notebook calls `volseg`, and makes its folder where temporary files are.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{DOCS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own shows plots in the page
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(DOCS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    scores = outputs[-1].data["text/plain"]
    assert "phantom_1000" in scores
    assert len(scores.splitlines()) == 2 + 10  # names of cases, of the index, and ten organs
    assert [path.name for path in tmp_path.glob("volseg-tour-*/report.html")] == ["report.html"]


def test_the_tour_shows_its_results_to_those_who_only_read_it() -> None:
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert not any(output.output_type == "error" for output in shown)
