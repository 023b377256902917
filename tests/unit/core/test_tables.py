"""Tables: how files and cells are written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.core.tables import (
    compact_cell,
    interval_cell,
    number_cell,
    read_cell,
    read_csv,
    score_cell,
    text_table,
    write_csv,
)

ROWS = [("case", "value"), ("a,b", 0.1 + 0.2), ('say "c"', None), ("d", 7), ("e", math.inf)]


def test_a_csv_file_is_the_same_on_every_system(tmp_path: Path) -> None:
    write_csv(tmp_path / "all.csv", ROWS)
    expected = b'case,value\n"a,b",0.30000000000000004\n"say ""c""",\nd,7\ne,inf\n'
    assert (tmp_path / "all.csv").read_bytes() == expected
    write_csv(tmp_path / "some.csv", ROWS, digits=3)
    assert (tmp_path / "some.csv").read_bytes() == b'case,value\n"a,b",0.3\n"say ""c""",\nd,7\ne,inf\n'
    assert read_csv(tmp_path / "some.csv")[0] == {"case": "a,b", "value": "0.3"}


def test_a_csv_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_csv(tmp_path / "kept.csv", [("a",)])
    (tmp_path / "file").write_text("")
    with pytest.raises(VolsegError):
        write_csv(tmp_path / "file" / "table.csv", ROWS)
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "kept.csv", ((1 / n,) for n in (1, 0)))
    assert (tmp_path / "kept.csv").read_text() == "a\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kept.csv"]


def test_cells() -> None:
    assert [number_cell(value) for value in (0.12345, None, math.nan)] == ["0.123", "–", "–"]
    assert (number_cell(1.25, 1, sign="+"), number_cell(-1.25, 1, sign="+")) == ("+1.2", "-1.2")
    assert (score_cell(0.5, 4), score_cell(None)) == ("0.5000", "-")
    assert (interval_cell([0.1, 0.25]), interval_cell(None)) == ("0.100 – 0.250", "–")
    assert [compact_cell(value) for value in (1234.5, 12.345, -100.4, None)] == ["1,234", "12.3", "-100", "–"]


def test_a_text_table_is_markdown_with_columns_as_wide_as_their_longest_cell() -> None:
    lines = text_table(("organ", "Dice"), [("a|b", "0.9"), ("spleen", "-")])
    assert lines == (
        "| organ  | Dice |",
        "| ------ | ---: |",
        "| a\\|b   |  0.9 |",
        "| spleen |    - |",
    )


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''@x", "-x", "＝1+1"]
TEXTS = ["=", "+", "@", "a", "-5", "+0.5", "-1e-3", "-inf", "-", "1+2", "'a", "a=1", "", "'", "'-5"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_computed_by_a_spreadsheet_and_all_come_back(tmp_path: Path, text: str) -> None:
    write_csv(tmp_path / "t.csv", [("case", "n"), (text, -1.5)])
    line = (tmp_path / "t.csv").read_text().splitlines()[1]
    assert line.strip('"').startswith("'")
    assert line.endswith(",-1.5")
    assert read_csv(tmp_path / "t.csv") == [{"case": text, "n": "-1.5"}]


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_and_numbers_stay_as_they_are(tmp_path: Path, text: str) -> None:
    write_csv(tmp_path / "t.csv", [(text, -1.5, None)])
    assert (tmp_path / "t.csv").read_text() == f"{text},-1.5,\n"
    assert read_cell(text) == text


def test_a_line_end_in_a_cell_does_not_end_the_row() -> None:
    assert text_table(("organ", "Dice"), [("a\nb\x1b", "0.9")])[2] == "| a b   |  0.9 |"
