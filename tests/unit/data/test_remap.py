"""``remap``: how a user says what label values become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core import DataError, LabelTable
from pipeline.data.remap import read_remap, remapped

LABELS = LabelTable({1: "liver", 2: "left kidney"}, ignore_label=9)


def test_pairs_names_and_files(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("from,to\n255,liver\n-1,ignore\n")
    names = tmp_path / "table.yaml"
    names.write_text("7: left kidney\nliver: 2\n'8': 0\n")
    found = read_remap(["100=background", "101 = 2", str(table), str(names)], LABELS)
    assert found == {100: 0, 101: 2, 255: 1, -1: 9, 7: 2, 1: 2, 8: 0}
    assert read_remap([], LABELS) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("255", "--remap 255: expected from=to or an existing file, got neither a file nor from=to."),
        ("255=", "expected from=to or an existing file"),
        ("255=5", "expected a label value (0 background, 1 liver, 2 left kidney, 9 ignore) to replace by, got 5."),
        ("255=livr", "expected a number or a known name (0 background, 1 liver, 2 left kidney, 9 ignore), got 'livr'."),
        ("spleen=1", "got 'spleen'. Check the spelling, or give the number."),
    ],
)
def test_wrong_pairs(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_remap([text], LABELS)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "old,new\n1,2\n", "expected the columns from, to, got the columns old, new."),
        ("t.yaml", "- 1\n- 2\n", "expected a table of old and new values, got something else."),
        ("t.yaml", "1: [2]\n", "expected a table of old and new values"),
        ("t.yaml", "a: b: c\n", "expected CSV or YAML, got mapping values are not allowed here"),
        ("t.yaml", "", "expected a table of old and new values"),
        ("t.yaml", "5: 1\n5: 2\n", "expected one new value for every old one, got 1 and 2 for 5. Keep one."),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_remap([str(path)], LABELS)
    assert message in str(error.value)


def test_values_are_replaced_all_at_once_and_counted() -> None:
    array = np.array([[1, 2, 2], [255, 0, -1]], np.int16)
    new, replaced = remapped(array, {1: 2, 2: 1, 255: 0, 7: 1, 0: 0})
    assert new.tolist() == [[2, 1, 1], [0, 0, -1]]
    assert replaced == {1: 1, 2: 2, 255: 1}
