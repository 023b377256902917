"""The training loop on a tiny store: it learns, stops, continues bit for bit, and refuses what does not fit."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline.config.settings import LossSettings, Settings, TrainSettings
from pipeline.core.errors import ConfigError, Stopped, VolsegError
from pipeline.data.store import PreparedCase, class_voxels, write_prepared
from pipeline.model.cost import kept_bytes, multiply_adds
from pipeline.model.folder import load_weights, save_weights
from pipeline.model.spec import build_network
from pipeline.sample.augment import PatchGeometry
from pipeline.train import step_memory, trainer
from pipeline.train.loader import PatchSource
from pipeline.train.log import EpochRecord
from pipeline.train.state import (
    Callbacks,
    TrainingProgress,
    TrainRun,
    Validation,
    ValidationScores,
    first_state,
    update,
)
from pipeline.train.step_memory import require_memory
from pipeline.train.trainer import TrainResult, train_fold

SIZE = (8, 8, 8)
GEOMETRY = PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0), ())
NO_VALIDATION = Validation(lambda network, everything: ValidationScores({}, None, {}), 1, 1)


def settings(**train: object) -> Settings:
    return Settings.model_validate(
        {
            "sample": {"patch_size": SIZE, "batch_size": 2},
            "train": {
                "epochs": 4,
                "iterations_per_epoch": 3,
                "validate_every": 2,
                "precision": "fp32",
                "optimizer": "adamw",
                "learning_rate": 1e-2,
                **train,
            },
        }
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        label = np.zeros((12, 12, 12), np.int8)
        label[3:9, 3:9, 3:9] = 1
        image = (label + generator.normal(0, 0.1, label.shape))[None].astype(np.float32)
        write_prepared(tmp_path, PreparedCase(name, image, label, class_voxels(label, 50, generator), {"group": None}))
    return tmp_path


def run(prepared: Path, out: Path, options: Settings, stop_after: int | None = None, dice: float = 0.5) -> TrainResult:
    source = PatchSource(prepared, ["a", "b"], SIZE, 2, options.sample, torch.device("cpu"))
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
    scores = iter([dice, dice + 0.1, dice - 0.1, dice - 0.2, dice - 0.3, dice - 0.4])

    def validate(network: nn.Module, everything: bool) -> ValidationScores:
        assert not network.training
        value = 0.9 if everything else next(scores)
        return ValidationScores({"organ": value}, value, {"a": {"organ": value}})

    def on_epoch(record: EpochRecord, epochs: int) -> None:
        if record.epoch == stop_after:
            raise KeyboardInterrupt

    fold = TrainRun(out, "hash", options, GEOMETRY)
    return train_fold(fold, network, source, Validation(validate, 1, 2), Callbacks(on_epoch=on_epoch))


def test_training_lowers_the_loss_and_writes_its_files(prepared: Path, tmp_path: Path) -> None:
    result = run(prepared, tmp_path / "m", settings(epochs=10, iterations_per_epoch=5, validate_every=5))
    losses = [record.loss for record in result.progress.records]
    assert losses[-1] < 0.7 * losses[0]
    assert result.scores.mean_dice == 0.9
    assert result.progress.best_dice == pytest.approx(0.6)
    assert result.progress.iteration == 50
    rows = (tmp_path / "m" / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,iteration,loss,learning_rate")
    assert rows[0].endswith("dice_organ")
    assert len(rows) == 11
    assert (tmp_path / "m" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "m" / "events").glob("events.*"))
    record = result.progress.records[-1]
    operations = 6 * multiply_adds(build_network("unet", 3, 1, 2, seed=0, features=(4, 8)), SIZE, 1)
    assert record.gflops == pytest.approx(operations * record.patches_per_s / 1e9)
    assert record.ceiling_gflops is not None
    assert record.ceiling_gflops > 0.1
    assert record.peak_memory_mb is not None
    assert record.peak_memory_mb > 100


@pytest.mark.parametrize(
    ("dice", "kept"),
    [
        ((0.0, 0.0, None, None), 4),  # healthy cases: first all hallucinated, then none
        ((None, 0.0, 0.0, 0.0), 1),
        ((None, None, 0.0, 0.0), 2),
        ((0.0, 0.0, 0.0, 0.0), 4),
        ((0.0, 0.5, 0.5, 0.4), 3),  # of equal ones the later
        ((0.5, 0.0, 0.6, 0.6), 4),
        ((0.5, 0.6, 0.4, 0.5), 2),
    ],
)
def test_weights_without_a_false_finding_are_better_than_those_with(
    prepared: Path, tmp_path: Path, dice: tuple[float | None, ...], kept: int
) -> None:
    source = PatchSource(prepared, ["a", "b"], SIZE, 2, settings().sample, torch.device("cpu"))
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
    scores, seen = iter(dice), []

    def validate(network: nn.Module, everything: bool) -> ValidationScores:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        value = None if everything else next(scores)
        return ValidationScores({"organ": value}, value, {})

    options = settings(epochs=4, iterations_per_epoch=1, validate_every=1)
    train_fold(TrainRun(tmp_path / "m", "hash", options, GEOMETRY), network, source, Validation(validate, 1, 2))
    weights = load_weights(tmp_path / "m" / "model.safetensors")
    assert [all(torch.equal(weights[name], each[name]) for name in weights) for each in seen[:4]].index(
        True
    ) == kept - 1


@pytest.mark.parametrize(("select", "decay"), [("last", 0.0), ("last", 0.9), ("best", 0.9)])
def test_the_last_or_the_best_weights_become_the_model(
    prepared: Path, tmp_path: Path, select: str, decay: float
) -> None:
    result = run(prepared, tmp_path / "m", settings(epochs=6, iterations_per_epoch=1, select=select, ema_decay=decay))
    model, best, last = (load_weights(tmp_path / "m" / f"{name}.safetensors") for name in ("model", "best", "last"))
    part = "average." if decay else "network."
    last = {name.removeprefix(part): tensor for name, tensor in last.items() if name.startswith(part)}
    wanted, other = (last, best) if select == "last" else (best, last)
    assert all(torch.equal(model[name], wanted[name]) for name in model)
    assert any(not torch.equal(model[name], other[name]) for name in model)
    assert (result.weights, result.scores.mean_dice) == (select, 0.9)
    caution = "These cases also chose the best of 3 validations: expect a little less of other cases."
    assert result.caution == (caution if select == "best" else "")


def test_the_choice_can_be_changed_when_a_training_has_ended(prepared: Path, tmp_path: Path) -> None:
    files = [tmp_path / "m" / f"{name}.safetensors" for name in ("model", "best", "last")]
    for select in ("last", "best", "last"):
        run(prepared, tmp_path / "m", settings(epochs=6, iterations_per_epoch=1, select=select))
        model, best, last = (load_weights(path) for path in files)
        wanted = best if select == "best" else {name: last[f"network.{name}"] for name in model}
        assert all(torch.equal(model[name], wanted[name]) for name in model)


def test_where_every_validation_takes_all_cases_the_scores_are_those_of_the_weights(
    prepared: Path, tmp_path: Path
) -> None:
    for select, wanted in (("last", 0.3), ("best", 0.8)):
        source = PatchSource(prepared, ["a", "b"], SIZE, 2, settings().sample, torch.device("cpu"))
        network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
        scores = iter([0.8, 0.3])  # a third validation would fail
        validation = Validation(lambda network, everything, found=scores: ValidationScores({}, next(found), {}), 2, 2)
        fold = TrainRun(tmp_path / select, "hash", settings(select=select), GEOMETRY)
        assert train_fold(fold, network, source, validation).scores.mean_dice == wanted


def test_a_killed_training_continues_as_if_it_had_never_stopped(prepared: Path, tmp_path: Path) -> None:
    options = settings(ema_decay=0.9)
    run(prepared, tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path / "cut", options, stop_after=2)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    result = run(prepared, tmp_path / "cut", options, dice=0.6)
    assert [record.epoch for record in result.progress.records] == [1, 2, 3, 4]
    whole, cut = (load_weights(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("network", "regions", "size", "loss", "optimizer"),
    [
        ("unet", ((1,),), SIZE, {"ce_weight": 0.5, "dice_weight": 0.5, "smooth": 1.0}, "adam"),
        ("unet", (), SIZE, {"dice_weight": 0.0, "border_weight": 10.0, "class_weights": "balanced"}, "adamw"),
        ("unet2015", (), (20, 20, 20), {"focal_gamma": 2.0, "tversky_alpha": 0.3, "tversky_beta": 0.7}, "adam"),
    ],
)
def test_every_kind_of_loss_falls(
    prepared: Path,
    tmp_path: Path,
    network: str,
    regions: tuple[tuple[int, ...], ...],
    size: tuple[int, int, int],
    loss: dict[str, float | str],
    optimizer: str,
) -> None:
    options = settings(epochs=2, iterations_per_epoch=25, optimizer=optimizer)
    options = options.model_copy(update={"loss": LossSettings.model_validate(loss)})
    built = build_network(network, 3, 1, 1 if regions else 2, seed=0, features=(4, 8))
    margin = (built.margin[0], built.margin[1], built.margin[2])
    source = PatchSource(prepared, ["a", "b"], size, 2, options.sample, torch.device("cpu"), margin=margin)
    fold = TrainRun(tmp_path / "m", "hash", options, replace(GEOMETRY, regions=regions))
    result = train_fold(fold, built, source, NO_VALIDATION)
    first, last = (record.loss for record in result.progress.records)
    assert last < 0.8 * first


def test_class_weights_of_another_number_than_the_outputs_are_refused(prepared: Path, tmp_path: Path) -> None:
    options = settings().model_copy(update={"loss": LossSettings(class_weights=(1.0, 2.0, 3.0))})
    with pytest.raises(ConfigError, match=r"loss.class_weights: expected 2 numbers \(class 0, class 1\), got 3"):
        run(prepared, tmp_path / "m", options)


def test_steps_are_told_and_what_earlier_runs_did(prepared: Path, tmp_path: Path) -> None:
    def train(options: Settings, steps: list[tuple[float, float]], starts: list[tuple[int, int]]) -> TrainResult:
        source = PatchSource(prepared, ["a", "b"], SIZE, 2, options.sample, torch.device("cpu"))
        network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
        callbacks = Callbacks(
            on_start=lambda records, epochs: starts.append((len(records), epochs)),
            on_step=lambda share, loss: steps.append((share, float(loss))),
        )
        return train_fold(
            TrainRun(tmp_path / "m", "hash", options, GEOMETRY), network, source, NO_VALIDATION, callbacks
        )

    steps: list[tuple[float, float]] = []
    starts: list[tuple[int, int]] = []
    result = train(settings(epochs=2), steps, starts)
    assert [share for share, _ in steps] == pytest.approx([n / 6 for n in range(1, 7)])
    assert [steps[2][1], steps[5][1]] == pytest.approx([record.loss for record in result.progress.records])
    train(settings(epochs=3), steps, starts)
    assert starts == [(0, 2), (2, 3)]
    assert len(steps) == 9


def test_a_finished_training_is_not_trained_again(prepared: Path, tmp_path: Path) -> None:
    first = run(prepared, tmp_path / "m", settings())
    second = run(prepared, tmp_path / "m", settings())
    assert second.progress == first.progress


def test_other_settings_do_not_continue_an_old_training(prepared: Path, tmp_path: Path) -> None:
    run(prepared, tmp_path / "m", settings())
    source = PatchSource(prepared, ["a"], SIZE, 2, settings().sample, torch.device("cpu"))
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
    with pytest.raises(VolsegError, match=r"expected the settings, plan and split this training began with.*--restart"):
        train_fold(TrainRun(tmp_path / "m", "other", settings(), GEOMETRY), network, source, NO_VALIDATION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "[]"}, "content: expected"),
        (
            {"state": '{"identity": "hash", "progress": {"iteration": "x"}, "scaler": {}}'},
            "progress.iteration: expected a",
        ),
        ({"state": "{" * 100_000}, "expected a checkpoint, got "),
        ({}, "expected a checkpoint, got "),
        ("network", "expected a checkpoint of this network, got "),
        ("random", "expected a checkpoint of this network, got 'random'. Begin anew with --restart."),
    ],
)
def test_a_damaged_checkpoint_is_named(
    prepared: Path, tmp_path: Path, change: dict[str, str] | str, message: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path / "m", settings(), stop_after=1)
    path = tmp_path / "m" / "last.safetensors"
    tensors = load_weights(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if isinstance(change, str):
        tensors = {name: value for name, value in tensors.items() if not name.startswith(f"{change}.")}
        tensors |= {"network.other": torch.zeros(1)} if change == "network" else {}
    save_weights(path, tensors, metadata if isinstance(change, str) else change)
    with pytest.raises(VolsegError, match=f"last.safetensors: {re.escape(message)}"):
        run(prepared, tmp_path / "m", settings())


def test_early_stop_after_validations_without_progress(prepared: Path, tmp_path: Path) -> None:
    result = run(prepared, tmp_path / "m", settings(epochs=12, iterations_per_epoch=1, validate_every=1, patience=2))
    assert [record.mean_dice for record in result.progress.records] == pytest.approx([0.5, 0.6, 0.4, 0.3])


def test_the_budget_ends_the_training_on_time(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=0.1)  # a clock that moves 0.1 s whenever it is looked at
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(ticks))
    result = run(prepared, tmp_path / "m", settings(budget="20s", validate_every=1000))
    assert 20 <= result.progress.elapsed_s < 23
    assert result.progress.records[-1].progress == 1.0
    assert [record.mean_dice for record in result.progress.records if record.mean_dice] == [
        0.5,
        0.6,
    ]  # early, at the end


def test_a_loss_that_is_not_finite_stops_with_a_diagnosis_and_its_batch(prepared: Path, tmp_path: Path) -> None:
    sentence = r"training loss: expected a finite number like those before, got nan in step 2\. .*classes 0, 1\. "
    with pytest.raises(
        VolsegError, match=sentence + r"Its intensities look right. Lower train.learning_rate \(1e\+30\)"
    ):
        run(prepared, tmp_path / "m", settings(learning_rate=1e30, gradient_clip=None, optimizer="sgd"))
    batch = load_weights(tmp_path / "m" / "diverged.safetensors")
    assert (batch["images"].shape, batch["labels"].shape) == ((2, 1, *SIZE), (2, *SIZE))
    assert not (tmp_path / "m" / "last.safetensors").exists()  # nothing is saved of what is broken


def train_with_a_bad_gradient(prepared: Path, out: Path, options: Settings, step: int, value: float) -> TrainResult:
    """Train a network with the gradient of one kernel replaced in one step; steps count from 1."""
    source = PatchSource(prepared, ["a", "b"], SIZE, 2, options.sample, torch.device("cpu"))
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
    steps = itertools.count(1)
    kernel = network.get_parameter("encoder.1.unit1.conv.weight")
    kernel.register_hook(lambda gradient: torch.full_like(gradient, value) if next(steps) == step else gradient)
    return train_fold(TrainRun(out, "hash", options, GEOMETRY), network, source, NO_VALIDATION)


@pytest.mark.parametrize(
    ("step", "value", "got", "rest"),
    [
        (2, math.inf, "inf", "There is no checkpoint yet."),
        (5, math.nan, "nan", "The checkpoint before it is kept."),
        (5, 1e25, "inf", "The checkpoint before it is kept."),  # its square is no number any more
    ],
)
def test_a_gradient_that_is_not_finite_stops_with_its_layer(
    prepared: Path, tmp_path: Path, step: int, value: float, got: str, rest: str
) -> None:
    out = tmp_path / "m"
    with pytest.raises(VolsegError) as raised:
        train_with_a_bad_gradient(prepared, out, settings(), step, value)
    sentence = (
        rf"gradient of encoder\.1\.unit1\.conv\.weight: expected a finite number like those before, got {got} in step "
        rf"{step}\. Its batch is in .*Its intensities and its loss \(\d\.\d+\) look right\. "
        r"Lower train.learning_rate\. "
    )
    assert re.fullmatch(sentence + re.escape(rest), str(raised.value))
    assert load_weights(out / "diverged.safetensors")["images"].shape == (2, 1, *SIZE)
    kept = out / "last.safetensors"
    assert kept.exists() == (step > 3)
    assert not kept.exists() or all(tensor.isfinite().all() for tensor in load_weights(kept).values())


def test_a_gradient_that_is_not_finite_leaves_out_a_step_of_fp16() -> None:
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # its arithmetic alone: fp16 itself is slow on processors
    state = replace(first_state(network, settings().train, torch.float32), scaler=scaler)
    network.get_parameter("encoder.1.unit1.conv.weight").register_hook(lambda g: torch.full_like(g, math.inf))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    batch = torch.ones((2, 1, *SIZE)), torch.ones((2, *SIZE), dtype=torch.long)
    update(state, [batch], lambda heads, labels: cast(torch.Tensor, heads).square().mean(), settings().train, 0.1)
    assert (state.norms, scaler.get_scale()) == ({}, 512.0)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_norms_and_clipped_gradients_are_those_of_torch() -> None:
    network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8))
    state = first_state(network, settings().train, torch.float32)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn((2, 1, *SIZE), generator=generator), torch.ones((2, *SIZE), dtype=torch.long)
    train = settings(gradient_clip=0.01).train
    update(state, [(images, labels)], lambda heads, labels: cast(torch.Tensor, heads).square().mean(), train, 0.0)
    clipped = [value.grad.clone() for value in network.parameters() if value.grad is not None]
    network.zero_grad()
    network(images).square().mean().backward()
    for name, value in network.named_parameters():
        assert value.grad is None or torch.equal(state.norms[name], torch.linalg.vector_norm(value.grad))
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
    wanted = [value.grad for value in network.parameters() if value.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(clipped, wanted, strict=True))
    assert torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in wanted])) == pytest.approx(0.01)


def test_a_loss_that_explodes_stops_the_training(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.4, 0.3, 0.3, 0.2, 0.2, 3.0, 9.0, 9.0])  # means 0.4, 0.23 and 7
    real = trainer.update

    def update(*arguments: Any) -> torch.Tensor:
        return real(*arguments) * 0 + next(losses)

    monkeypatch.setattr(trainer, "update", update)
    with pytest.raises(VolsegError, match=r"got 7 in step 9\. .*The checkpoint before it is kept"):
        run(prepared, tmp_path / "m", settings())
    assert load_weights(tmp_path / "m" / "last.safetensors")


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_a_training_that_was_asked_to_stop_continues_at_the_next_step(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    options = settings(ema_decay=0.9, accumulate=2)
    run(prepared, tmp_path / "whole", options)
    real, done = trainer.update, itertools.count(1)

    def update(*arguments: Any) -> torch.Tensor:
        if next(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(trainer, "update", update)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        run(prepared, tmp_path / "cut", options)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    result = run(prepared, tmp_path / "cut", options, dice=0.5 if step < 7 else 0.6)
    assert result.progress.iteration == 12
    whole, cut = (load_weights(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    losses = [
        [line.split(",")[2] for line in (tmp_path / name / "history.csv").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_a_signal_during_a_validation_ends_it_and_it_is_made_again(prepared: Path, tmp_path: Path) -> None:
    source = PatchSource(prepared, ["a", "b"], SIZE, 2, settings().sample, torch.device("cpu"))
    asked = iter([True, False, False])

    def validate(network: nn.Module, everything: bool) -> ValidationScores:
        if next(asked, False):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        return ValidationScores({"organ": 0.5}, 0.5, {})

    def train() -> TrainResult:
        network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), deep_supervision=True)
        fold = TrainRun(tmp_path / "m", "hash", settings(), GEOMETRY)
        return train_fold(fold, network, source, Validation(validate, 1, 1))

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.monotonic() - began < 9
    result = train()
    assert [record.mean_dice for record in result.progress.records] == [None, 0.5, None, 0.5]
    assert result.progress.iteration == 12


def test_checkpoints_are_kept_by_number_and_within_epochs(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    real = trainer.save_checkpoint

    def save(folder: Path, progress: TrainingProgress, *rest: Any) -> None:
        saved.append(progress.iteration)
        real(folder, progress, *rest)

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    run(prepared, tmp_path / "m", settings(checkpoint_minutes=1e-9, keep_checkpoints=3))
    assert sorted(set(saved)) == list(range(1, 13))
    names = sorted(path.name for path in (tmp_path / "m").glob("step_*"))
    assert names == ["step_00000010.safetensors", "step_00000011.safetensors", "step_00000012.safetensors"]


def test_accumulated_parts_update_as_one_large_batch(prepared: Path, tmp_path: Path) -> None:
    weights = []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        options = settings(accumulate=accumulate, optimizer="sgd", epochs=1)
        plain = options.augment.model_copy(update={"enabled": False})  # turned patches have ignored corners, which
        options = options.model_copy(update={"augment": plain})  # makes parts of unlike weight in the cross-entropy
        source = PatchSource(
            prepared, ["a", "b"], SIZE, batch_size, options.sample, torch.device("cpu"), parts=accumulate
        )
        network = build_network("unet", 3, 1, 2, seed=0, features=(4, 8), norm="instance")
        out = tmp_path / str(accumulate)
        train_fold(TrainRun(out, "hash", options, GEOMETRY), network, source, NO_VALIDATION)
        weights.append(load_weights(out / "last.safetensors"))
    for name, tensor in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_batch_is_the_same_whenever_it_is_made(prepared: Path) -> None:
    for strategy in ("balanced", "sliding"):
        sample = settings().sample.model_copy(update={"strategy": strategy})
        source, again = (
            PatchSource(prepared, ["a", "b"], SIZE, 2, sample, torch.device("cpu"), seed=3, parts=2) for _ in range(2)
        )
        whole = PatchSource(prepared, ["a", "b"], SIZE, 4, sample, torch.device("cpu"), seed=3)
        later = again.batch(5, 1)
        made = {n: source.batch(n, 1) for n in range(6)}
        assert torch.equal(made[5][0], later[0])
        assert not torch.equal(made[4][0], later[0])
        both, parts = whole.batch(5)[0], [source.batch(5, part) for part in (0, 1)]
        for images, _, places in parts:
            assert torch.equal(images, both[list(places)])


def test_sliding_patches_see_every_voxel_once(prepared: Path) -> None:
    sample = settings().sample.model_copy(update={"strategy": "sliding", "patch_size": (4, 4, 4)})
    source = PatchSource(prepared, ["a", "b"], (4, 4, 4), 5, sample, torch.device("cpu"))
    batches = source.batches_per_epoch(999)
    assert batches == -(-2 * 27 // 5)
    seen = sum(int((labels >= 0).sum()) for _, labels, _ in map(source.batch, range(batches)))
    assert seen == 2 * 12**3


def test_uncached_cases_give_the_same_patches(prepared: Path) -> None:
    sample = settings().sample
    sources = [
        PatchSource(prepared, ["a", "b"], SIZE, 2, sample.model_copy(update={"cache_mb": mb}), torch.device("cpu"))
        for mb in (0, 64)
    ]
    batches = [[source.batch(n)[:2] for n in range(3)] for source in sources]
    for (images, labels), (others, their_labels) in zip(*batches, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


def test_a_2d_source_drops_the_slice_axis(prepared: Path) -> None:
    source = PatchSource(prepared, ["a"], (8, 1, 6), 3, settings().sample, torch.device("cpu"), squeeze_axis=1)
    images, labels, _ = source.batch(0)
    assert images.shape == (3, 1, 8, 6)
    assert labels.shape == (3, 8, 6)


def test_record_round_trip() -> None:
    record = EpochRecord(1, 2, 0.5, 0.1, 1.0, 2.0, 0.1, 0.5, dice={"a": None})
    assert EpochRecord(**record.to_json()) == record
    assert replace(record, epoch=2) != record


# A step that cannot fit is refused before it is tried.

NETWORK = build_network("unet", 2, 1, 3, features=(4, 8))
NEEDED = kept_bytes(NETWORK, (6, 1, 64, 32))


def source(squeeze_axis: int | None = 2) -> Any:
    return cast(
        Any,
        SimpleNamespace(device=torch.device("cpu"), patch_size=(64, 32, 1), batch_size=6, squeeze_axis=squeeze_axis),
    )


def test_a_batch_larger_than_the_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(precision="fp32")
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: NEEDED)
    require_memory(NETWORK, source(), settings)
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: NEEDED - 1)
    said = r"memory of cpu: expected at least \d MB for a step with 6 patches of 64 x 32, got \d MB\. Lower sample"
    with pytest.raises(VolsegError, match=said):
        require_memory(NETWORK, source(), settings)
    require_memory(NETWORK, source(), settings.model_copy(update={"recompute": True}))


def test_where_the_memory_is_unknown_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: None)
    require_memory(NETWORK, source(), TrainSettings())
