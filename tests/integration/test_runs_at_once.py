"""Several runs into one folder at once: what is there afterwards is what one run over all of it would have left."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from effort import tries
from toy import toy_settings

from pipeline.config.yaml_file import save_settings
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.stages.prediction_files import Output
from pipeline.stages.prepare import preprocess

HELPER = Path(__file__).parents[1] / "helpers" / "runs_at_once.py"
CASES = range(6)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


AtOnce = Callable[..., tuple[list[int], str]]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(HELPER)], text=True, **pipes) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def at_once(server: subprocess.Popen[str], tmp_path: Path) -> AtOnce:
    """Runs commands at the same time: their exit codes, and what they printed."""

    def run(*commands: Sequence[object]) -> tuple[list[int], str]:
        assert server.stdin is not None
        assert server.stdout is not None
        log = tmp_path / "log"
        task = {"log": str(log), "commands": [list(map(str, command)) for command in commands]}
        server.stdin.write(f"{json.dumps(task)}\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline()), log.read_text()

    return run


def shares(seed: int) -> list[list[int]]:
    """The cases of three runs; together all, some in several."""
    drawn = random.Random(seed)
    parts = [[n for n in CASES if n % 3 == part or drawn.random() < 0.3] for part in range(3)]
    return parts if seed else [[n for n in CASES if n % 3 == part] for part in range(3)]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too; of cases without where they came from."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in (name for name in found if name.endswith("case.json")):
        found[name] = json.dumps({**json.loads(found[name]), "dataset": ""}).encode()
    return found


@pytest.mark.long
@pytest.mark.parametrize("seed", range(tries(2, 10)))
def test_predicting(at_once: AtOnce, model: Path, dataset: Path, tmp_path: Path, seed: int) -> None:
    images = [dataset / "images" / f"toy_{n}.nii.gz" for n in CASES]
    everything = Output(split=True, statistics=True, entropy=True)
    predict(model, images, tmp_path / "one", device="cpu", output=everything)
    words = ["-o", tmp_path / "all", "--device", "cpu", "--split", "--statistics", "--entropy"]
    codes, output = at_once(*(["predict", model, *(images[n] for n in part), *words] for part in shares(seed)))
    assert codes == [0, 0, 0], output
    one, found = tree(tmp_path / "one"), tree(tmp_path / "all")
    records = [json.loads(files.pop("predictions.json"))["cases"] for files in (one, found)]
    assert found == one
    first, second = ({entry["case"]: {**entry, "provenance": None} for entry in entries} for entries in records)
    assert second == first
    assert len(records[1]) == len(CASES)


def test_runs_that_predict_the_same_share_the_work(at_once: AtOnce, model: Path, dataset: Path, tmp_path: Path) -> None:
    words = ["predict", model, dataset / "images", "-o", tmp_path / "masks", "--device", "cpu"]
    codes, output = at_once(words, words)
    assert codes == [0, 0], output
    assert "6 up to date" not in output  # each did some
    counts = [line.split() for line in output.splitlines() if " predicted, " in line]
    assert [int(words[0]) + int(words[2]) for words in counts] == [6, 6]


def test_masks_of_other_organs_are_not_mixed(at_once: AtOnce, model: Path, dataset: Path, tmp_path: Path) -> None:
    words = ["predict", model, dataset / "images" / "toy_0.nii.gz", "-o", tmp_path / "masks", "--device", "cpu"]
    codes, output = at_once(words, [*words, "--organs", "box_left"])
    assert sorted(codes) == [0, 1], output
    rule = "output folder: expected masks of the same organs, got others being written in process "
    assert rule in " ".join(output.replace("│", " ").split())


@pytest.fixture
def lists(dataset: Path, tmp_path: Path) -> Path:
    """The dataset with a plan, so that parts of it can be prepared."""
    shutil.copytree(dataset, tmp_path / "data")
    save_settings(toy_settings(), tmp_path / "settings.yaml")
    return tmp_path / "data"


def datalist(path: Path, cases: list[int]) -> Path:
    rows = [{"image": f"images/toy_{n}.nii.gz", "label": f"labels/toy_{n}.nii.gz"} for n in cases]
    labels = {"0": "background", "1": "box_left", "2": "box_small"}
    path.write_text(json.dumps({"name": "toy", "labels": labels, "modality": {"0": "MRI"}, "training": rows}))
    return path


@pytest.mark.long
@pytest.mark.parametrize("seed", range(tries(2, 10)))
def test_preprocessing_lists(at_once: AtOnce, lists: Path, tmp_path: Path, seed: int) -> None:
    preprocess(datalist(lists / "all.json", list(CASES)), tmp_path / "one", toy_settings(), jobs=1)
    words = [
        "-o",
        tmp_path / "all",
        "-c",
        tmp_path / "settings.yaml",
        "-j",
        1,
        "--plan",
        tmp_path / "one" / "plan.yaml",
    ]
    parts = [datalist(lists / f"part{n}.json", part) for n, part in enumerate(shares(seed))]
    codes, output = at_once(*(["preprocess", part, *words] for part in parts))
    assert codes == [0, 0, 0], output
    assert tree(tmp_path / "all") == tree(tmp_path / "one")


def test_preprocessing_the_same_dataset(at_once: AtOnce, lists: Path, tmp_path: Path) -> None:
    preprocess(lists, tmp_path / "one", toy_settings(), jobs=1)
    words: list[object] = ["preprocess", lists, "-o", tmp_path / "all", "-c", tmp_path / "settings.yaml", "-j", 1]
    codes, output = at_once(words, words, words)
    assert codes == [0, 0, 0], output
    assert tree(tmp_path / "all") == tree(tmp_path / "one")


def test_one_folder_has_one_plan(at_once: AtOnce, lists: Path, tmp_path: Path) -> None:
    words: list[object] = ["preprocess", lists, "-o", tmp_path / "all", "-c", tmp_path / "settings.yaml", "-j", 1]
    codes, output = at_once(words, [*words, "--set", "preprocess.spacing_mm=[3,3,3]"])
    assert sorted(codes) == [0, 1], output
    rule = "output folder: expected cases that are prepared by one plan, got another plan in process "
    assert rule in " ".join(output.replace("│", " ").split())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(tries(2, 10)))
def test_evaluating_lists(at_once: AtOnce, dataset: Path, tmp_path: Path, seed: int) -> None:
    (tmp_path / "labels.json").write_text('{"1": "box_left", "2": "box_small"}')

    def scored(name: str, cases: list[int]) -> Path:
        rows = [f"{n},{dataset}/labels/toy_{n}.nii.gz,{dataset}/labels/toy_{n}.nii.gz" for n in cases]
        (tmp_path / name).write_text("\n".join(["case,prediction,reference", *rows]))
        return tmp_path / name

    one = scored("all.csv", list(CASES))
    summary = evaluate(one, one, tmp_path / "one")
    parts = [scored(f"part{n}.csv", part) for n, part in enumerate(shares(seed))]
    words = ["-o", tmp_path / "all", "-j", 1, "--labels", tmp_path / "labels.json"]
    codes, output = at_once(*(["evaluate", part, one, *words] for part in parts))
    assert codes == [0, 0, 0], output
    assert (tmp_path / "all" / "scores.csv").read_bytes() == (tmp_path / "one" / "scores.csv").read_bytes()
    found: dict[str, Any] = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert found["notes"] == summary["notes"]
    assert found == json.loads((tmp_path / "one" / "summary.json").read_text())
    assert sorted(tree(tmp_path / "all")) == ["scores.csv", "summary.json"]
