from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.labels import LabelTable
from pipeline.data.descriptions import described_labels, read_description
from pipeline.data.label_tables import label_table, read_remap, remapped

DISC = LabelTable({1: "rim", 2: "cup"}, None, {"disc": (1, 2), "cup": (2,)}, (1, 2))


def test_nnunet_regions_make_every_entry_a_region() -> None:
    labels = {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing": 3, "ignore": 4}
    table = label_table(labels, "d", {"regions_class_order": [2, 1, 3], "numTraining": 5})
    assert table.names == {1: "label_1", 2: "label_2", 3: "enhancing"}
    assert table.ignore_label == 4
    assert list(table.regions.items()) == [("whole_tumor", (1, 2, 3)), ("tumor_core", (1, 3)), ("enhancing", (3,))]
    assert table.painted == (2, 1, 3)
    assert label_table({**labels, "background": [0]}, "d").painted == (2, 1, 3)  # they follow from the regions


@pytest.mark.parametrize(
    "content",
    [
        {"1": "rim", "2": "cup", "regions": {"disc": [1, 2], "cup": [2]}},
        {"rim": 1, "cup": 2, "background": 0, "regions": {"cup": 2, "disc": [2, 1]}},  # from large to small
        {"labels": {"1": "rim", "2": "cup"}, "regions": {"disc": [1, 2], "cup": [2]}, "regions_class_order": [1, 2]},
        {"names": {"1": "rim", "2": "cup"}, "ignore_label": None, "regions": {"disc": [1, 2], "cup": [2]}},
        {"names": {"1": "rim", "2": "cup"}, "Regions": {"disc": [1, 2], "cup": [2]}},
        DISC.to_json(),
    ],
)
def test_every_form_of_the_same_table(content: dict[str, Any]) -> None:
    assert label_table(content, "d") == DISC


def test_values_without_a_name_are_called_after_themselves() -> None:
    assert label_table({"regions": {"disc": [1, 2], "cup": [2]}}, "d").names == {1: "label_1", 2: "label_2"}
    written = label_table({"names": {"1": "liver"}, "ignore_label": 255}, "d")
    assert written == LabelTable({1: "liver"}, 255)
    assert label_table({"1": "liver", "ignore_label": 255}, "d") == written
    assert label_table({"1": "liver", "ignore_label": None}, "d") == LabelTable({1: "liver"})


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"background": 0, "11": 1, "12": 2}, {1: "11", 2: "12"}),  # teeth, as nnU-Net has them
        ({"11": 1}, {1: "11"}),
        ({"0": "background", "1": "11", "2": "12"}, {1: "11", 2: "12"}),  # the same, as the decathlon has them
        ({"1": "11", "2": "12"}, {1: "11", 2: "12"}),
        ({"background": "0", "11": "1", "12": "2"}, {1: "11", 2: "12"}),
        ({"names": {"4": "1", "5": "sacrum"}}, {4: "1", 5: "sacrum"}),
        ({"1": "liver", "2": "12", "ignore": 3}, {1: "liver", 2: "12"}),
    ],
)
def test_names_that_are_numbers_stay_names(content: dict[str, Any], names: dict[int, str]) -> None:
    assert label_table(content, "d").names == names


def test_regions_whose_names_are_numbers() -> None:
    table = label_table({"background": 0, "1": [1, 2], "2": [2]}, "d", {"regions_class_order": [1, 2]})
    assert table == LabelTable({1: "label_1", 2: "label_2"}, None, {"1": (1, 2), "2": (2,)}, (1, 2))
    mixed = label_table({"background": 0, "21": [1, 2], "22": 2}, "d", {"regions_class_order": [1, 2]})
    assert mixed == LabelTable({1: "label_1", 2: "22"}, None, {"21": (1, 2), "22": (2,)}, (1, 2))
    assert label_table({"1": "a", "2": "b", "regions": {"1": [1, 2], "2": [2]}}, "d").regions == {
        "1": (1, 2),
        "2": (2,),
    }


def test_organs_may_be_called_like_the_keys_of_a_description() -> None:
    table = label_table({"regions": 1, "labels": 2, "names": 3, "regions_class_order": 4}, "d")
    assert table == LabelTable({1: "regions", 2: "labels", 3: "names", 4: "regions_class_order"})


def test_a_folder_may_describe_regions_beside_its_labels(tmp_path) -> None:
    (tmp_path / "datalist.json").write_text(
        '{"labels": {"1": "rim", "2": "cup"}, "regions": {"disc": [1, 2], "cup": [2]}, "cases": []}'
    )
    assert described_labels(read_description(tmp_path)) == DISC
    (tmp_path / "datalist.json").write_text('{"cases": []}')
    assert described_labels(read_description(tmp_path)) is None
    (tmp_path / "labels.json").write_text('{"1": "rim", "2": "cup", "regions": {"disc": [1, 2], "cup": [2]}}')
    assert described_labels(read_description(tmp_path)) == DISC


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [1, 2], "b": 3}, "d: region 'a': expected one value to paint it with, .* got 1, 2"),
        ({"a": [1, "x"]}, r"d: regions: expected a list of label values, got \[1, 'x'\] for 'a'\. Write"),
        ({"1": "x", "regions": {"a": "1"}}, "d: regions: expected a list of label values, got '1' for 'a'"),
        ({"a": [1], "regions": {"b": [1]}}, "d: regions: expected lists of values or an object of regions, got both"),
        ({"1": "x", "regions": {"a": [1, 0]}}, r"d: region 'a': expected values of the label table \(1\), got 0"),
        ({"1": "x", "ignore": 3, "regions": {"a": [1, 3]}}, r"d: region 'a': expected values .* \(1\), got 3"),
        ({"1": "x", "2": "y", "regions": {"a": [1]}}, "d: regions: expected every label value in one, got none with 2"),
        ({"1": "x", "organ": "1"}, "d: labels: expected one name per value, got 'x' and 'organ' for 1"),
        ({"\u00b2": "x"}, "d: labels: expected one integer per label, got 'x' for '\u00b2'"),
        ({"liver": "\u00b2"}, "d: labels: expected one integer per label, got '\u00b2' for 'liver'"),
        ({"1": "liver", "2": 3}, "d: labels: expected names on one side, got 3 for '2' beside names. Put all names"),
        ({"liver": -1}, "d: labels: expected values from 0 to 4294967295, got -1 for 'liver'"),
        ({"liver": 2**70}, "d: labels: expected values from 0 to 4294967295, got 1180591620717411303424 for"),
        ({"9" * 5000: "liver"}, "d: labels: expected one integer per label, got '9999"),
        ({"liver": float("inf")}, "d: labels: expected one integer per label, got inf for 'liver'"),
        ({"liver": None}, "d: labels: expected one integer per label, got None for 'liver'"),
        ({"liver": [[1]]}, r"d: regions: expected a list of label values, got \[\[1\]\] for 'liver'"),
        ({"x" * 201: 1}, "d: name: expected at most 200 characters, got 201 in 'xxx"),
        ({"regions": {f"r{n}": [n] for n in range(1, 1002)}}, "d: regions: expected at most 1000, got 1001. Keep"),
        ({f"n{n}": n for n in range(1, 32768)}, "d: labels: expected at most 32766, got 32767. Keep"),
        ({"a": [1, 2**70], "b": 1}, "d: regions: expected a list of label values, got"),
        ({"a": [1, -2], "b": 1}, r"d: regions: expected a list of label values, got \[1, -2\] for 'a'"),
        ([1], "d: labels: expected an object of values and names, got list"),
        ({"names": {"1": "x"}, "regions": [1]}, r"d: regions: expected an object of regions, got list\. Write"),
        ({"1": "x", "Regions": [{"a": [1]}]}, r"d: regions: expected an object of regions, got list\. Write"),
        ({"1": "x", "2": "y", "regions": {"a": [1, 2, 7]}}, r"d: region 'a': expected values .* \(1, 2\), got 7"),
    ],
)
def test_tables_that_mean_nothing_are_refused(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_table(content, "d")


# ``remap``: how a user says what label values become.

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
