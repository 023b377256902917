from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.data.prediction_record import PredictionRecord, journal_entries


def entry(name: str, content_hash: str = "") -> dict[str, object]:
    return {"case": name, "images": [f"/scans/{name}.nii"], "prediction": f"{name}.nii", "hash": content_hash}


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    record = PredictionRecord(tmp_path)
    record.note(entry("a", "1"))
    with (tmp_path / ".predictions.jsonl").open("ab") as stream:
        stream.write(b'{"prediction": "b.nii", "ha')  # killed here
    again = PredictionRecord(tmp_path)
    assert list(again.entries) == ["a.nii"]
    again.note(entry("c", "2"))
    again.note(entry("a", "3"))
    assert {name: found["hash"] for name, found in PredictionRecord(tmp_path).entries.items()} == {
        "a.nii": "3",
        "c.nii": "2",
    }
    assert [found["case"] for found in journal_entries(tmp_path)] == ["a", "c", "a"]
    again.write()
    assert [found["hash"] for found in json.loads((tmp_path / "predictions.json").read_text())["cases"]] == ["3", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


def test_what_others_note_is_taken_over(tmp_path: Path) -> None:
    one, other = PredictionRecord(tmp_path), PredictionRecord(tmp_path)
    for number in range(3):
        one.note(entry(f"one_{number}"))
        other.note(entry(f"other_{number}"))
        one.refresh()
    assert len(one.entries) == 6
    one.write(alone=False)
    other.note(entry("late"))
    one.refresh()
    assert set(one.entries) == set(PredictionRecord(tmp_path).entries) == {*other.entries, *one.entries}
    assert "late.nii" in one.entries


@pytest.mark.parametrize("text", [b"\xff\xfe\n", b"[1]\n", b'{"prediction": 3}\n', b"\n\n", b"3\nnull\n"])
def test_lines_that_are_no_entries_do_not_count(tmp_path: Path, text: bytes) -> None:
    (tmp_path / ".predictions.jsonl").write_bytes(text)
    assert PredictionRecord(tmp_path).entries == {}


def test_a_note_costs_the_same_in_a_large_folder(tmp_path: Path) -> None:
    record = PredictionRecord(tmp_path)
    record.entries = {f"c{n}.nii": entry(f"c{n}", "1" * 32) for n in range(20_000)}
    record.write()
    size = (tmp_path / "predictions.json").stat().st_size
    began = time.perf_counter()
    for _ in range(5):
        record.note(entry("c7", "2"))
        record.refresh()
    assert (tmp_path / ".predictions.jsonl").stat().st_size < 1000 < size / 1000
    assert (tmp_path / "predictions.json").stat().st_size == size
    assert time.perf_counter() - began < 0.5  # each took 0.1 s when the file was written anew
    assert PredictionRecord(tmp_path).entries["c7.nii"]["hash"] == "2"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".predictions.jsonl").mkdir()
    with pytest.raises(VolsegError, match=r"\.predictions\.jsonl: could not be written"):
        PredictionRecord(tmp_path).note(entry("a"))
