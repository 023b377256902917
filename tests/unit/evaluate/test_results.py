import csv
import json
import math
from dataclasses import astuple, replace

import pytest

from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.evaluate.metrics import Measures, Row
from pipeline.evaluate.results import Evaluation, ScoredFiles, read_evaluation, read_summary, write_evaluation

NAN = float("nan")


@pytest.fixture
def evaluation(tmp_path):
    return Evaluation(
        labels=LabelTable({1: "liver", 3: "spleen, accessory"}, 255),
        rows=(
            Row("a", (1,), "liver", "scored", 1 / 3, 0.2, 10.5, 11.0),
            Row("a", (3,), "spleen, accessory", "true_negative", NAN, NAN, 0.0, 0.0),
        ),
        cases=(
            ScoredFiles("a", tmp_path / "a.nii.gz", tmp_path / "p.nii.gz", (tmp_path / "i.nii.gz",)),
            ScoredFiles("b", tmp_path / "b.nii.gz"),
        ),
        failures=(("b", "case b: unreadable."),),
        notes=("A note.",),
    )


def test_write_then_read_is_exact(evaluation, tmp_path):
    summary = write_evaluation(evaluation, tmp_path / "out")
    back = read_evaluation(tmp_path / "out")
    assert [str(astuple(row)) for row in back.rows] == [str(astuple(row)) for row in evaluation.rows]
    assert replace(back, rows=()) == replace(evaluation, rows=())
    assert read_summary(tmp_path / "out") == json.loads(json.dumps(summary))


def test_files_are_plain(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as stream:
        table = list(csv.reader(stream))
    volumes = ["volume_reference_ml", "volume_prediction_ml", "volume_bias_ml", "volume_bias_percent"]
    assert table[0] == ["case", "label", "name", "status", "dice", "iou", *volumes]
    assert table[2] == ["a", "3", "spleen, accessory", "true_negative", "", "", "0.0", "0.0", "0.0", ""]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(entry["case"], entry["dice"]) for entry in summary["cases"]] == [("a", pytest.approx(1 / 3)), ("b", None)]
    assert summary["failures"] == [{"case": "b", "message": "case b: unreadable."}]
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "summary.json"}


def test_regions_keep_their_values(tmp_path):
    table = LabelTable({1: "rim", 2: "cup"}, None, {"disc": (1, 2), "cup": (2,)})
    rows = (
        Row("a", (1, 2), "disc", "scored", 0.5, 1 / 3, 10.5, 11.0),
        Row("a", (2,), "cup", "missed", 0.0, 0.0, 2.0, 0.0),
    )
    write_evaluation(Evaluation(table, rows, (ScoredFiles("a", tmp_path / "a.nii.gz"),)), tmp_path)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["a", "1+2", "disc"], ["a", "2", "cup"]]
    organs = read_summary(tmp_path)["organs"]
    assert {name: entry["label"] for name, entry in organs.items()} == {"disc": "1+2", "cup": 2}
    back = read_evaluation(tmp_path)
    assert (back.rows, back.labels) == (rows, table)


def test_further_columns_are_accepted(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    path = tmp_path / "scores.csv"
    path.write_text(
        "\n".join(f"{line},1" for line in path.read_text().splitlines()).replace("percent,1", "percent,colour")
    )
    assert len(read_evaluation(tmp_path).rows) == 2


def test_damaged_folders_are_one_sentence(evaluation, tmp_path):
    with pytest.raises(VolsegError, match=r"summary\.json: expected a JSON file, got nothing there"):
        read_evaluation(tmp_path)
    write_evaluation(evaluation, tmp_path)
    (tmp_path / "scores.csv").write_text("case,label,name,status\na,1,liver,fine\n")
    with pytest.raises(VolsegError, match=r"expected the files of an evaluation, got .*fine"):
        read_evaluation(tmp_path)
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(VolsegError, match=r"scores\.csv: expected a table of scores, got nothing there"):
        read_evaluation(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(VolsegError, match=r"summary\.json: overall: expected one more value, got nothing\. Run"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("overall", "dice"), None, r"overall\.dice: expected a section with keys, got None\. Run `volseg evaluate`"),
        (("overall", "dice", "mean"), "0.5", r"overall\.dice\.mean: expected a valid number, got '0\.5'"),
        (("organs", "liver", "n"), [], r"organs\.liver\.n: expected a valid integer, got \[\]"),
        (("cases", 0, "images"), "x", r"cases\.0\.images: expected a valid list, got 'x'"),
        (("cases", 0, "reference"), "a/" + "b" * 300, r"cases\.0\.reference: expected a file name of at most"),
        (("cases", 0, "reference"), "a\0", r"cases\.0\.reference: expected a file name of at most"),
        (("cases", 0, "worst_organ"), "heart", "organs: expected those of the labels, all measured alike, got 'heart'"),
        (("labels", "names"), {"²": "a"}, r"labels: label table: expected whole numbers as values, got '²'"),
        (("measures", "tolerance_mm"), "wide", r"tolerance_mm: expected a valid number, got 'wide'"),
        (("failures",), [1], r"failures\.0: expected a section with keys, got 1"),
    ],
)
def test_a_summary_of_other_types_is_named(evaluation, tmp_path, keys, value, message):
    write_evaluation(evaluation, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    part = summary
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(VolsegError, match=rf"summary\.json: (content: )?{message}"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",1,", ",²,"),
        (",1,", "," + "1" * 5000 + ","),
        ("liver", "heart"),
        ("scored", ""),
        ("a,1", "a," + "x" * 200_000),
    ],
)
def test_a_table_of_other_scores_is_refused(evaluation, tmp_path, old, new):
    write_evaluation(evaluation, tmp_path)
    path = tmp_path / "scores.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(VolsegError, match=r"expected the files of an evaluation, got .*`volseg evaluate`") as caught:
        read_evaluation(tmp_path)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_measured_columns_come_back_and_infinity_is_written_out(tmp_path):
    more = {"hd_mm": math.inf, "nsd": 0.0, "tolerance_mm": 2.0, "diagonal_mm": 90.0, "lesion_f1": NAN}
    row = Row("a", (1,), "liver", "missed", 0.0, 0.0, 8.0, 0.0, more)
    measures = Measures(tolerances_mm={"liver": 3.0}, compat=("medpy",), lesions=("liver",), remap={5: 1})
    evaluation = Evaluation(
        LabelTable({1: "liver"}), (row,), (ScoredFiles("a", tmp_path / "a.nii.gz"),), (), (), measures
    )
    summary = write_evaluation(evaluation, tmp_path)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0].split(",")[4:9] == ["dice", "iou", "hd_mm", "nsd", "tolerance_mm"]
    assert lines[1].split(",")[4:9] == ["0.0", "0.0", "inf", "0.0", "2.0"]
    back = read_evaluation(tmp_path)
    assert {name: str(value) for name, value in back.rows[0].more.items()} == {n: str(v) for n, v in more.items()}
    assert back.measures == measures
    assert summary["organs"]["liver"]["hd_mm"]["mean"] == 90.0
    assert summary["organs"]["liver"]["hd_mm"]["where_found"] == {"n": 0, "mean": None}
    assert (row.volume_bias_ml, row.volume_bias_percent) == (-8.0, -100.0)
