"""A cascade through all steps: prepared on two grids, two stages trained by one command, one folder that predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.transform import resize
from toy import toy_case, toy_settings, write_toy

from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.data.layouts import open_dataset
from pipeline.data.store import open_prepared, open_stage_map
from pipeline.data.volumes import read_label_map, write_image
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.segment import labels_on, restore_labels, segment
from pipeline.model.folder import load_network, read_card
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.plan_file import FIRST_STAGE, LowResolution, PatchPlan, read_plan, write_plan
from pipeline.preprocess.prepare_case import prepare_image
from pipeline.sample.folds import read_splits, write_splits
from pipeline.stages.cascade import FirstStage
from pipeline.stages.choose import choose
from pipeline.stages.cross_validate import cross_validate
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prepare import make_plan, preprocess
from pipeline.stages.preview import preview
from pipeline.stages.prune import prune
from pipeline.stages.share import share
from pipeline.stages.train import train
from pipeline.stages.train_folds import train_folds

CASES = 4


def short(**train: object) -> Settings:
    content = toy_settings().model_dump()
    content["sample"] |= {"patch_size": None, "folds": 2}
    content["train"] |= {"epochs": 1, "iterations_per_epoch": 8, **train}
    return Settings.model_validate(content)


def prepare(root: Path, regions: dict[str, list[int]] | None = None) -> Path:
    """Patches see 1/14 of a case, on the low resolution nearly all of it."""
    dataset = write_toy(root / "data", CASES)
    if regions:
        described = json.loads((dataset / "labels.json").read_text())
        (dataset / "labels.json").write_text(json.dumps({**described, "regions": regions}))
    plan = make_plan(open_dataset(dataset), toy_settings(), jobs=1)
    low = LowResolution(spacing_mm=(4.0, 4.0, 4.0), median_shape=(10, 9, 10), patch_size=(8, 8, 8), batch_size=3)
    update = {"patch_3d": PatchPlan(patch_size=(8, 8, 8), batch_size=2), "low_resolution": low, "cascade": True}
    write_plan(plan.model_copy(update=update), root / "plan.yaml")
    batch = preprocess(dataset, root / "prepared", short(), plan=root / "plan.yaml", jobs=1)
    assert (len(batch.done), batch.failed) == (CASES, ())
    return root / "prepared"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cascade")
    made = prepare(root)
    again = preprocess(root / "data", made, short(), plan=root / "plan.yaml", jobs=1)
    assert (len(again.kept), again.done) == (CASES, ())
    return made


@pytest.fixture(scope="module")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    said: list[str] = []
    result = train_folds(prepared, out, short(), devices=["cpu"], log=said.append)
    assert [(entry.fold, entry.status) for entry in result.folds] == [(0, "trained"), (1, "trained")]
    assert sum(line.startswith("first stage, fold") and "trained" in line for line in said) == 2
    assert f"first stage: {CASES} cases are predicted, each by the fold that did not train on it" in said
    return out


def test_both_grids_are_prepared_with_the_same_folds(prepared: Path) -> None:
    first = prepared / FIRST_STAGE
    assert read_plan(first / "plan.yaml").content_hash == read_plan(prepared / "plan.yaml").first_stage().content_hash
    for folder, shape in ((prepared, (20, 18, 20)), (first, (10, 9, 10))):
        image, label = open_prepared(folder, "toy_0")
        assert image.shape == (1, *shape)
        assert label.shape == shape
    assert (first / "splits.json").read_bytes() == (prepared / "splits.json").read_bytes()


def test_the_second_stage_sees_what_nnunet_would_feed_it(prepared: Path, model: Path) -> None:
    """nnU-Net: logits of the fold that validated the case, resampled to the other grid with order 1, then the class."""
    first, card = FirstStage(prepared, model), read_card(model / FIRST_STAGE)
    found = {}
    for fold, split in enumerate(read_splits(prepared / "splits.json", [f"toy_{n}" for n in range(CASES)])):
        network = load_network(model / FIRST_STAGE, card, fold)
        for case in split.validation:
            image = torch.from_numpy(open_prepared(prepared / FIRST_STAGE, case)[0][...])
            inferer = StreamingInferer((8, 8, 8), overlap=0.5, placement="even")
            logits = inferer(image[None], network)[0].numpy()
            shape = open_prepared(prepared, case)[1].shape
            moved = np.stack([resize(each, shape, order=1, mode="edge", anti_aliasing=False) for each in logits])
            found[case] = open_stage_map(first.maps, case, shape)[...]
            np.testing.assert_array_equal(found[case], moved.argmax(axis=0))
    assert sorted(found) == [f"toy_{n}" for n in range(CASES)]
    assert any(part.any() for part in found.values())
    second = read_card(model).network
    assert (second.in_channels, second.stage_classes) == (1 + 2, 2)  # the image, and a channel for each organ


def test_one_folder_predicts_and_can_be_given_away(prepared: Path, model: Path, tmp_path: Path) -> None:
    image, _ = toy_case(9)
    predictor = Predictor.load(model, device="cpu")
    predicted = predictor.predict(image)
    assert predicted.grid == image.grid
    # By hand: the first stage on its grid, its labels as a channel, the second stage; logits of the folds averaged.
    second, first = read_card(model), read_card(model / FIRST_STAGE)
    low, _ = prepare_image(image, first.plan)
    full, history = prepare_image(image, second.plan)
    inferer = StreamingInferer((8, 8, 8), overlap=0.5, placement="even")

    def mean_of(home: Path, array: np.ndarray) -> torch.Tensor:
        networks = [load_network(home, read_card(home), fold) for fold in (0, 1)]
        return torch.stack([inferer(torch.from_numpy(array)[None], network) for network in networks]).mean(dim=0)

    logits = mean_of(model / FIRST_STAGE, low)[0].numpy()
    shape = full.shape[1:]
    found = np.stack([resize(each, shape, order=1, mode="edge", anti_aliasing=False) for each in logits]).argmax(axis=0)
    seen = np.concatenate([full, found[None]]).astype(np.float32)
    index = mean_of(model, seen)[0].argmax(dim=0).numpy()
    np.testing.assert_array_equal(labels_on(predictor.models[0], seen, shape), index)
    assert 0 < index.mean() < 2
    restored = second.plan.label_table.from_index(segment(predictor.models, [(seen, history)]))
    np.testing.assert_array_equal(predicted.array, restored)

    written = share(model, tmp_path / "shared")
    assert {f"{FIRST_STAGE}/model.json", f"{FIRST_STAGE}/fold_1/model.safetensors", "model.json"} <= set(written)
    np.testing.assert_array_equal(
        Predictor.load(tmp_path / "shared", device="cpu").predict(image).array, predicted.array
    )
    body = Predictor.load(model, device="cpu", settings=["infer.roi=body"]).predict(image)
    np.testing.assert_array_equal(body.array, predicted.array)  # all of a toy is body


def test_out_of_fold_predictions_take_what_the_first_stage_found_in_training(prepared: Path, model: Path) -> None:
    result = cross_validate(model, prepared, device="cpu", jobs=1)
    assert (len(result.batch.done), result.batch.failed) == (CASES, ())
    assert list(result.batch.done) == [f"toy_{n}" for n in range(CASES)]
    assert cross_validate(model, prepared, device="cpu", jobs=1).batch.kept == tuple(f"toy_{n}" for n in range(CASES))


def test_the_best_of_several_goes_with_its_first_stage(prepared: Path, model: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(model, twin)
    for each in (model, twin):
        cross_validate(each, prepared, device="cpu", jobs=1)
    best = choose([model, twin], tmp_path / "best", device="cpu", jobs=1).candidates[0]
    assert best.members == ("model",)  # of equal ones the single model
    image, _ = toy_case(9)
    ours, theirs = (Predictor.load(folder, device="cpu").predict(image).array for folder in (tmp_path / "best", model))
    np.testing.assert_array_equal(ours, theirs)


def test_organs_that_overlap_go_through_both_stages(tmp_path: Path) -> None:
    """nnU-Net: regions are painted into labels in their order, and the second stage gets a channel of each label."""
    prepared, out = prepare(tmp_path, {"both": [1, 2], "small": [2]}), tmp_path / "model"
    assert train_folds(prepared, out, short(iterations_per_epoch=12), devices=["cpu"]).exit_code == 0
    first, second = read_card(out / FIRST_STAGE), read_card(out)
    assert (first.network.in_channels, first.network.out_channels) == (1, 2)
    assert (second.network.in_channels, second.network.stage_classes, second.network.out_channels) == (1 + 2, 2, 2)
    inferer = StreamingInferer((8, 8, 8), overlap=0.5, placement="even")

    def painted(logits: np.ndarray) -> np.ndarray:
        both, small = logits > 0  # a probability above 0.5
        return np.where(small, 2, np.where(both, 1, 0))

    def first_found(low: np.ndarray, folds: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        networks = [load_network(out / FIRST_STAGE, first, fold) for fold in folds]
        logits = torch.stack([inferer(torch.from_numpy(low)[None], network)[0] for network in networks]).mean(0).numpy()
        return painted(np.stack([resize(each, shape, order=1, mode="edge", anti_aliasing=False) for each in logits]))

    for fold, split in enumerate(read_splits(prepared / "splits.json", [f"toy_{n}" for n in range(CASES)])):
        case = split.validation[0]
        found = open_stage_map(FirstStage(prepared, out).maps, case, open_prepared(prepared, case)[1].shape)[...]
        low = open_prepared(prepared / FIRST_STAGE, case)[0][...]
        np.testing.assert_array_equal(found, first_found(low, (fold,), found.shape))
        assert {1, 2} <= set(np.unique(found))

    images = tmp_path / "images"
    for index in (9, 10):
        write_image(toy_case(index)[0], images / f"toy_{index}.nii.gz")
    assert predict(out, [images], tmp_path / "masks", device="cpu").failed == ()
    for index in (9, 10):
        image, mask = toy_case(index)[0], read_label_map(tmp_path / "masks" / f"toy_{index}.nii.gz")
        assert mask.grid.matches(image.grid)
        assert mask.grid.orientation == image.grid.orientation
        full, history = prepare_image(image, second.plan)
        found = first_found(prepare_image(image, first.plan)[0], (0, 1), full.shape[1:])
        seen = torch.from_numpy(np.concatenate([full, [found == 1], [found == 2]]).astype(np.float32))
        networks = [load_network(out, second, fold) for fold in (0, 1)]
        logits = torch.stack([inferer(seen[None], network)[0] for network in networks]).mean(0)
        index = torch.from_numpy(painted(resample(logits, history.cropped.shape, 1).numpy()).astype(np.uint8))
        assert np.mean(mask.array != restore_labels([(0, index)], 0, history)) < 1e-3  # rounding
        assert {1, 2} <= set(np.unique(mask.array))


def test_what_is_finished_is_kept_and_a_changed_first_stage_is_noticed(
    prepared: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    shutil.copytree(model, out)
    maps = FirstStage(prepared, out).maps
    again = train_folds(prepared, out, short(), devices=["cpu"])
    assert [entry.status for entry in again.folds] == ["kept", "kept"]
    # A run that was killed while it wrote: what is missing is made again, all else stays.
    (maps / "toy_1.json").unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in maps.glob("*.b2nd")}
    assert [entry.status for entry in train_folds(prepared, out, short(), devices=["cpu"]).folds] == ["kept", "kept"]
    now = {path.name: path.stat().st_mtime_ns for path in maps.glob("*.b2nd")}
    assert [name for name in stamps if now[name] != stamps[name]] == ["toy_1.b2nd"]
    # Fold 1 of the first stage is another network now: what it found changes, and so does the second stage's data.
    train(prepared / FIRST_STAGE, out / FIRST_STAGE, short(seed=5), fold=1, device="cpu", restart=True)
    with pytest.raises(VolsegError, match="expected the cases this training began with, got some that were changed"):
        train(prepared, out, short(), fold=0, device="cpu")
    assert train(prepared, out, short(), fold=0, device="cpu", restart=True).progress.records


def test_a_first_stage_that_was_trained_on_other_cases_is_refused(prepared: Path, model: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "prepared" / FIRST_STAGE, tmp_path / "model"
    shutil.copytree(prepared, first.parent)
    shutil.copytree(model / FIRST_STAGE, out / FIRST_STAGE)
    # As after `preprocess` of a corrected label map: the same plan, another content hash.
    for folder in (first, first.parent):
        note = folder / "cases" / "toy_1" / "case.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "hash": "corrected"}))
    said = r"first stage: expected folds trained on the cases as they are now, got 0, 1 trained on others\. Train it"
    with pytest.raises(VolsegError, match=said):
        train(first.parent, out, short(), device="cpu")
    assert train_folds(first.parent, out, short(), devices=["cpu"]).exit_code == 3  # noticed there, too
    # An old version did not note the cases.
    for fold in (0, 1):
        scores = out / FIRST_STAGE / f"fold_{fold}" / "validation.json"
        content = json.loads(scores.read_text())
        scores.write_text(json.dumps({**content, "training": content["training"].partition("-")[0]}))
    assert train(first.parent, out, short(), device="cpu").progress.records


def test_what_cannot_be_done_is_said(prepared: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match=r"first stage: expected folds 0, 1 to be trained, got none.*--fold all"):
        train(prepared, tmp_path / "new", short(), device="cpu")
    other = tmp_path / "other"  # said before hours are spent on its first stage
    shutil.copytree(model / FIRST_STAGE, other)
    with pytest.raises(VolsegError, match="expected the network and plan of the folds trained there, got others"):
        train_folds(prepared, other, short(), devices=["cpu"])
    assert not (other / FIRST_STAGE).exists()
    shutil.copytree(model / FIRST_STAGE, tmp_path / "mixed" / FIRST_STAGE)
    card = tmp_path / "mixed" / FIRST_STAGE / "model.json"
    card.write_text(card.read_text().replace('"box_left"', '"box_right"'))
    with pytest.raises(VolsegError, match=r"first stage: expected the plan of .*, got another"):
        train(prepared, tmp_path / "mixed", short(), device="cpu")
    with pytest.raises(ConfigError, match=r"infer\.roi: expected none or body for a cascade, got organs"):
        Predictor.load(model, device="cpu", settings=["infer.roi=organs"])
    with pytest.raises(VolsegError, match="expected one without a first stage, got a cascade"):
        prune(model, prepared, tmp_path / "pruned")
    flat = short().model_copy(update={"model": short().model.model_copy(update={"dims": 2})})
    with pytest.raises(ConfigError, match=r"model\.dims: expected 3 for a cascade"):
        train_folds(prepared, tmp_path / "flat", flat, devices=["cpu"])
    assert preview(prepared, tmp_path / "patches.png", short(), patches=1).path.is_file()
    # A case that only ever trains was seen by every fold of the first stage.
    other = tmp_path / "prepared"
    shutil.copytree(prepared, other)
    folds = read_splits(other / "splits.json", [f"toy_{n}" for n in range(CASES)])
    write_splits(other / "splits.json", folds[:1])
    with pytest.raises(VolsegError, match=r"splits\.json: expected the folds of"):
        train_folds(other, tmp_path / "m", short(), devices=["cpu"])
    shutil.copy(other / "splits.json", other / FIRST_STAGE / "splits.json")
    with pytest.raises(VolsegError, match="expected every training case in some fold's validation, got 2 in none"):
        train_folds(other, tmp_path / "m", short(), devices=["cpu"])
    shutil.rmtree(other / FIRST_STAGE)
    with pytest.raises(VolsegError, match="first stage: expected prepared cases, got none"):
        train_folds(other, tmp_path / "m", short(), devices=["cpu"])
