"""Settings, plans, model folders, prepared cases, records and scores, damaged at random: a result, or one sentence."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from effort import tries
from mutations import mutated_file, mutated_override
from toy import toy_settings, write_toy

from pipeline.config.settings import Settings
from pipeline.config.yaml_file import load_settings, save_settings
from pipeline.console.printing import plan_lines, table_rows
from pipeline.core.errors import VolsegError
from pipeline.data.prepared_cases import prepared_ids, read_info
from pipeline.evaluate.pairing import find_images, pair_files
from pipeline.evaluate.results import read_evaluation, read_summary
from pipeline.infer.cleaning import Cleaning, read_cleaning
from pipeline.model.device import PLAIN
from pipeline.model.folder import load_network, member_folders, read_card, trained_folds
from pipeline.model.spec import design_network, patches_per_batch
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.plan_file import read_plan, write_plan
from pipeline.report.report import write_report
from pipeline.stages.convert import convert
from pipeline.stages.evaluate import evaluate
from pipeline.stages.model_files import PreparedFolds, finished_as, mean_dice_of, validation_cases
from pipeline.stages.postprocessing import Decision, Postprocessing, Step, read_postprocessing, write_postprocessing
from pipeline.stages.predict import Predictor
from pipeline.stages.prediction_files import Output
from pipeline.stages.prepare import preprocess
from pipeline.stages.repair import repair
from pipeline.stages.train import train
from pipeline.stages.tune import remember, remembered
from pipeline.train.checkpoint import require_same_training
from pipeline.train.loader import PatchSource

LIMIT_S = tries(30, 300)  # of any of them; most take milliseconds, on a machine that has time for them
WORDS = ("train.epochs=3", "sample.patch_size=[16, 16, 16]", "model.options={features: [8, 16]}", "train.budget=10m")
CPU = torch.device("cpu")


def _settings() -> Settings:
    settings = toy_settings().model_dump()
    settings["train"] |= {"epochs": 1, "iterations_per_epoch": 2, "keep_checkpoints": 1}
    settings["sample"] |= {"folds": 2}
    return Settings.model_validate(settings)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset and everything that the commands make of it."""
    home = tmp_path_factory.mktemp("fuzz")
    data = write_toy(home / "data", 2)
    save_settings(_settings(), home / "run.yaml")
    preprocess(data, home / "prepared", _settings(), jobs=1)
    train(home / "prepared", home / "model", _settings(), device="cpu")
    decision = Decision(Step("remove_small", "box_left", 0.5), 0.5, 0.6, 0.5, 0.6, True)
    write_postprocessing(Postprocessing((decision,), 2, 0.5, 0.6), home / "model")
    (home / "ensemble").mkdir()
    (home / "ensemble" / "ensemble.json").write_text('{"members": ["a", "b"], "folds": [0], "candidates": []}')
    _predict(home)
    evaluate(home / "masks", data / "labels", home / "scores", jobs=1)
    convert(data, home / "converted", "pairs", jobs=1)
    repair(data, home / "repaired", jobs=1)
    return home


def _predict(home: Path) -> None:
    predictor = Predictor.load(home / "model", device="cpu", settings=["infer.overlap=0"])
    predictor.predict_files([home / "data" / "images"], home / "masks", output=Output(statistics=True))


def _plan(home: Path) -> None:
    plan = read_plan(home / "prepared" / "plan.yaml")
    plan_lines(plan)
    write_plan(plan, home / "again.yaml")
    assert read_plan(home / "again.yaml").content_hash == plan.content_hash
    patches_per_batch(plan, design_network(plan, _settings().model, _settings().sample), _settings().sample)


def _run(home: Path) -> None:
    settings = load_settings(home / "run.yaml")
    save_settings(settings, home / "again.yaml")
    assert load_settings(home / "again.yaml") == settings
    design_network(read_plan(home / "prepared" / "plan.yaml"), settings.model, settings.sample)


def _model(home: Path) -> None:
    card = read_card(home / "model")
    for fold in trained_folds(home / "model"):
        network = load_network(home / "model", card, fold)
        assert all(value.isfinite().all() for value in network.state_dict().values())
    Predictor.load(home / "model", device="cpu")


def _cleaning(home: Path) -> None:
    labels = read_card(home / "model").plan.label_table
    cleaning = read_cleaning(home / "model", labels) | Cleaning()
    cleaning.apply(np.ones((3, 3, 3), np.int8), labels, 0.1)
    read_postprocessing(home / "model")


def _validation(home: Path) -> None:
    finished_as(home / "model", 0, "x")
    mean_dice_of(home / "model", 0)
    validation_cases(home / "model", read_card(home / "model"), PreparedFolds.read(home / "prepared"), [0])


def _cases(home: Path) -> tuple[torch.Tensor, ...]:
    folder, ids = home / "prepared", prepared_ids(home / "prepared")
    for case in ids:
        trace = read_info(folder, case).get("trace", {})
        with suppress(ValueError):
            GridHistory.from_json(trace)
    return PatchSource(folder, ids, (8, 8, 8), 4, _settings().sample, CPU).batch(0)[:2]


def _scores(home: Path) -> None:
    evaluation, summary = read_evaluation(home / "scores"), read_summary(home / "scores")
    table_rows(summary)
    if tries(0, 1):
        write_report(home / "scores", home / "report.html", overlays=1, viewer_cases=1)
    assert evaluation.columns


def _masks(home: Path) -> None:
    _predict(home)
    assert len(list((home / "masks").glob("*.nii.gz"))) == 2


@dataclass(frozen=True)
class Target:
    """Files of a folder, one of which is damaged, and who reads them; ``needs`` are further folders."""

    files: str
    read: Callable[[Path], Any]
    needs: tuple[str, ...] = ()
    share: float = 1.0


TARGETS = {
    "settings": Target("run.yaml", _run, ("prepared",), 3),
    "plan": Target("prepared/plan.yaml", _plan, share=3),
    "folds": Target("prepared/splits.json", lambda home: PreparedFolds.read(home / "prepared")),
    "cases": Target("prepared/cases/*/*", _cases, share=3),
    "model": Target("model/model.json", _model, share=3),
    "weights": Target("model/fold_0/model.safetensors", _model),
    "checkpoint": Target("model/fold_0/last.safetensors", lambda h: require_same_training(h / "model" / "fold_0", "x")),
    "ensemble": Target("ensemble/ensemble.json", lambda home: member_folders(home / "ensemble")),
    "cleaning": Target("model/postprocessing.json", _cleaning),
    "validation": Target("model/fold_0/validation.json", _validation, ("prepared",)),
    "scores": Target("scores/*", _scores, ("data", "masks"), 3),
    "masks": Target("masks/*.json", _masks, ("data", "model"), 0.5),
    "images": Target(
        "masks/predictions.json",
        lambda home: find_images(home / "masks", pair_files(home / "masks", home / "data" / "labels")),
        ("data",),
    ),
    "conversion": Target(
        "converted/*.json", lambda home: convert(home / "data", home / "converted", "pairs", jobs=1), ("data",), 0.5
    ),
    "repairs": Target(
        "repaired/**/*.json", lambda home: repair(home / "data", home / "repaired", jobs=1), ("data",), 0.5
    ),
}


@contextmanager
def limited(what: str) -> Iterator[None]:
    """End what takes too long, with a failure."""

    def stop(*_: object) -> None:
        pytest.fail(f"{what}: more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(what: str, action: Callable[[], Any]) -> Any:
    """What an action gives; None where it refuses, with a sentence of bounded length."""
    with limited(what):
        try:
            return action()
        except VolsegError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert message, what
    assert "object at 0x" not in message, what
    assert len(message) < 20_000, what
    return None


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_as_they_were_or_refused(name: str, sound: Path, tmp_path: Path) -> None:
    target, expected = TARGETS[name], None
    top = target.files.partition("/")[0]
    originals = sorted(path for path in sound.glob(target.files) if path.is_file())
    assert originals
    if name == "cases":
        expected = _cases(sound)
    for number in range(round(tries(8, 450) * target.share)):
        generator = random.Random(f"{name} {number}")
        home = tmp_path / str(number)
        for part in (top, *target.needs):
            if (sound / part).is_dir():
                shutil.copytree(sound / part, home / part)
        original = generator.choice(originals)
        path = home / original.relative_to(sound)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutated_file(path.name, original.read_bytes(), generator))
        found = outcome(f"{name} {number} ({path.name})", lambda home=home: target.read(home))
        if found is not None and expected is not None and path.name != "case.json":
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), number
        shutil.rmtree(home)


@pytest.mark.long
def test_damaged_overrides_are_taken_or_refused() -> None:
    for number in range(tries(60, 1500)):
        generator = random.Random(number)
        word = mutated_override(generator.choice(WORDS), generator)
        outcome(f"override {number}: {word[:60]!r}", lambda word=word: load_settings(None, [word]))


@pytest.mark.long
def test_damaged_memories_of_measurements_count_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember("a", PLAIN)
    path = tmp_path / "volseg" / "autotune.json"
    sound = path.read_bytes()
    for number in range(tries(20, 500)):
        path.write_bytes(mutated_file(path.name, sound, random.Random(number)))
        known = outcome(f"memory {number}", lambda: remembered("a"))
        assert known is None or (isinstance(known.channels_last, bool) and known.compiled in ("no", "fused", "graphs"))
