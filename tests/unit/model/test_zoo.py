"""The models that come with volseg: what each must have, and how a user's word becomes a folder."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import VolsegError
from pipeline.data.volumes import read_image, read_label_map
from pipeline.model.folder import load_weights, read_card
from pipeline.model.zoo import ZOO, model_folder, zoo_model, zoo_names

MOST_BYTES = 6_000_000  # of all models together: every installation carries them


def test_all_models_together_are_small() -> None:
    assert zoo_names() == ("hippocampus",)
    assert sum(zoo_model(name).size_bytes for name in zoo_names()) <= MOST_BYTES


@pytest.mark.parametrize("name", zoo_names())
def test_a_model_has_weights_of_16_bits_a_card_and_an_example(name: str) -> None:
    model = zoo_model(name)
    weights = load_weights(model.folder / "fold_0" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16, torch.int64}
    card = read_card(model.folder)
    assert card.plan == model.plan
    assert sorted(card.provenance) == ["monai", "python", "torch", "volseg"]  # neither places nor times
    image, reference = (read(path) for read, path in zip((read_image, read_label_map), model.example, strict=True))
    assert image.grid.matches(reference.grid)
    assert set(np.unique(reference.array)) == {0, *model.plan.label_table.values}


def test_the_card_of_the_hippocampus_says_where_it_is_from_and_what_it_cannot_do() -> None:
    model = zoo_model("hippocampus")
    assert model.head.license == "cc-by-sa-4.0"
    assert model.plan.spacing_mm == (1.0, 1.0, 1.0)
    assert tuple(model.plan.label_table.organs) == ("Anterior", "Posterior")
    for words in ("Task04", "never saw", "no medical device", "crops around one hippocampus", "CC BY-SA 4.0"):
        assert words in " ".join(model.text.split())
    held_out = model.example[0].name.removesuffix(".nii.gz").removeprefix("hippocampus_")
    assert f" {held_out}," in model.text  # the example is one of the cases that it never saw
    assert "$" not in model.text  # every number of the template is filled in


def test_every_file_of_the_zoo_is_in_the_installation() -> None:
    project = tomllib.loads((ZOO.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["pipeline"]
    shipped = {path for pattern in patterns for path in ZOO.parent.glob(pattern)}
    assert {path for path in ZOO.rglob("*") if path.is_file()} <= shipped


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder("hippocampus") == ZOO / "hippocampus"
    Path("hippocampus").mkdir()
    with pytest.raises(VolsegError) as stop:
        model_folder("hippocampus")
    assert str(stop.value) == (
        "hippocampus: expected a model folder with model.json, got none. Rename it or go to another folder, and the "
        "model of this name that comes with volseg is taken."
    )
    Path("hippocampus/model.json").write_text("{}")
    assert model_folder("hippocampus") == Path("hippocampus")
    assert model_folder(tmp_path / "hippocampus") == tmp_path / "hippocampus"


def test_an_unknown_name_gets_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word, advice in (
        ("hipocampus", "Did you mean hippocampus?"),
        ("model", "Train one with `volseg train`, or see `volseg models`."),
    ):
        with pytest.raises(VolsegError) as stop:
            model_folder(word)
        rule = "a model folder, or a model that comes with volseg (hippocampus)"
        assert str(stop.value) == f"{word}: expected {rule}, got nothing there. {advice}"
    # What looks like a path is read as one, and whoever reads it says what is missing.
    assert model_folder("models/hipocampus") == Path("models/hipocampus")
    with pytest.raises(VolsegError) as stop:
        zoo_model("hippo")
    assert str(stop.value) == "model: expected one of hippocampus, got 'hippo'. Did you mean hippocampus?"


def test_a_damaged_card_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.model.zoo.ZOO", tmp_path)
    folder = tmp_path / "liver"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({}))
    for text, message in (
        ("# liver\n", "model card: expected a head between two lines ---, got none. Install volseg again."),
        ("---\nlicense: mit\n---\n", "segments: expected one more value, got nothing. Install volseg again."),
    ):
        (folder / "README.md").write_text(text)
        with pytest.raises(VolsegError) as stop:
            zoo_model("liver")
        assert str(stop.value) == f"{folder / 'README.md'}: {message}"
