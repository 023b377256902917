"""The command line as a new user meets it, with right and wrong input."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run
from toy import toy_settings, write_toy

import pipeline.__main__ as program
from pipeline.stages.prepare import preprocess

COMMANDS = (
    "check",
    "preprocess",
    "train",
    "predict",
    "evaluate",
    "report",
    "phantom",
    "demo",
    "config",
    "networks",
    "convert",
    "dicom",
    "preview",
    "cross-validate",
    "choose",
    "compare",
    "stats",
    "share",
    "export",
    "models",
    "model",
    "import-nnunet",
    "import-totalsegmentator",
    "inspect",
    "serve",
)


def test_help_lists_all_commands_and_loads_neither_torch_nor_monai() -> None:
    code = (
        "import sys\nfrom pipeline.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print('heavy:', *sorted({'torch', 'monai', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.rstrip().endswith("heavy:")


@pytest.mark.parametrize("package", ["pynetdicom", "prometheus_client"])
def test_a_node_without_one_of_its_packages_says_how_to_install_them(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(SystemExit) as end:
        program.main(["serve", "hippocampus", "-o", str(tmp_path / "node")])
    assert end.value.code == 1
    said = "".join(capsys.readouterr())
    assert f"serve: expected {package}, got none. Run pip install 'volseg[service]'." in said
    assert not (tmp_path / "node").exists()


def test_help_groups_the_commands_in_the_order_the_data_flow() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, check=True)
    shown = [line.split()[1:2] for line in done.stdout.splitlines() if line[:2] in ("│ ", "| ")]
    listed = [words[0] for words in shown if words and words[0] in (*COMMANDS, "plan", "prune")]
    assert " ".join(listed) == (
        "preprocess train predict evaluate report check inspect plan preview convert dicom phantom "
        "models import-nnunet import-totalsegmentator cross-validate choose prune share export networks model "
        "compare stats serve demo config"
    )


def test_a_shell_can_complete_the_commands() -> None:
    environment = {**os.environ, "_VOLSEG_COMPLETE": "complete_bash", "COMP_WORDS": "volseg pre", "COMP_CWORD": "1"}
    code = "import sys\nfrom pipeline.__main__ import main\nsys.argv = ['volseg']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["preprocess", "predict", "preview"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_a_stop_that_an_import_makes_another_error_of_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise ImportError("half loaded") from None

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(program, "_run", load)
    with pytest.raises(SystemExit) as ended:
        program.main(["check"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.startswith("Interrupted. ")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs alarms of POSIX")
def test_a_stop_that_is_asked_again_does_not_come_after_the_end() -> None:
    code = """
import time
from types import SimpleNamespace
import pipeline.__main__ as program
from pipeline.core.errors import Stopped

program._run = lambda _: program._stop_again(SimpleNamespace(exc_value=Stopped(15))) or 0
try:
    program.main([])
except SystemExit as end:
    time.sleep(0.3)
    print("ended with", end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ended with 0", done.stderr


@pytest.mark.parametrize("words", [["check"], ["plan", "-o", "planned", "--set", "preprocess.memory_gb=8"]])
def test_looking_at_a_dataset_loads_neither_torch_nor_monai(tmp_path: Path, words: list[str]) -> None:
    write_toy(tmp_path / "data", 2)
    heavy = {"torch", "monai"} if words == ["check"] else {"torch", "monai", "SimpleITK"}
    code = (
        "import sys\nfrom pipeline.__main__ import main\n"
        f"try:\n    main({[words[0], 'data', *words[1:]]})\n"
        f"finally:\n    print('heavy:', *sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy:")


def test_python_m_pipeline_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("volseg 0.")


@pytest.mark.parametrize("step", ["preprocess", "train", "predict", "evaluate"])
def test_scripts_are_thin(step: str) -> None:
    script = Path(__file__).parents[2] / "scripts" / f"{step}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert f" {step} [OPTIONS]" in done.stdout


def test_usage_errors_exit_with_1(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capfd, "train")
    assert code == 1
    assert "Missing argument" in err
    code, _, err = run(capfd, "chek")
    assert code == 1
    assert "No such command" in err
    code, _, err = run(capfd, "preprocess", tmp_path, "-o", tmp_path / "p", "--jobs", "0")
    assert code == 1


def test_wrong_settings_are_reported_all_at_once(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("train:\n  learning_rat: 1\n  epochs: 0\n")
    code, _, err = run(capfd, "config", "show", "-c", config, "--set", "modle.name=unet")
    assert code == 1
    assert "3 problems" in err
    assert "Did you mean learning_rate?" in err
    assert "train.epochs" in err
    assert "modle" in err


def test_config_show_and_schema(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "config", "show", "--set", "train.learning_rate=3e-4")
    assert code == 0
    assert "learning_rate: 0.0003" in out
    code, out, _ = run(capfd, "config", "schema")
    assert code == 0
    assert json.loads(out)["properties"]["train"]


def test_networks_lists_parameters(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "networks", "--patch", "32")
    assert code == 0
    assert "unetpp" in out
    assert "31,0" in out  # the classic U-Net's 31 million


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "{t}/none"), "none: "),
        (("preprocess", "{t}/empty", "-o", "{t}/p"), "expected"),
        (("train", "{t}/empty", "-o", "{t}/m"), "plan.yaml: expected a plan, got nothing there"),
        (("predict", "{t}/empty", "{t}/empty", "-o", "{t}/o"), "expected a model folder with model.json, got none"),
        (("evaluate", "{t}/empty", "{t}/empty", "-o", "{t}/o"), "expected label maps"),
        (("report", "{t}/empty", "-o", "{t}/r.html"), "Run `volseg evaluate`"),
        (("phantom", "{t}/x", "--contrast", "pet"), "contrast: expected ct or mr, got pet"),
        (("phantom", "{t}/x", "--kind", "brain"), "kind: expected torso or fundus, got 'brain'"),
        (("phantom", "{t}/x", "--kind", "fundus", "--size", "full"), "contrast, size: expected none with kind fundus"),
        (("demo", "-c", "{t}/none.yaml"), "none.yaml"),
        (("convert", "{t}/none", "-o", "{t}/o", "--to", "nnunet"), "expected a folder, or a JSON or CSV file"),
    ],
)
def test_wrong_paths_get_one_sentence(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run(capfd, *(word.format(t=tmp_path) for word in words))
    assert code == 1
    assert err.startswith("Error: ")
    assert message in err


def test_check_exit_codes_follow_the_severity(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "toy", 3)
    code, out, _ = run(capfd, "check", dataset, "--jobs", "1")
    assert code == 0
    assert "3 cases: 0 errors" in out
    (dataset / "images" / "toy_1.nii.gz").write_bytes(b"no volume")
    code, out, _ = run(capfd, "check", dataset, "--json", tmp_path / "check.json", "--jobs", "1")
    assert code == 2
    assert "toy_1" in out
    problems = json.loads((tmp_path / "check.json").read_text())["problems"]
    assert {problem["case"] for problem in problems if problem["severity"] == "error"} == {"toy_1"}
    for index in (0, 2):
        (dataset / "images" / f"toy_{index}.nii.gz").write_bytes(b"no volume")
    assert run(capfd, "check", dataset, "--jobs", "1")[0] == 3


def test_a_dataset_is_converted(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset, out = write_toy(tmp_path / "toy", 3), tmp_path / "Dataset501_Toy"
    (dataset / "labels" / "toy_1.nii.gz").write_bytes(b"no volume")
    words = ("convert", dataset, "-o", out, "--to", "nnunet", "--jobs", "1")
    code, text, _ = run(capfd, *words)
    assert code == 2
    assert "failed  case toy_1" in text
    assert "2 converted, 0 up to date, 1 failed" in text
    shutil.copy(dataset / "labels" / "toy_0.nii.gz", dataset / "labels" / "toy_1.nii.gz")
    code, text, _ = run(capfd, *words)
    assert code == 2  # another orientation than its image
    assert "label map grid: expected the image grid" in text
    assert run(capfd, "check", out, "--jobs", "1")[0] == 0
    code, _, err = run(capfd, "convert", dataset, "-o", tmp_path / "x", "--to", "bids")
    assert (code, err) == (
        1,
        "Error: --to: expected one of decathlon, nnunet, datalist, organs, pairs, got 'bids'. Choose one of them.",
    )
    code, _, err = run(capfd, "convert", dataset, "-o", tmp_path / "x")
    assert code == 1
    assert "Missing option '--to'" in err


def test_the_steps_on_the_command_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset, prepared, model = write_toy(tmp_path / "toy", 4), tmp_path / "prepared", tmp_path / "model"
    config = tmp_path / "toy.yaml"
    config.write_text(json.dumps(toy_settings().model_dump(mode="json")))
    code, out, _ = run(capfd, "preprocess", dataset, "-o", prepared, "-c", config, "--jobs", "2")
    assert code == 0
    assert "4 prepared, 0 up to date, 0 failed" in out
    words = ("--set", "train.epochs=1", "--device", "cpu", "--fold", "1")
    code, out, _ = run(capfd, "train", prepared, "-o", model, "-c", config, *words)
    assert code == 0
    assert "Validation, fold 1" in out
    words = ("--set", "infer.overlap=0.25", "--device", "cpu")
    code, out, _ = run(capfd, "predict", model, dataset / "images", "-o", tmp_path / "masks", *words)
    assert code == 0
    assert "4 predicted" in out
    code, out, _ = run(capfd, "evaluate", tmp_path / "masks", dataset, "-o", tmp_path / "scores")
    assert code == 0
    assert "box_small" in out
    code, out, _ = run(capfd, "report", tmp_path / "scores", "-o", tmp_path / "report.html")
    assert code == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_patches_are_drawn(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    preprocess(write_toy(tmp_path / "toy", 3), prepared, toy_settings(), jobs=1)
    words = ("preview", prepared, "-o", tmp_path / "p.png", "--patches", 2, "--set", "sample.patch_size=[16,16,16]")
    code, out, _ = run(capfd, *words)
    assert code == 0
    assert out.count(" · toy_") == 2
    assert "p.png" in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    # Without model.dims a patch of two numbers would be one of a 2D network.
    code, _, err = run(capfd, *words, "--set", "sample.patch_size=[16,16]", "--set", "model.dims=3")
    assert code == 1
    assert "sample.patch_size: expected 3 numbers for model.dims 3" in err
    code, _, err = run(capfd, *words, "--channel", "T2")
    assert (code, "channel: expected one of image, got T2" in err) == (1, True)


def test_a_wrong_device_and_fold_name_the_right_ones(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset, prepared = write_toy(tmp_path / "toy", 4), tmp_path / "prepared"
    assert run(capfd, "preprocess", dataset, "-o", prepared, "--jobs", "1")[0] == 0
    code, _, err = run(capfd, "train", prepared, "-o", tmp_path / "m", "--device", "tpu9")
    assert code == 1
    assert "device: expected one of cpu" in err
    code, _, err = run(capfd, "train", prepared, "-o", tmp_path / "m", "--fold", "7")
    assert code == 1
    assert "fold: expected 0 to 3, got 7" in err
    code, _, err = run(capfd, "train", prepared, "-o", tmp_path / "m", "--set", "sample.patch_size=[17, 16, 16]")
    assert code == 1
    assert "sample.patch_size: expected a size unet can take" in err


def test_ctrl_c_says_how_to_go_on(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.stages.evaluate.evaluate", interrupted)
    code, _, err = run(capfd, "evaluate", "a", "b", "-o", "c")
    assert code == 130
    assert "the same command goes on from there" in err
