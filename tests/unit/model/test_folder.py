"""Model folders from strangers: what is no model, or another one than it says, is refused with one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from members import plan_of

from pipeline.config.settings import Settings
from pipeline.core.errors import VolsegError
from pipeline.model.folder import (
    ModelCard,
    load_network,
    member_folders,
    read_card,
    save_weights,
    trained_folds,
    write_card,
)
from pipeline.model.spec import NetworkSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two organs with one fold."""
    options = {"features": (4, 8), "norm": "batch"}
    spec = NetworkSpec(name="unet", dims=3, in_channels=1, out_channels=3, options=options, patch_size=(8, 8, 8))
    write_card(tmp_path, ModelCard(network=spec, plan=plan_of(3), settings=Settings(), provenance={}))
    save_weights(tmp_path / "fold_0" / "model.safetensors", spec.build(0).state_dict())
    return tmp_path


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(VolsegError) as caught:
        action()
    return str(caught.value)


def edited(model: Path, keys: str, value: Any) -> str:
    """What is said of ``model.json`` with another value under some keys."""
    content = json.loads((model / "model.json").read_text())
    *outer, last = keys.split(".")
    part = content
    for key in outer:
        part = part[key]
    part[last] = value
    path = model / "edited" / "model.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return refusal(lambda: load_network(path.parent, read_card(path.parent), 0)).removeprefix(f"{path}: ")


def test_loading_a_model_needs_no_compiler(model: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.model.folder import load_network, read_card\n"
        f"folder = Path({str(model)!r})\nload_network(folder, read_card(folder), 0)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_sound_model_is_loaded(model: Path) -> None:
    network = load_network(model, read_card(model), trained_folds(model)[0])
    weights = read_card(model).network.build(0).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("network.out_channels", 2, "network.out_channels: expected 3, as dims, channels and labels have it, got 2."),
        ("network.in_channels", 4, "network.in_channels: expected 1, as dims, channels and labels have it, got 4."),
        ("network.patch_size", [8, 8], "network.patch_size: expected 3, as dims, channels and labels have it, got 2."),
        ("network.patch_size", [8, 8, 0], "network.patch_size.2: expected at least 1, got 0."),
        ("network.name", "x" * 1000, "network: name: expected one of unet,"),
        ("network.options", {"features": [4] * 1000}, "network: features: expected at most 32, got 1000."),
        ("network.options", {"features": [10**9, 8]}, "network: features.0: expected at most 65536, got 1000000000."),
        ("network.options", {"strides": [1, 10**6]}, "network: strides: expected a number of at least 1 or one entry"),
        ("plan.labels.names", {"1": "a", "2": "b", "3": "c"}, "network.out_channels: expected 4, as dims,"),
        ("plan.labels.names", {"²": "a", "2": "b"}, "plan.labels: label table: expected whole numbers as values"),
        ("plan.spacing_mm", [1e30, 1, 1], "plan.spacing_mm.0: expected at most 10000, got 1e+30."),
        ("plan.normalization", [{"scheme": "ct", "low": 2.0, "high": 1.0}], "plan.normalization.0: low, high: expect"),
        ("settings.infer", [], "settings.infer: expected a section with keys, got []. Use the volseg version that"),
        ("provenance", {"a": 1}, "provenance.a: expected a valid string, got 1."),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(model: Path, keys: str, value: Any, message: str) -> None:
    assert edited(model, keys, value).startswith(message)


def test_weights_that_are_none_are_refused(model: Path) -> None:
    card, path = read_card(model), model / "fold_0" / "model.safetensors"
    sound = card.network.build(0).state_dict()
    name = next(iter(sound))
    rule = "weights: expected those of unet, got 1 tensors that are missing, surplus or of another shape or type"
    for value in (sound[name].to(torch.int32), sound[name][:1], torch.zeros(())):
        save_weights(path, {**sound, name: value})
        assert refusal(lambda: load_network(model, card, 0)).startswith(f"{path}: {rule}, such as {name}.")
    for value in (torch.nan, torch.inf):
        save_weights(path, {**sound, name: sound[name] * value})
        assert f"weights: expected numbers, got NaN or infinity in {name}." in refusal(
            lambda: load_network(model, card, 0)
        )
    save_weights(path, {key: value.half() if value.is_floating_point() else value for key, value in sound.items()})
    assert next(load_network(model, card, 0).parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**60]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}},
        {"a": 1},
        [],
    ],
)
def test_headers_that_lie_are_refused(model: Path, header: object) -> None:
    path = model / "fold_0" / "model.safetensors"
    text = json.dumps(header).encode()
    for length in (len(text), 2**63, 0):
        path.write_bytes(length.to_bytes(8, "little") + text + bytes(16))
        found = refusal(lambda: load_network(model, read_card(model), 0))
        assert found.startswith(f"{path}: expected safetensors weights, got ")


def test_a_fold_has_one_name(model: Path) -> None:
    for name in ("fold_²", "fold_old", "fold_x1"):
        (model / name).mkdir()
        (model / name / "model.safetensors").write_bytes(b"")
    assert trained_folds(model) == (0,)
    (model / "fold_00").mkdir()
    (model / "fold_00" / "model.safetensors").write_bytes(b"")
    assert f"{model}: folds: expected fold_0, got fold_00. Remove it" in refusal(lambda: trained_folds(model))


@pytest.mark.parametrize("content", ["[]", "{}", '{"members": "a"}', '{"members": ["a\\u0000"]}', '{"members": [[]]}'])
def test_members_are_names_of_folders(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ensemble.json"
    path.write_text(content)
    assert refusal(lambda: member_folders(tmp_path)).startswith(f"{path}: ensemble: expected a list of members, got")
    path.write_text(json.dumps({"members": ["a" * 300]}))
    assert len(refusal(lambda: member_folders(tmp_path))) < len(str(path)) + 200
