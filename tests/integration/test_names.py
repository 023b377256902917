"""Names that other systems left: not UTF-8, as long as a name can be, of control characters; through every command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from toy import toy_settings, write_toy

from pipeline.__main__ import main
from pipeline.core.errors import VolsegError
from pipeline.core.grid import Grid
from pipeline.core.volume import LabelMap
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import read_label_map, write_label_map
from pipeline.evaluate.results import read_evaluation
from pipeline.stages.convert import convert
from pipeline.stages.evaluate import evaluate
from pipeline.stages.prepare import check, preprocess
from pipeline.stages.repair import repair

LATIN_1 = os.fsdecode(b"caf\xe9")
LONG = "n" * 239


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases, one with a name that is not UTF-8, one of 246 bytes, in a folder whose name is not UTF-8."""
    folder = write_toy(tmp_path_factory.mktemp("names") / os.fsdecode(b"d\xe9p\xf4t"), 4)
    for number, name in enumerate((LATIN_1, LONG)):
        for kind in ("images", "labels"):
            (folder / kind / f"toy_{number}.nii.gz").rename(folder / kind / f"{name}.nii.gz")
    return folder


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are Unicode there")
def test_every_case_goes_every_way(strange: Path, tmp_path: Path) -> None:
    opened = open_dataset(strange)
    assert opened.name == "d%E9p%F4t"
    ids = ["caf%E9", LONG, "toy_2", "toy_3"]
    assert [case.id for case in opened.cases] == ids
    assert check(strange, jobs=1).exit_code == 0
    for again in (False, True):
        fixed = repair(strange, tmp_path / "fixed", jobs=1)
        assert (fixed.exit_code, sorted(fixed.copied), fixed.kept) == (0, ids, 4 if again else 0)
        converted = convert(strange, tmp_path / "converted", "nnunet", jobs=1)
        assert sorted(converted.kept if again else converted.done) == ["caf_E9", *ids[1:]]
        prepared = preprocess(strange, tmp_path / "prepared", toy_settings(), jobs=1)
        assert (sorted(prepared.kept if again else prepared.done), prepared.failed) == (ids, ())
    assert json.loads((tmp_path / "prepared/cases/caf%E9/case.json").read_text())["images"] == [
        str((strange / "images" / f"{LATIN_1}.nii.gz").resolve())
    ]
    summary = evaluate(strange / "labels", strange / "labels", tmp_path / "scores", jobs=1)
    assert [(entry["case"], entry["dice"]) for entry in summary["cases"]] == [(case, 1.0) for case in ids]
    assert {row.case for row in read_evaluation(tmp_path / "scores").rows} == set(ids)
    assert read_evaluation(tmp_path / "scores").cases[0].reference.is_file()


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".png"])
def test_itk_gets_no_name_that_would_end_the_process(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"{LATIN_1}{suffix}"
    label_map = LabelMap(np.ones((4, 5, 1), np.uint8), Grid((4, 5, 1), np.diag([-1.0, -1, 1, 1])))
    with pytest.raises(VolsegError, match=rf"^.*{suffix}: path: expected UTF-8, as {suffix} needs, got other bytes\."):
        write_label_map(label_map, path)
    assert list(tmp_path.iterdir()) == []
    write_label_map(label_map, tmp_path / f"a{suffix}")
    (tmp_path / f"a{suffix}").rename(path)
    with pytest.raises(VolsegError, match=r"^case a: .*path: expected UTF-8"):
        read_label_map(path, case="a")


@pytest.mark.parametrize(
    "words",
    [("evaluate", "a", "b", "-o", ""), ("evaluate", "a", "b", "--out="), ("check", ""), ("check", "d", "--fix", " ")],
)
def test_an_empty_word_is_no_path(capfd: pytest.CaptureFixture[str], words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 1
    found = " ".join(capfd.readouterr().err.split())
    name = {"": "-o", "--out=": "--out=", " ": "--fix"}[words[-1]] if len(words) > 2 else "check"
    assert found == f"Error: {name}: expected a value, got an empty one. Give one, or leave it out."


def test_a_message_commands_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "a\x1b[2J\x1b]0;x\x07"])
    err = capfd.readouterr().err
    assert "\\x1b[2J\\x1b]0;x\\x07: dataset: expected a folder" in err
    assert "\x1b[2J" not in err
