"""``volseg model show`` and ``volseg model verify``: what a card says, and which file is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import run

from pipeline.core.errors import VolsegError
from pipeline.model.folder import load_weights, read_card, save_weights
from pipeline.model.zoo import CardHead, zoo_names
from pipeline.stages.evaluate import evaluate
from pipeline.stages.model_card import card_of, verify_model
from pipeline.stages.share import share

WEIGHTS = "fold_0/model.safetensors"


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "model"
    assert share(model, out) == (WEIGHTS, "model.json", "README.md", "manifest.json")
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_training_folder_shows_what_is_in_it_now_and_gets_no_files(capfd, model: Path) -> None:
    before = files_of(model)
    code, out, _ = run(capfd, "model", "show", model)
    assert code == 0
    validation, card = json.loads((model / "fold_0/validation.json").read_text()), read_card(model)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for name, value in (("box_left", 1), ("box_small", 2)):
        assert f"| {name} | {value} |" in lines
        found = next(line for line in lines if line.startswith(f"| {name} | {validation['organs'][name]:.3f} |"))
        low, high = map(float, found.split("|")[3].split("to"))
        assert low <= validation["organs"][name] <= high  # the interval of the mean
    parameters = sum(tensor.numel() for tensor in card.network.structure().parameters())
    assert any(f"{parameters:,} parameters" in line for line in lines)
    said = (
        "no medical device",
        "Validation of fold 0",
        f"Training data: {card.plan.dataset}.",
        "Not stated. Ask whoever",
    )
    assert all(words in " ".join(lines) for words in said)
    assert files_of(model) == before
    _, out, _ = run(capfd, "model", "verify", model)
    assert "it has no manifest.json to compare files with, weights that fit the network." in " ".join(out.split())


def test_a_shared_model_is_all_right_and_its_card_is_a_head_and_markdown(capfd, shared: Path) -> None:
    code, out, _ = run(capfd, "model", "verify", shared)
    assert code == 0
    assert " ".join(out.split()) == f"{shared}: all right: 2 files as noted, weights that fit the network."
    text = (shared / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: volseg\nsegments: box_left, box_small\nmodality: ")
    _, shown, _ = run(capfd, "model", "show", shared)
    assert shown.splitlines()[0].rstrip() == text.split("---\n", 2)[2].splitlines()[0]
    # The card of the folder that was shared says the same, but for the names that sharing leaves out.
    assert "Training data: not named." in text


def test_the_card_has_the_scores_and_the_licence_that_are_given(
    capfd, model: Path, dataset: Path, tmp_path: Path
) -> None:
    evaluate(dataset / "labels", dataset / "labels", tmp_path / "scores", jobs=1)
    out = tmp_path / "shared"
    words = ("share", model, "-o", out, "--license", "cc-by-4.0", "--scores", tmp_path / "scores")
    assert run(capfd, *words)[0] == 0
    head = dict(line.split(": ", 1) for line in (out / "README.md").read_text().split("---\n")[1].splitlines())
    found = CardHead.model_validate(head)
    assert (found.license, found.dice, found.cases) == ("cc-by-4.0", 1.0, 6)
    text = " ".join((out / "README.md").read_text().split())
    assert "| box_left | 1.000 | 1.000 to 1.000 |" in text
    assert "The weights are under cc-by-4.0." in text
    # Of another model's organs there is nothing to say.
    summary = tmp_path / "scores/summary.json"
    summary.write_text(summary.read_text().replace("box_left", "liver"))
    with pytest.raises(VolsegError, match=r"scores: expected organs of the model \(box_left, box_small\), got liver\."):
        share(model, tmp_path / "other", scores=tmp_path / "scores")
    assert not (tmp_path / "other").exists()


def test_a_card_that_was_edited_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    share(model, out)
    share(model, out, license="mit")  # volseg's own card is made anew
    assert "The weights are under mit." in (out / "README.md").read_text()
    (out / "README.md").write_text("Ours.\n")
    share(model, out, license="cc0-1.0")
    share(model, out, license="cc0-1.0")
    assert (out / "README.md").read_text() == "Ours.\n"
    assert verify_model(out).files == 2  # a card may be edited: no mask depends on it


def copied(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(VolsegError) as stop:
        verify_model(folder)
    return str(stop.value)


def test_the_first_file_that_is_wrong_is_named(capfd, shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, tmp_path)
    path = folder / WEIGHTS
    whole = path.read_bytes()
    size = f"{len(whole):,}"
    path.write_bytes(whole[:-100])
    code, _, error = run(capfd, "model", "verify", folder)
    assert code == 1
    rule = f"file: expected {size} bytes, got {len(whole) - 100:,}: it is truncated. Get the model again."
    assert error == f"Error: {path}: {rule}"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "file: expected the content that manifest.json notes (SHA-256 " in refusal(folder)
    assert f"{path}: " in refusal(folder)
    path.unlink()
    assert refusal(folder) == f"{path}: file: expected {size} bytes, got nothing there. Get the model again."
    path.write_bytes(whole)
    assert verify_model(folder).files == 2
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    other = folder / "fold_1/model.safetensors"
    assert refusal(folder) == (
        f"{other}: file: expected only files that manifest.json notes, got one more. Remove it, or get the model again."
    )


def test_without_a_manifest_the_networks_are_still_built(shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, tmp_path)
    (folder / "manifest.json").unlink()
    found = verify_model(folder)
    assert (found.files, found.networks) == (None, 1)
    weights = load_weights(folder / WEIGHTS)
    name = next(iter(weights))
    save_weights(folder / WEIGHTS, {**weights, name: torch.zeros(1)})
    assert f"{folder / WEIGHTS}: weights: expected those of unet, got 1 tensors" in refusal(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    assert f"{folder / WEIGHTS}: expected safetensors weights" in refusal(folder)


def test_a_manifest_from_elsewhere_leads_nowhere(shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, tmp_path)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    entry = content["files"]["model.json"]
    for files, message in (
        (
            {"../secret": entry},
            "manifest: expected names of files in the folder, got '../secret'. Get the model again.",
        ),
        ({"model.json": entry | {"sha256": "x"}}, "files.model.json.sha256: expected"),
        ({}, "files: expected"),
    ):
        path.write_text(json.dumps(content | {"files": files}))
        assert message in refusal(folder)


@pytest.mark.parametrize("name", zoo_names())
def test_models_that_come_with_volseg_are_all_right(capfd, name: str) -> None:
    code, out, _ = run(capfd, "model", "verify", name)
    assert (code, "all right: 2 files as noted, weights that fit the network." in " ".join(out.split())) == (0, True)
    _, out, _ = run(capfd, "model", "show", name)
    assert out.startswith(f"# {name}\n")


def test_an_ensemble_is_shown_and_verified_with_all_its_members(model: Path, tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    for member in ("one", "two"):
        shutil.copytree(model, pair / member)
    (pair / "ensemble.json").write_text(json.dumps({"members": ["one", "two"]}))
    assert "An ensemble: the probabilities of 2 models are averaged." in card_of(pair)
    assert verify_model(pair).networks == 2
    share(pair, tmp_path / "shared")
    assert verify_model(tmp_path / "shared").files == 5  # two descriptions, two weights, and the list of members
    (tmp_path / "shared/model_2/fold_0/model.safetensors").unlink()
    assert "model_2/fold_0/model.safetensors: file: expected" in refusal(tmp_path / "shared")
