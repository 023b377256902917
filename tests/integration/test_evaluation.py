"""Evaluating, comparing and measuring from the command line, with right and wrong input."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from command_line import run

from pipeline.core.grid import Grid
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import write_label_map

Call = Callable[..., tuple[int, str]]
GRID = Grid.from_spacing((16, 14, 10), (2.0, 2.0, 4.0))


def label_map(shift: int = 0, thick: int = 6, grid: Grid = GRID) -> LabelMap:
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[3 + shift : 9 + shift, 2:8, 1 : 1 + thick] = 1
    array[12:14, 10:12, 4:6] = 2
    return LabelMap(array, grid)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for number in range(5):
        write_label_map(label_map(number % 2), tmp_path / "ref" / f"c{number}.nii.gz")
        write_label_map(label_map(0), tmp_path / "a" / f"c{number}.nii.gz")
        write_label_map(label_map(2, 3), tmp_path / "b" / f"c{number}_seg.nii.gz")
    (tmp_path / "ref" / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    return tmp_path


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in the folder: exit code, and output and errors on one line."""

    def command(*words: str) -> tuple[int, str]:
        monkeypatch.chdir(place)
        code, out, err = run(capfd, *words)
        return code, f"{out}\n{err}"

    return command


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_evaluate_with_everything(place: Path, call: Call) -> None:
    (place / "meta.csv").write_text("case,Scanner,age\n" + "".join(f"c{n},{'AB'[n % 2]},{60 + n}\n" for n in range(5)))
    (place / "a" / "c4.nii.gz").unlink()
    words = "--tolerance-mm 4 --tolerance-mm spleen=5 --compat medpy --lesions spleen --metadata meta.csv --by scanner"
    code, output = call("evaluate", "a", "ref", "-o", "out", *words.split())
    assert code == 0, output
    assert "scanner" in output
    rows = table(place / "out" / "scores.csv")
    start = ["case", "label", "name", "status", "dice", "iou", "hd_mm", "hd95_mm", "masd_mm", "assd_mm", "nsd"]
    assert list(rows[0])[: len(start) + 3] == [*start, "tolerance_mm", "volume_reference_ml", "volume_prediction_ml"]
    assert [row["tolerance_mm"] for row in rows[:2]] == ["4.0", "5.0"]
    assert [row["hd_mm"] for row in rows if row["name"] == "liver"] == ["0.0", "2.0", "0.0", "2.0", "inf"]
    assert rows[-1]["status"] == "missing_prediction"
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["subgroups"]["scanner"]["B"]["n_cases"] == 2
    assert summary["measures"]["compat"] == ["medpy"]
    assert any("4 mm, spleen 5 mm" in line for line in summary["conventions"])


def test_organs_that_were_not_asked_for_are_not_scored(place: Path, call: Call) -> None:
    """Masks as of ``volseg predict --organs liver``; the references hold more."""
    code, _ = call("evaluate", "a", "ref", "-o", "all")
    for number in range(5):
        liver = LabelMap(label_map(0).array * (label_map(0).array == 1), GRID)
        write_label_map(liver, place / "liver" / f"c{number}.nii.gz")
    (place / "liver" / "c3.nii.gz").unlink()
    model = {"names": {"1": "liver", "2": "spleen"}, "ignore_label": None}
    (place / "liver" / "labels.json").write_text(json.dumps({"names": {"1": "liver"}, "chosen_from": model}))
    for named in (True, False):  # the second time only the predictions know what the references hold
        code, output = call("evaluate", "liver", "ref", "-o", "out")
        assert (code, "failed" in output, "does not name them: spleen (2)." in " ".join(output.split())) == (
            0,
            False,
            True,
        )
        summary = json.loads((place / "out" / "summary.json").read_text())
        assert summary["measures"]["unscored"] == {"2": "spleen"}
        assert list(summary["organs"]) == ["liver"]
        if named:
            (place / "ref" / "labels.json").unlink()
    of_all = {row["case"]: row for row in table(place / "all" / "scores.csv") if row["name"] == "liver"}
    of_liver = {row["case"]: row for row in table(place / "out" / "scores.csv")}
    assert of_liver["c3"]["status"] == "missing_prediction"
    assert {case: row for case, row in of_liver.items() if case != "c3"} == {
        case: row for case, row in of_all.items() if case != "c3"
    }
    assert call("report", "out", "-o", "r.HTM", "--show-names")[0] == 0
    page = (place / "r.HTM").read_text()
    assert "; 1 of the references not scored" in page
    assert "does not name them: spleen (2)." in page
    assert page.count('class="case-head"') == 4
    (place / "all.json").write_text('{"1": "liver", "2": "spleen"}')
    code, output = call("evaluate", "liver", "ref", "-o", "missed", "--labels", "all.json")
    assert (code, "does not name spleen (2): they count as missed" in " ".join(output.split())) == (0, True)
    assert json.loads((place / "missed" / "summary.json").read_text())["organs"]["spleen"]["dice"]["mean"] == 0


def test_compare_and_stats(place: Path, call: Call) -> None:
    code, output = call("compare", "a", "b", "--reference", "ref", "-o", "cmp")
    assert code == 0, output
    tests = table(place / "cmp" / "comparison.csv")
    liver = next(test for test in tests if (test["metric"], test["organ"]) == ("dice", "liver"))
    assert (liver["one"], liver["other"], liver["wins"], liver["losses"]) == ("a", "b", "5", "0")
    assert (place / "cmp" / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "cmp" / "difference_nsd.png").stat().st_size > 5000
    code, output = call("compare", "cmp/a", "cmp/b", "-o", "again")
    assert code == 0, output
    assert (place / "again" / "comparison.csv").read_text() == (place / "cmp" / "comparison.csv").read_text()
    code, output = call("stats", "ref", "-o", "stats")
    assert code == 0, output
    rows = table(place / "stats" / "stats.csv")
    assert (rows[0]["name"], float(rows[0]["volume_ml"])) == ("liver", pytest.approx(6 * 6 * 6 * 16 / 1000))
    assert (rows[0]["touches_edge"], rows[0]["edges"], "mean" in rows[0]) == ("no", "", False)


def test_missing_and_broken_predictions_stand_in_every_outcome(place: Path, call: Call) -> None:
    for number in (1, 2, 3):
        (place / "b" / f"c{number}_seg.nii.gz").unlink()
    (place / "b" / "c4_seg.nii.gz").write_bytes(b"broken")
    (place / "ref" / "c0.nii.gz").write_bytes(b"broken")
    code, output = call("compare", "a", "b", "--reference", "ref", "-o", "cmp")
    assert code == 2
    found = json.loads((place / "cmp" / "comparison.json").read_text())
    assert found["lacking"] == {"a": [], "b": ["c1", "c2", "c3", "c4"]}
    assert found["notes"][:3] == [
        "Predictions that are missing or could not be used count as misses: a 0 of 5, b 4 of 5.",
        "b: no usable prediction of c1, c2, c3, c4.",
        "Left out of the comparison, because their reference could not be used: c0.",
    ]
    assert "b: 3 of 5 references have no prediction, e.g. c1: their organs score 0." in found["notes"]
    assert [text.split(":")[0] for text in found["failures"]] == ["a", "b", "b"]
    assert {(t["lacking_one"], t["lacking_other"]) for t in table(place / "cmp" / "comparison.csv")} == {("0", "4")}
    assert "No mask" in output
    assert "0 / 4" in output
    assert found["notes"][0] in " ".join(output.split())
    summary = json.loads((place / "cmp" / "b" / "summary.json").read_text())
    assert "3 of 5 references have no prediction, e.g. c1: their organs score 0." in summary["notes"]
    call("report", "cmp/b", "-o", "report.html", "--show-names")
    assert "3 of 5 references have no prediction, e.g. c1: their organs score 0." in (place / "report.html").read_text()


def test_scores_of_other_cases_are_not_replaced_without_a_word(place: Path, call: Call) -> None:
    for name, cases in (("one", "01"), ("two", "23")):
        rows = [f"c{n},a/c{n}.nii.gz,ref/c{n}.nii.gz" for n in cases]
        (place / f"{name}.csv").write_text("\n".join(["case,prediction,reference", *rows]))
    assert "replaced" not in call("evaluate", "one.csv", "one.csv", "--labels", "ref/labels.json", "-o", "s")[1]
    assert "replaced" not in call("evaluate", "one.csv", "one.csv", "--labels", "ref/labels.json", "-o", "s")[1]
    output = call("evaluate", "two.csv", "two.csv", "--labels", "ref/labels.json", "-o", "s")[1]
    assert "s: replaced the scores of 2 other cases, e.g. c0. Cases are scored together by one list" in output


def test_bad_cases_are_misses_with_one_sentence_each(place: Path, call: Call) -> None:
    write_label_map(label_map(grid=Grid.from_spacing((16, 14, 9), (2.0, 2.0, 4.0))), place / "a" / "c0.nii.gz")
    moved = GRID.affine.copy()
    moved[2, 3] += 1.5
    write_label_map(label_map(grid=Grid(GRID.shape, moved)), place / "a" / "c1.nii.gz")
    unknown = LabelMap(np.where(label_map().array == 2, 9, label_map().array), GRID)
    write_label_map(unknown, place / "a" / "c2.nii.gz")
    fractional = nibabel.Nifti1Image(label_map().array * np.float32(0.5), GRID.affine)
    nibabel.save(fractional, place / "a" / "c3.nii.gz")
    whole = gzip.compress(gzip.decompress((place / "ref" / "c4.nii.gz").read_bytes()))
    (place / "a" / "c4.nii.gz").write_bytes(whole[: len(whole) // 2])
    code, output = call("evaluate", "a", "ref", "-o", "out")
    assert code == 3, output
    failed = [line for line in output.splitlines() if line.startswith("failed")]
    wanted = ["(16, 14, 9), corners up to 4 mm", "a difference of 1.5 mm", "got [9]", "0.5", "c4.nii.gz"]
    assert len(failed) == 5
    assert [text in line for text, line in zip(wanted, failed, strict=True)] == [True] * 5
    assert {row["dice"] for row in table(place / "out" / "scores.csv")} == {"0.0"}
    code, output = call("evaluate", "a/c1.nii.gz", "ref/c1.nii.gz", "-o", "out2", "--resample")
    assert code == 0, output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("evaluate nowhere ref -o x", "nowhere: prediction: expected a file or folder, got nothing there."),
        ("evaluate empty ref -o x", "empty: prediction folder: expected label maps"),
        ("evaluate a ref -o x --tolerance-mm lever=2", "--tolerance-mm: expected organs of the label table"),
        ("evaluate a ref -o x --tolerance-mm two", "--tolerance-mm: expected 2 or liver=2, in mm"),
        ("evaluate a ref -o x --compat nnunet", "--compat: expected monai or medpy or surface-distance"),
        (
            "evaluate a ref -o x --metadata meta.csv",
            "meta.csv: table: expected comma-separated text, got nothing there.",
        ),
        ("evaluate a ref -o x --remap 5=lever", "a number or a known name"),
        ("compare a b -o x", "expected scores, or --reference to score against, got a folder without scores."),
        ("compare a --reference ref -o x", "models: expected two or more, got 1."),
        ("report a -o r.pdf", "out: expected a file that ends in .html, got r.pdf. Name it for example r.html."),
        ("report a -o .", "out: expected a file that ends in .html, got .. Name it for example report.html."),
        ("stats nowhere -o x", "label maps: expected a file or folder, got nothing there."),
    ],
)
def test_wrong_words_are_one_sentence(place: Path, call: Call, words: str, sentence: str) -> None:
    (place / "empty").mkdir()
    code, output = call(*words.split())
    assert code == 1
    assert sentence in " ".join(output.replace("│", " ").split())


def test_evaluation_needs_neither_torch_nor_monai(place: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.stages.evaluate import evaluate; "
        "from pipeline.stages.compare import compare; from pipeline.stages.label_stats import label_stats; "
        "evaluate(Path('a'), Path('ref'), Path('o'), jobs=1); print({'torch', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


def test_a_report_refuses_curves_that_are_no_picture(place: Path, call: Call) -> None:
    assert call("evaluate", "a", "ref", "-o", "scores", "--surface", "none", "-j", "1")[0] == 0
    (place / "text.png").write_text("curves")
    for name, got in (("no.png", "No such file or directory"), ("text.png", "another file")):
        code, text = call("report", "scores", "-o", "report.html", "--curves", name)
        assert code == 1
        assert f"{name}: --curves: expected a PNG picture, got {got}. Give the curves.png of a fold." in text
        assert not (place / "report.html").exists()
