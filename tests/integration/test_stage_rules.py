"""What stages refuse, keep and continue: nothing is lost and nothing is silently mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from monai.transforms import ScaleIntensityd
from toy import toy_settings, write_toy

from pipeline.config.settings import InferSettings, Settings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.data.prepared_cases import read_info
from pipeline.data.store import open_prepared
from pipeline.infer.cleaning import Cleaning
from pipeline.model.folder import fold_folder, read_card
from pipeline.model.spec import design_network
from pipeline.phantom.torso import write_phantom
from pipeline.preprocess.plan_file import read_plan, write_plan
from pipeline.stages.model_files import alone_in
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prepare import plan as plan_dataset
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train
from pipeline.train import loader
from pipeline.train.state import Callbacks


def changed(settings: Settings, **sections: dict[str, object]) -> Settings:
    content = settings.model_dump()
    for name, values in sections.items():
        content[name].update(values)
    return Settings.model_validate(content)


def test_a_finished_training_can_be_made_longer(prepared: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    same = train(prepared, tmp_path / "m", toy_settings(), device="cpu")
    assert len(same.progress.records) == 3
    longer = train(prepared, tmp_path / "m", changed(toy_settings(), train={"epochs": 4}), device="cpu")
    assert [record.epoch for record in longer.progress.records] == [1, 2, 3, 4]


def test_restart_deletes_nothing_before_everything_is_checked(prepared: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    shutil.copytree(fold_folder(model, 0), fold_folder(tmp_path / "m", 1))
    with pytest.raises(VolsegError, match=r"expected the network and plan of the folds trained there"):
        train(prepared, tmp_path / "m", toy_settings(name="unetpp"), device="cpu", restart=True)
    assert (fold_folder(tmp_path / "m", 0) / "model.safetensors").is_file()
    assert read_card(tmp_path / "m").network.name == "unet"


def test_two_trainings_of_a_fold_do_not_share_a_folder(prepared: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    rule = r"fold_0: training: expected to be the only one in its folder, got another\. Wait for it, end it, or choose"
    with alone_in(fold_folder(tmp_path / "m", 0)), pytest.raises(VolsegError, match=rule):
        train(prepared, tmp_path / "m", toy_settings(), device="cpu", restart=True)
    assert (fold_folder(tmp_path / "m", 0) / "model.safetensors").is_file()
    train(prepared, tmp_path / "m", toy_settings(), device="cpu")  # the other has ended


def test_refused_settings_leave_the_model_as_it_was(prepared: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    before = (tmp_path / "m" / "model.json").read_text()
    with pytest.raises(VolsegError, match=r"or begin anew with --restart"):
        train(prepared, tmp_path / "m", changed(toy_settings(), train={"learning_rate": 0.5}), device="cpu")
    train(prepared, tmp_path / "m", toy_settings(), device="cpu")  # nothing to do, nothing to change
    assert (tmp_path / "m" / "model.json").read_text() == before


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        ({"keep_largest": ("livr",)}, "infer.keep_largest: expected some of box_left, box_small, got livr"),
        ({"fill_holes": ("livr",)}, "infer.fill_holes: expected some of box_left, box_small, got livr"),
        ({"remove_small_ml": {"livr": 1.0}}, "infer.remove_small_ml: expected some of box_left, box_small, got livr"),
        ({"window_size": (3, 3, 3)}, "infer.window_size: expected a size unet can tile volumes with"),
        ({"mirror": True}, "infer.mirror: expected a model trained with flips, got one without"),
    ],
)
def test_settings_of_inference_are_checked_before_training(
    prepared: Path, tmp_path: Path, infer: dict[str, object], message: str
) -> None:
    settings = changed(toy_settings(), infer=infer, augment={"flip_axes": ()})
    with pytest.raises(ConfigError, match=message):
        train(prepared, tmp_path / "m", settings, device="cpu")
    assert not (tmp_path / "m").exists()


def test_training_says_what_it_trains(prepared: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = changed(toy_settings(), train={"epochs": 1}, augment={"enabled": True, "flip_axes": ("LR",)})
    train(prepared, tmp_path / "m", settings, device="cpu", callbacks=Callbacks(log=said.append))
    assert said[1:] == [
        "labels: box_left: on one side only. Take LR out of augment.flip_axes, or mirrored they are wrong."
    ]
    assert said[0].startswith("unet 3D: ")
    assert " parameters, patch " in said[0]


def test_edited_folds_are_kept_and_wrong_ones_named(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    preprocess(dataset, out, toy_settings(), jobs=1)
    mine = [{"train": ["toy_0", "toy_1"], "validation": ["toy_2"]}]
    (out / "splits.json").write_text(json.dumps(mine))
    batch = preprocess(dataset, out, toy_settings(), jobs=1)
    assert json.loads((out / "splits.json").read_text()) == mine
    assert [note.split("splits.json: kept")[1][:25] for note in batch.notes] == [
        "; 3 cases are in no fold,",
        " with its 1 folds. Delete",
    ]
    (out / "splits.json").write_text('[{"train": ["toy_9"], "validation": ["toy_2"]}]')
    (note,) = preprocess(dataset, out, toy_settings(), jobs=1).notes
    assert "toy_9" in note
    assert note.endswith("Or delete the file to draw new folds.")
    assert "toy_9" in (out / "splits.json").read_text()


def test_edited_patches_outlive_another_preprocessing(dataset: Path, tmp_path: Path) -> None:
    settings = changed(toy_settings(), preprocess={"patch_size": None})
    preprocess(dataset, tmp_path / "p", settings, jobs=1)
    file = tmp_path / "p" / "plan.yaml"
    plan = read_plan(file)
    edited = plan.model_copy(update={"patch_3d": plan.patch_3d.model_copy(update={"batch_size": 3})})
    write_plan(edited, file)
    (note,) = preprocess(dataset, tmp_path / "p", settings, jobs=1).notes
    assert note == f"{file}: kept with its patches, batches and class weights. Delete it to plan new ones."
    assert read_plan(file) == edited
    file.unlink()
    assert preprocess(dataset, tmp_path / "p", settings, jobs=1).notes == ()
    assert read_plan(file) == plan


def test_a_dataset_can_be_planned_without_preparing_it(dataset: Path, prepared: Path, tmp_path: Path) -> None:
    batch = plan_dataset(dataset, tmp_path / "plan", toy_settings(), jobs=1)
    assert (len(batch.done), batch.failed) == (6, ())
    assert read_plan(tmp_path / "plan" / "plan.yaml") == read_plan(prepared / "plan.yaml")
    assert sorted(json.loads((tmp_path / "plan" / "fingerprint.json").read_text())["cases"]) == list(batch.done)
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == [
        "fingerprint.html",
        "fingerprint.json",
        "plan.yaml",
    ]


def test_an_edited_plan_is_followed(dataset: Path, prepared: Path, tmp_path: Path) -> None:
    plan = read_plan(prepared / "plan.yaml")
    edited = plan.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)})
    write_plan(edited, tmp_path / "mine.yaml")
    batch = preprocess(dataset, tmp_path / "p", toy_settings(), jobs=1, plan=tmp_path / "mine.yaml")
    assert (len(batch.done), batch.failed) == (6, ())
    assert read_plan(tmp_path / "p" / "plan.yaml") == edited
    assert read_info(tmp_path / "p", "toy_0")["recipe"] == edited.content_hash
    other = {"channels": ("CT", "MR"), "normalization": edited.normalization * 2}
    write_plan(edited.model_copy(update=other), tmp_path / "mine.yaml")
    with pytest.raises(VolsegError, match=r"mine.yaml: plan: expected one with this dataset's channels and labels"):
        preprocess(dataset, tmp_path / "p", toy_settings(), jobs=1, plan=tmp_path / "mine.yaml")


def test_cases_of_another_plan_are_not_trained_on(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "p")
    file = tmp_path / "p" / "plan.yaml"
    plan = read_plan(file)
    edited = plan.patch_3d.model_copy(update={"batch_size": 3})  # may be edited
    write_plan(plan.model_copy(update={"patch_3d": edited}), file)
    settings = changed(toy_settings(), train={"epochs": 1, "iterations_per_epoch": 1})
    train(tmp_path / "p", tmp_path / "m", settings, device="cpu")
    write_plan(plan.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)}), file)  # may not: the cases are on another grid
    with pytest.raises(
        VolsegError, match=r"expected cases prepared by plan.yaml, got 6 prepared otherwise, e.g. toy_0"
    ):
        train(tmp_path / "p", tmp_path / "m2", settings, device="cpu")


def test_proposed_class_weights_are_used_on_demand_and_say_so(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "p")
    file = tmp_path / "p" / "plan.yaml"
    plan = read_plan(file)
    write_plan(plan.model_copy(update={"class_weights": {"box_small": 3.0}}), file)
    short = {"train": {"epochs": 1, "iterations_per_epoch": 2}}
    asked = changed(toy_settings(), loss={"class_weights": "plan"}, sample={"class_weights": "plan"}, **short)
    said: list[str] = []
    weighted = train(tmp_path / "p", tmp_path / "m", asked, device="cpu", callbacks=Callbacks(log=said.append))
    assert not [line for line in said if "class_weights" in line]
    assert read_card(tmp_path / "m").settings.loss.class_weights == "plan"
    plain = train(tmp_path / "p", tmp_path / "m2", changed(toy_settings(), **short), device="cpu")
    assert weighted.progress.records[0].loss != plain.progress.records[0].loss
    write_plan(plan.model_copy(update={"class_weights": {"box_small": 4.0}}), file)
    with pytest.raises(
        VolsegError, match=r"or begin anew with --restart"
    ):  # what was begun with 3 does not go on with 4
        train(tmp_path / "p", tmp_path / "m", asked, device="cpu")
    train(
        tmp_path / "p", tmp_path / "m2", changed(toy_settings(), **short), device="cpu"
    )  # where it is not used, it may
    write_plan(plan.model_copy(update={"class_weights": None}), file)
    same = train(tmp_path / "p", tmp_path / "m3", asked, device="cpu", callbacks=Callbacks(log=said.append))
    assert same.progress.records[0].loss == plain.progress.records[0].loss
    assert said[-1] == "class_weights: the plan proposes none, so all weigh the same. plan.yaml may say why."


def test_mirroring_keeps_to_the_axes_training_mirrored(prepared: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"infer.mirror: expected a model trained with flips, got one without"):
        Predictor.load(model, device="cpu", settings=InferSettings(mirror=True))
    settings = changed(toy_settings(), augment={"flip_axes": ["SI"]}, train={"epochs": 1, "iterations_per_epoch": 1})
    train(prepared, tmp_path / "m", settings, device="cpu")
    predictor = Predictor.load(tmp_path / "m", device="cpu", settings=InferSettings(mirror=True))
    assert predictor.models[0].mirror_axes == (2,)


def test_an_unknown_organ_to_clean_is_named_before_any_work(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"infer.keep_largest: expected some of box_left, box_small, got livr"):
        Predictor.load(model, device="cpu", settings=InferSettings(keep_largest=("livr",)))
    predictor = Predictor.load(model, device="cpu", settings=InferSettings(keep_largest=("box_small",)))
    assert predictor.cleaning == Cleaning(keep_largest=("box_small",))


def test_a_single_case_cannot_be_split(tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "one", 1)
    with pytest.raises(VolsegError, match=r"expected at least 2 cases \(or groups\) to train and validate, got 1"):
        preprocess(dataset, tmp_path / "p", toy_settings(), jobs=1)


def test_raw_intensities_are_stored_as_float32(dataset: Path, tmp_path: Path) -> None:
    for scheme, steps in (("none", False), ("zscore", True)):
        preprocess(dataset, tmp_path / scheme, changed(toy_settings(), preprocess={"normalization": scheme}), jobs=1)
        image, _ = open_prepared(tmp_path / scheme, "toy_0")
        assert (image.step is not None) == steps


@pytest.mark.parametrize(
    ("options", "stages"),
    [({"features": [4, 8, 16], "strides": 2}, 3), ({"strides": [1, 2]}, 2), ({"features": [4, 8]}, 2), ({}, 3)],
)
def test_open_options_are_planned_to_fit_the_given_ones(
    prepared: Path, options: dict[str, object], stages: int
) -> None:
    settings = changed(toy_settings(), model={"options": options})
    spec = design_network(read_plan(prepared / "plan.yaml"), settings.model, settings.sample)
    assert len(spec.options["features"]) == stages
    assert spec.build().legal_size((16, 16, 16)) == (16, 16, 16)


def test_further_transforms_must_be_given_again_to_predict(dataset: Path, tmp_path: Path) -> None:
    extra = [ScaleIntensityd(["image"], minv=0.0, maxv=1.0)]
    preprocess(dataset, tmp_path / "p", toy_settings(), jobs=1, extra=extra)
    train(tmp_path / "p", tmp_path / "m", changed(toy_settings(), train={"epochs": 1}), device="cpu")
    message = r"further transforms: expected those of training \(ScaleIntensityd\), got none\. Give them as extra="
    with pytest.raises(ConfigError, match=message):
        Predictor.load(tmp_path / "m", device="cpu")
    assert Predictor.load(tmp_path / "m", device="cpu", extra=extra).extra == tuple(extra)


def test_predictions_overwrite_nothing_but_predictions(model: Path, tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "toy", 2)
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    with pytest.raises(VolsegError, match=r"toy_0.nii.gz: expected a free place or the mask of an earlier prediction"):
        predict(model, [dataset / "images"], dataset / "labels", device="cpu")
    with pytest.raises(VolsegError, match=r"labels.json: expected a free place"):
        predict(model, [dataset / "images"], dataset, device="cpu")
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


def test_a_folder_keeps_to_one_dataset(dataset: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "p")
    before = (tmp_path / "p" / "plan.yaml").read_bytes()
    other = write_toy(tmp_path / "other", 2)
    with pytest.raises(VolsegError, match=r"expected a new folder or one of dataset other, got one of toy"):
        preprocess(other, tmp_path / "p", toy_settings(), jobs=1)
    assert (tmp_path / "p" / "plan.yaml").read_bytes() == before


def test_a_case_that_breaks_later_is_named_as_such(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "d")
    preprocess(tmp_path / "d", tmp_path / "p", toy_settings(), jobs=1)
    (tmp_path / "d" / "images" / "toy_3.nii.gz").write_bytes(b"no volume")
    batch = preprocess(tmp_path / "d", tmp_path / "p", toy_settings(), jobs=1)
    assert ([case for case, _ in batch.failed], batch.notes, batch.exit_code) == (["toy_3"], (), 2)


def test_case_ids_are_unique_and_no_paths(dataset: Path, tmp_path: Path) -> None:
    image, label = (dataset / part / "toy_0.nii.gz" for part in ("images", "labels"))
    (tmp_path / "twice.csv").write_text(f"case,image,label\nx,{image},{label}\nx,{image},{label}\n")
    with pytest.raises(VolsegError, match=r"expected unique case ids, got x more than once"):
        preprocess(tmp_path / "twice.csv", tmp_path / "p", toy_settings(), jobs=1)
    (tmp_path / "dots.csv").write_text(f"case,image,label\n..,{image},{label}\n")
    with pytest.raises(VolsegError, match=r"expected a name without .* that is more than dots, got '\.\.'"):
        preprocess(tmp_path / "dots.csv", tmp_path / "p", toy_settings(), jobs=1)


def test_too_little_memory_is_a_sentence(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loader, "augment", refuse)
    with pytest.raises(VolsegError, match=r"memory of cpu: expected enough .* Lower sample.batch_size"):
        train(prepared, tmp_path / "m", toy_settings(), device="cpu")


def test_phantoms_are_not_mixed_into_a_dataset(tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "toy", 1)
    with pytest.raises(
        VolsegError, match=r"expected an empty folder or the same phantom dataset, got 3 other files such as images"
    ):
        write_phantom(dataset, cases=1, tests=0)


def test_a_prediction_interrupted_at_its_first_case_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_toy(tmp_path / "toy", 1)

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_with_region", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(model, [dataset / "images"], tmp_path / "masks", device="cpu")
    assert predict(model, [dataset / "images"], tmp_path / "masks", device="cpu").done == ("toy_0",)


def test_a_prior_of_organs_that_share_a_softmax_is_refused(prepared: Path, tmp_path: Path) -> None:
    settings = changed(toy_settings(), model={"foreground_prior": 0.1})
    with pytest.raises(
        ConfigError, match=r"model\.foreground_prior: expected null where organs share a softmax, got 0\.1"
    ):
        train(prepared, tmp_path / "m", settings, device="cpu")
