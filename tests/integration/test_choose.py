"""The best of several models or pairs, as a model folder that predicts like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from toy import toy_settings, write_toy

from pipeline.config.settings import Settings
from pipeline.core.errors import VolsegError
from pipeline.data.prepared_cases import read_info
from pipeline.data.store import open_prepared
from pipeline.data.volumes import read_image, read_label_map
from pipeline.infer.segment import segment
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.folder import ensemble_members, member_folders, read_card
from pipeline.preprocess.grid_history import GridHistory
from pipeline.stages.choose import choose
from pipeline.stages.cross_validate import cross_validate
from pipeline.stages.predict import Predictor
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train
from pipeline.stages.train_folds import train_folds

CPU = torch.device("cpu")


def short(spacing_mm: float = 2.0, dims: int = 3) -> Settings:
    content = toy_settings(dims=dims).model_dump()
    content["preprocess"]["spacing_mm"] = (spacing_mm,) * 3
    content["sample"].update(folds=2, patch_size=(16,) * dims)
    content["train"].update(epochs=1, iterations_per_epoch=25)
    return Settings.model_validate(content)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one dataset: 3D at 2 mm, 2D at 2.5 mm; and one that is not cross-validated."""
    home = tmp_path_factory.mktemp("choose")
    dataset = write_toy(home / "toy", 4)
    for name, settings in (("fine", short()), ("coarse", short(2.5, 2))):
        preprocess(dataset, home / f"{name}_data", settings, jobs=1)
        assert train_folds(home / f"{name}_data", home / name, settings, devices=["cpu"]).exit_code == 0
        cross_validate(home / name, home / f"{name}_data", device="cpu", jobs=1)
    shutil.copytree(home / "fine", home / "bare", ignore=shutil.ignore_patterns("cross_validation"))
    return home


def test_models_and_their_pair_are_compared_and_the_best_is_written(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best"
    code, text, _ = run(capfd, "choose", here / "fine", here / "coarse", "-o", out, "--device", "cpu", "-j", 1)
    assert code == 0
    content = json.loads((out / "ensemble.json").read_text())
    scores = {entry["name"]: entry["mean_dice"] for entry in content["candidates"]}
    assert set(scores) == {"fine", "coarse", "fine+coarse"}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    for name in ("fine", "coarse"):
        own = json.loads((here / name / "cross_validation" / "summary.json").read_text())
        assert scores[name] == own["overall"]["dice"]["mean"]
    first = content["candidates"][0]
    assert tuple(first["members"]) == ensemble_members(out) == tuple(content["members"])
    assert (first["difference"]["mean"], first["difference"]["equal"]) == (0.0, 4)
    last = content["candidates"][-1]
    differences = [last["cases"][case] - first["cases"][case] for case in first["cases"]]
    assert last["difference"]["mean"] == pytest.approx(np.mean(differences))
    assert f"Best: the {'pair' if len(first['members']) > 1 else 'model'} {first['name']}" in text
    assert first["name"] in (out / "choice.md").read_text()
    shutil.move(here / "fine", here / "gone")  # the folder holds all that it needs
    try:
        image = here / "toy" / "images" / "toy_0.nii.gz"
        code, _, _ = run(capfd, "predict", out, image, "-o", tmp_path / "masks", "--device", "cpu")
        assert code == 0
        mask = read_label_map(tmp_path / "masks" / "toy_0.nii.gz").array
        assert np.array_equal(mask, Predictor.load(out, device="cpu").predict(read_image(image)).array)
    finally:
        shutil.move(here / "gone", here / "fine")


def test_a_pair_predicts_a_case_by_the_two_folds_that_did_not_train_on_it(here: Path, tmp_path: Path) -> None:
    choose([here / "fine", here / "coarse"], tmp_path / "best", device="cpu", jobs=1)
    pair = tmp_path / "best" / "cross_validation" / "fine+coarse"
    splits = json.loads((here / "fine_data" / "splits.json").read_text())
    for fold, split in enumerate(splits):
        members = [TrainedModel.load(here / name, read_card(here / name), CPU, [fold]) for name in ("fine", "coarse")]
        for case in split["validation"]:
            prepared = []
            for name in ("fine_data", "coarse_data"):
                trace = GridHistory.from_json(read_info(here / name, case)["trace"])
                prepared.append((np.asarray(open_prepared(here / name, case)[0][...]), trace))
            assert prepared[0][0].shape != prepared[1][0].shape
            expected = members[0].card.plan.label_table.from_index(segment(members, prepared))
            found = read_label_map(pair / "predictions" / f"{case}.nii.gz")
            assert np.array_equal(found.array, expected)
            assert found.grid.matches(read_image(here / "toy" / "images" / f"{case}.nii.gz").grid)


def test_an_ensemble_of_a_pair_averages_probabilities_and_takes_settings_for_all(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "pair"
    out.mkdir()
    for name in ("fine", "coarse"):
        shutil.copytree(here / name, out / name)
    (out / "ensemble.json").write_text('{"members": ["fine", "coarse"]}')
    predictor = Predictor.load(out, device="cpu")
    assert [member.card.network.dims for member in predictor.models] == [3, 2]
    assert len(predictor.networks) == 4
    image = read_image(here / "toy" / "images" / "toy_1.nii.gz")
    found = predictor.predict(image)
    assert found.grid == image.grid
    assert found.values() == (0, 1, 2)
    twice = tmp_path / "twice"
    shutil.copytree(here / "fine", twice / "one")
    shutil.copytree(here / "fine", twice / "two")
    (twice / "ensemble.json").write_text('{"members": ["one", "two"]}')
    same = Predictor.load(twice, device="cpu").predict(image).array
    assert (same != Predictor.load(here / "fine", device="cpu").predict(image).array).mean() < 1e-3
    settings = predictor.settings.model_copy(update={"overlap": 0.25})
    changed = Predictor.load(out, device="cpu", settings=settings)
    assert [member.settings.overlap for member in changed.models] == [0.25, 0.25]


def test_choosing_again_does_only_what_is_missing(here: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    models, out = [here / "fine", here / "coarse"], tmp_path / "best"
    first = choose(models, out, device="cpu", jobs=1)
    (out / "ensemble.json").write_text('{"members": []}')  # as a killed run leaves it
    with pytest.raises(VolsegError, match=r"expected at least one member, got none. Let `volseg choose` finish"):
        Predictor.load(out, device="cpu")
    stamps = {path: path.stat().st_mtime_ns for path in (out / "cross_validation").rglob("*") if path.is_file()}
    again = choose(models, out, device="cpu", jobs=1, progress=lambda *seen: told.append(seen))
    assert again.candidates == first.candidates
    changed = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed <= {"labels.json"}
    assert {what for _, _, what in told} == {"out of fold"}
    assert Predictor.load(out, device="cpu").networks


def test_refusals_say_what_to_do(here: Path, tmp_path: Path) -> None:
    def refusal(*models: Path, out: Path = tmp_path / "out") -> str:
        with pytest.raises(VolsegError) as caught:
            choose(models, out, device="cpu", jobs=1)
        return str(caught.value)

    fine, coarse = here / "fine", here / "coarse"
    assert "models: expected two or more different folders" in refusal(fine)
    assert "models: expected two or more different folders" in refusal(fine, fine)
    assert "expected a cross-validated one, got one that is not. Run `volseg cross-validate" in refusal(
        fine, here / "bare"
    )
    assert "expected a model folder with model.json, got none" in refusal(fine, tmp_path)
    assert "output folder: expected a new folder, or an earlier choice" in refusal(fine, coarse, out=fine)
    (tmp_path / "odd").mkdir()
    for names in ('[".."]', '["a/b"]', "[1]", "{}"):
        (tmp_path / "odd" / "ensemble.json").write_text(f'{{"members": {names}}}')
        assert "ensemble: expected a list of members" in refusal(fine, coarse, out=tmp_path / "odd")
    with pytest.raises(VolsegError, match="expected a single model, got an ensemble"):
        cross_validate(tmp_path / "odd", here / "fine_data", device="cpu")
    with pytest.raises(VolsegError, match="expected a folder for one model, got an ensemble"):
        train(here / "fine_data", tmp_path / "odd", short(), device="cpu")
    assert not (tmp_path / "out").exists()
    assert member_folders(fine) == (fine,)


def test_models_of_other_cases_or_labels_are_refused(here: Path, tmp_path: Path) -> None:
    def altered(name: str, **changes: object) -> Path:
        """A copy of a model whose record, or plan, says something else."""
        home = tmp_path / name
        shutil.copytree(here / "coarse", home)
        card = json.loads((home / "model.json").read_text())
        card["plan"].update(changes)
        (home / "model.json").write_text(json.dumps(card))
        return home

    one_fold = tmp_path / "one_fold"
    shutil.copytree(here / "coarse", one_fold)
    cross_validate(one_fold, here / "coarse_data", folds=[0], device="cpu", jobs=1)
    with pytest.raises(
        VolsegError, match=r"expected the same cases in each fold \(splits.json\), got others in fine and"
    ):
        choose([here / "fine", one_fold], tmp_path / "out", device="cpu", jobs=1)
    labels = {"names": {"1": "box_left", "2": "liver"}, "ignore_label": None}
    with pytest.raises(VolsegError, match=r"plan: expected that of the model, got another"):
        choose([here / "fine", altered("labels", labels=labels)], tmp_path / "out", device="cpu", jobs=1)
    gone = tmp_path / "gone"
    shutil.copytree(here / "coarse", gone)
    summary = json.loads((gone / "cross_validation" / "summary.json").read_text())
    summary["cross_validation"]["models"][0]["prepared"] = str(tmp_path / "nowhere")
    (gone / "cross_validation" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(VolsegError, match=r"nowhere: prepared dataset: expected where it was, got nothing there"):
        choose([here / "fine", gone], tmp_path / "out", device="cpu", jobs=1)
    assert not (tmp_path / "out").exists()
