"""All folds by one command: one after the other, on several devices, again, and when one of them fails."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from toy import toy_settings

from pipeline.config.settings import Settings
from pipeline.console.printing import print_folds
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.model.folder import fold_folder, trained_folds
from pipeline.stages import train_folds as module
from pipeline.stages.train_folds import FoldOutcome, FoldsResult, train_folds
from pipeline.train.log import EpochRecord


def short(**train: object) -> Settings:
    content = toy_settings().model_dump()
    content["train"].update(epochs=1, iterations_per_epoch=2, **train)
    return Settings.model_validate(content)


def note_epoch(folder: Path, record: EpochRecord, epochs: int, fold: str) -> None:
    (folder / f"{fold} epoch {record.epoch} of {epochs}").touch()


def nothing(text: str) -> None:
    pass


def test_all_folds_are_trained_and_finished_ones_kept(prepared: Path, tmp_path: Path) -> None:
    said: list[str] = []
    epochs: list[tuple[int, str]] = []
    result = train_folds(
        prepared, tmp_path / "m", short(), devices=["cpu"], log=said.append,
        on_epoch=lambda record, total, fold: epochs.append((record.epoch, fold)),
    )  # fmt: skip
    assert [(entry.fold, entry.status) for entry in result.folds] == [(0, "trained"), (1, "trained"), (2, "trained")]
    assert trained_folds(tmp_path / "m") == (0, 1, 2)
    assert epochs == [(1, "fold 0"), (1, "fold 1"), (1, "fold 2")]
    assert said[0].startswith("fold 0: unet 3D: ")
    assert result.exit_code == 0
    stamps = [(fold_folder(tmp_path / "m", n) / "model.safetensors").stat().st_mtime_ns for n in range(3)]
    shutil.rmtree(fold_folder(tmp_path / "m", 1))
    again = train_folds(prepared, tmp_path / "m", short(), devices=["cpu"])
    assert [entry.status for entry in again.folds] == ["kept", "trained", "kept"]
    assert [entry.mean_dice for entry in again.folds] == [entry.mean_dice for entry in result.folds]
    now = [(fold_folder(tmp_path / "m", n) / "model.safetensors").stat().st_mtime_ns for n in range(3)]
    assert (now[0], now[2]) == (stamps[0], stamps[2])
    longer = train_folds(prepared, tmp_path / "m", short(patience=2), devices=["cpu"])
    assert [entry.status for entry in longer.folds] == ["trained"] * 3  # another length: each was asked to go on
    fresh = train_folds(prepared, tmp_path / "m", short(patience=2), devices=["cpu"], restart=True)
    assert [entry.status for entry in fresh.folds] == ["trained"] * 3


def test_a_fold_that_fails_does_not_stop_the_others(prepared: Path, tmp_path: Path) -> None:
    bad = fold_folder(tmp_path / "m", 1)
    bad.mkdir(parents=True)
    (bad / "last.safetensors").write_bytes(b"no checkpoint")
    result = train_folds(prepared, tmp_path / "m", short(), devices=["cpu"])
    assert [entry.status for entry in result.folds] == ["trained", "failed", "trained"]
    assert "expected a checkpoint" in (result.folds[1].error or "")
    assert result.exit_code == 2


def test_several_devices_train_several_folds_at_once(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    options = {"on_epoch": partial(note_epoch, tmp_path / "notes"), "log": nothing}
    result = train_folds(prepared, tmp_path / "m", short(), devices=["cpu", "cpu"], **options)
    assert [entry.status for entry in result.folds] == ["trained"] * 3
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == [f"fold {n} epoch 1 of 1" for n in range(3)]
    alone = train_folds(prepared, tmp_path / "alone", short(), devices=["cpu"])
    assert [entry.mean_dice for entry in result.folds] == pytest.approx([entry.mean_dice for entry in alone.folds])


def test_every_gpu_gets_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 3)
    assert module.default_devices() == ("cuda:0", "cuda:1", "cuda:2")
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    assert len(module.default_devices()) == 1


def test_what_is_wrong_for_every_fold_is_said_once(prepared: Path, tmp_path: Path) -> None:
    content = short().model_dump()
    content["infer"]["keep_largest"] = ("livr",)
    with pytest.raises(ConfigError, match=r"infer.keep_largest: expected some of box_left"):
        train_folds(prepared, tmp_path / "m", Settings.model_validate(content), devices=["cpu"])
    with pytest.raises(VolsegError, match=r"plan.yaml: expected a plan, got nothing there"):
        train_folds(tmp_path, tmp_path / "m", short(), devices=["cpu"])
    with pytest.raises(VolsegError, match=r"device: expected one of cpu"):
        train_folds(prepared, tmp_path / "m", short(), devices=["tpu"])
    shutil.copytree(prepared, tmp_path / "p")
    (tmp_path / "p" / "splits.json").write_text(json.dumps([{"train": ["toy_0"], "validation": ["toy_9"]}]))
    with pytest.raises(VolsegError, match=r"fold 0 validation: expected ids of cases in the dataset, got toy_9"):
        train_folds(tmp_path / "p", tmp_path / "m", short(), devices=["cpu"])
    assert not (tmp_path / "m").exists()


def test_the_summary_says_what_became_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = (FoldOutcome(0, "kept", 0.5), FoldOutcome(1, "trained", 0.7), FoldOutcome(2, "failed", None, "why."))
    result = FoldsResult((*outcomes, FoldOutcome(3, "trained")))
    print_folds(result)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "fold 0: finished before, validation Dice 0.500",
        "fold 1: trained, validation Dice 0.700",
        "fold 2: failed  why.",
        "fold 3: trained, nothing to score",
        "mean of 2 folds: validation Dice 0.600",
    ]
    assert (result.exit_code, FoldsResult(outcomes[2:]).exit_code, FoldsResult(outcomes[:2]).exit_code) == (2, 3, 0)
