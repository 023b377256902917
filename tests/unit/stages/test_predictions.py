from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.data.case_files import CaseFiles
from pipeline.stages.prediction_statistics import earlier_statistics, write_statistics
from pipeline.stages.predictions import earlier_entries, note_prediction, prediction_entry, why_failed


def test_entries_are_replaced_by_name_and_each_has_a_line(tmp_path: Path) -> None:
    entries: dict[str, dict[str, object]] = {}
    for case in ("ä", "b"):
        entry = prediction_entry(CaseFiles(case, (Path("/scans") / f"{case}.nii",)), f"{case}.nii", None)
        note_prediction(tmp_path, entries, entry)
    note_prediction(tmp_path, entries, {**entries["ä.nii"], "hash": "1"})
    text = (tmp_path / "predictions.json").read_text(encoding="utf-8")
    assert [entry["hash"] for entry in json.loads(text)["cases"]] == ["1", ""]
    assert [line[:13] for line in text.splitlines()] == ['{"cases": [', '{"case": "ä",', '{"case": "b",', "]}"]
    assert earlier_entries(tmp_path) == entries


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', '{"cases": [{"case": "a"}]}', '{"cases": {"a": 1}}'])
def test_damaged_files_count_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "predictions.json").write_text(text)
    (tmp_path / "statistics.json").write_text(text)
    assert earlier_entries(tmp_path) == earlier_statistics(tmp_path) == {}


def test_reasons_are_sentences() -> None:
    assert why_failed("a", VolsegError("case a: no.")) == "case a: no."
    assert why_failed("a", RuntimeError("odd")).startswith("case a: expected a prediction, got RuntimeError: odd.")
    assert "Lower infer.batch_size" in why_failed("a", MemoryError())


def test_statistics_are_a_table_and_say_their_conventions(tmp_path: Path) -> None:
    organ = {"label": 1, "voxels": 4, "volume_ml": 0.5, "intensity": {"CT": {"mean": -3.25, "sd": 1.5}},
             "touches_edge": True, "edges": ["S"]}  # fmt: skip
    sure = {"b": organ, "a": organ | {"confidence": 0.875}}
    cases = {
        f"{case}.nii": {"case": case, "prediction": f"{case}.nii", "hash": "h", "organs": {"liver": found}}
        for case, found in sure.items()
    }
    write_statistics(tmp_path, cases, ("CT",))
    assert (tmp_path / "statistics.csv").read_text() == (
        "case,label,name,voxels,volume_ml,mean,sd,touches_edge,edges,confidence\n"
        "a,1,liver,4,0.5,-3.25,1.5,yes,S,0.875\n"
        "b,1,liver,4,0.5,-3.25,1.5,yes,S,\n"
    )
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert [entry["case"] for entry in content["cases"]] == ["a", "b"]
    explained = [line.split(":")[0] for line in content["conventions"]]
    assert explained == ["volume_ml", "mean, sd", "touches_edge", "confidence"]
    assert earlier_statistics(tmp_path) == cases
