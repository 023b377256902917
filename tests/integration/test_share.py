"""``volseg share``: the folder predicts as the model does and names nothing."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from command_line import run
from safetensors import safe_open

from pipeline.core.errors import VolsegError
from pipeline.model.folder import load_weights, save_weights
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.share import share

CLEANING = {"kept": {"keep_largest": ["box_left"], "remove_small_ml": {}, "fill_holes": []}, "cases": "Ann Smith"}


@pytest.fixture
def named(model: Path, tmp_path: Path) -> Path:
    """The model with names wherever a model folder can have them."""
    folder = tmp_path / "hospital" / "smith_model"
    shutil.copytree(model, folder)
    card = json.loads((folder / "model.json").read_text())
    card["plan"] |= {"dataset": "St Mary smith", "reasons": {"spacing_mm": "as smith has it, /data/smith"}}
    card["settings"]["train"]["mlflow"] = "http://smith.hospital.example"
    card["provenance"] |= {"device": "cpu (smith)", "pruned_from": "smith"}
    (folder / "model.json").write_text(json.dumps(card))
    weights = folder / "fold_0" / "model.safetensors"
    save_weights(weights, load_weights(weights), {"made by": "smith"})
    (folder / "postprocessing.json").write_text(json.dumps(CLEANING))
    for name in ("cross_validation/summary.json", "fold_0/events/events.out.1.smith", "notes_smith.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("smith")
    return folder


def require_nameless(folder: Path) -> None:
    for path in folder.rglob("*"):
        texts = [path.relative_to(folder).as_posix()]
        if path.suffix == ".safetensors":  # its numbers may spell anything
            with safe_open(path, "pt") as weights:
                assert weights.metadata() is None
                texts += weights.keys()
        elif path.is_file():
            texts.append(path.read_text(encoding="utf-8"))
        for name in ("smith", "toy", "hospital", str(folder.parent), socket.gethostname()):
            assert not [text for text in texts if name.lower() in text.lower()], (name, path)


def masks(model: Path, dataset: Path, out: Path) -> list[bytes]:
    assert predict(model, [str(dataset / "images")], out, device="cpu").exit_code == 0
    return [path.read_bytes() for path in sorted(out.glob("*.nii.gz"))]


def test_a_shared_model_predicts_the_same_and_names_nothing(capfd, named: Path, dataset: Path, tmp_path: Path) -> None:
    code, out, _ = run(capfd, "share", named, "-o", tmp_path / "shared")
    assert code == 0
    written = ["fold_0/model.safetensors", "model.json", "postprocessing.json"]
    beside = ["README.md", "manifest.json"]
    assert " ".join(out.split()) == f"5 files to share: {tmp_path / 'shared'} ({', '.join([*written, *beside])})"
    found = [path.relative_to(tmp_path / "shared") for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert sorted(map(str, found)) == sorted([*written, *beside, "shared.json"])
    require_nameless(tmp_path / "shared")
    provenance = json.loads((tmp_path / "shared/model.json").read_text())["provenance"]
    assert sorted(provenance) == ["monai", "python", "torch", "volseg"]
    expected = masks(named, dataset, tmp_path / "a")
    assert len(expected) == 6
    assert masks(tmp_path / "shared", dataset, tmp_path / "b") == expected
    before = (tmp_path / "shared/model.json").read_bytes()
    share(named, tmp_path / "shared")
    assert (tmp_path / "shared/model.json").read_bytes() == before


def test_an_ensemble_is_shared_with_its_members_numbered(named: Path, dataset: Path, tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    for member in ("smith_1", "smith_2"):
        shutil.copytree(named, pair / member)
    (pair / "ensemble.json").write_text(json.dumps({"members": ["smith_1", "smith_2"], "candidates": ["smith"]}))
    shutil.copy(named / "postprocessing.json", pair)
    share(named, tmp_path / "shared")
    assert "model_2/model.json" in share(pair, tmp_path / "shared")  # of the single model nothing stays
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        *("README.md", "ensemble.json", "manifest.json", "model_1", "model_2", "postprocessing.json", "shared.json")
    ]
    require_nameless(tmp_path / "shared")
    assert masks(tmp_path / "shared", dataset, tmp_path / "b") == masks(pair, dataset, tmp_path / "a")


def test_in_16_bits_the_weights_are_rounded_and_the_file_is_half(capfd, named: Path, tmp_path: Path) -> None:
    """Half of a float's 24 binary digits: off by at most 1/2048 of a value of usual size."""
    files = {}
    for words in ((), ("--half",)):
        out = tmp_path / f"shared{''.join(words)}"
        assert run(capfd, "share", named, "-o", out, *words)[0] == 0
        files[words] = out / "fold_0" / "model.safetensors"
    full, half = (load_weights(path) for path in files.values())
    assert {tensor.dtype for tensor in half.values() if tensor.is_floating_point()} == {torch.float16}
    for name, tensor in full.items():
        torch.testing.assert_close(half[name].to(tensor.dtype), tensor, rtol=2**-11, atol=2**-25)
    sizes = [path.stat().st_size for path in files.values()]
    numbers = sum(tensor.numel() for tensor in full.values() if tensor.is_floating_point())
    assert abs(sizes[0] - sizes[1] - 2 * numbers) < 100  # the header differs by a few letters
    network = Predictor.load(tmp_path / "shared--half", device="cpu").networks[0]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_weights_too_large_for_16_bits_are_refused(named: Path, tmp_path: Path) -> None:
    path = named / "fold_0" / "model.safetensors"
    weights = load_weights(path)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[0] = -70_000.0
    save_weights(path, weights)
    with pytest.raises(VolsegError) as stop:
        share(named, tmp_path / "shared", half=True)
    rule = f"expected at most 65504 in 16 bits, got 7e+04 in {name}. Leave out --half."
    assert str(stop.value) == f"{tmp_path / 'shared' / 'fold_0' / 'model.safetensors'}: weights: {rule}"


def test_what_cannot_be_shared_is_said(named: Path, tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match=r"expected a new folder, got the model itself\."):
        share(named, named)
    with pytest.raises(VolsegError, match=r"expected a new folder, or a model that was shared before, got other files"):
        share(named, named.parent)
    (named / "fold_0" / "model.safetensors").unlink()
    with pytest.raises(VolsegError, match=r"folds: expected a trained fold, got none"):
        share(named, tmp_path / "new")
    with pytest.raises(VolsegError, match=r"expected a model folder with model\.json"):
        share(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
