"""``volseg export``: what is written gives the model's logits or masks, where volseg is not installed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from command_line import run
from monai.bundle import run as run_bundle
from nnunet_results import KINDS, image, write_results

from pipeline.core.errors import VolsegError
from pipeline.export import network_files
from pipeline.interop.nnunet import import_nnunet
from pipeline.model.folder import ModelCard, fold_folder, read_card, save_weights, write_card
from pipeline.model.spec import NetworkSpec
from pipeline.stages.export import export
from pipeline.stages.predict import Predictor

# What MONAI, ignite and PyTorch's exporters say of themselves is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

BLOCKER = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pipeline":
            raise ModuleNotFoundError("volseg is not installed here")


sys.meta_path.insert(0, Blocked())
"""

TINY = {
    "unetpp": {"features": (4, 8, 8), "deep_supervision": True},
    "nnunet_resenc": {"features": (4, 8, 8), "strides": [1, 2, 2], "kernel_sizes": 3, "deep_supervision": True},
    "unet2015": {"features": (4, 8)},
}


def made(model: Path, folder: Path, name: str, folds: int = 1, **settings: object) -> Path:
    """A model folder like another one, of another network with drawn weights."""
    card = read_card(model)
    spec = NetworkSpec(name=name, dims=3, in_channels=1, out_channels=3, options=TINY[name], patch_size=(16, 16, 16))
    patch = spec.sizes().legal_size((16, 16, 16))
    spec = spec.model_copy(update={"patch_size": patch})
    infer = card.settings.infer.model_copy(update=settings)
    changed = card.settings.model_copy(update={"infer": infer})
    write_card(folder, ModelCard(network=spec, plan=card.plan, settings=changed, provenance={}))
    for fold in range(folds):
        save_weights(fold_folder(folder, fold) / "model.safetensors", dict(spec.build(seed=fold).state_dict()))
    return folder


def masks_of(folder: Path) -> dict[str, nib.Nifti1Image]:
    return {path.name: nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}


def require_same_masks(model: Path, bundle: Path, images: Path, out: Path, *settings: str) -> None:
    """The masks of a bundle, run in this process, are those of ``volseg predict``."""
    batch = Predictor.load(model, device="cpu", settings=settings).predict_files([images], out / "expected")
    assert not batch.failed
    sys.modules.pop("volseg_parts", None)
    for name in [name for name in sys.modules if name.startswith("volseg_parts.")]:
        del sys.modules[name]
    before = list(sys.path)
    run_bundle(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(out / "found"),
    )
    sys.path[:] = before
    compare(out / "expected", out / "found")


def compare(expected: Path, found: Path) -> None:
    there, here = masks_of(expected), masks_of(found)
    assert there
    assert there.keys() == here.keys()
    for name, mask in there.items():
        wanted, got = np.asanyarray(mask.dataobj), np.asanyarray(here[name].dataobj)
        assert got.dtype == wanted.dtype
        assert (wanted == got).mean() >= 0.999, name
        assert len(np.unique(wanted)) > 1
        np.testing.assert_allclose(here[name].affine, mask.affine, atol=1e-4)


def test_a_bundle_gives_the_masks_of_volseg_where_volseg_is_not_there(
    capfd, model: Path, dataset: Path, tmp_path: Path
) -> None:
    code, out, _ = run(capfd, "export", model, "--to", "monai-bundle", "-o", tmp_path / "bundle")
    assert code == 0
    assert "models/model.ts" in out
    written = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*.*")}
    assert {"configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts"} < written
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    batch = Predictor.load(model, device="cpu").predict_files([dataset / "images"], tmp_path / "expected")
    assert not batch.failed
    words = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    words += ["--meta_file", "configs/metadata.json", "--dataset_dir", str(dataset / "images")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "blocker")}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path / "bundle", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compare(tmp_path / "expected", tmp_path / "bundle" / "masks")
    blocked = subprocess.run(
        [sys.executable, "-c", "import pipeline"], env=environment, capture_output=True, check=False
    )
    assert b"volseg is not installed here" in blocked.stderr
    # Exported again it is written anew, and what was put there stays.
    export(model, tmp_path / "bundle", "monai-bundle")
    assert len(masks_of(tmp_path / "bundle" / "masks")) == 6


def test_metadata_says_what_a_bundle_finds(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "bundle", "monai-bundle")
    metadata = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    data = metadata["network_data_format"]
    assert data["inputs"]["image"]["spatial_shape"] == [16, 16, 16]
    assert data["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "box_left", "2": "box_small"}
    assert metadata["volseg"]["spacing_mm"] == [2.0, 2.0, 2.0]
    assert metadata["volseg"]["labels"]["names"] == {"1": "box_left", "2": "box_small"}
    for path in (tmp_path / "bundle" / "volseg_parts").glob("*.py"):
        lines = path.read_text().splitlines()
        outer = [line for line in lines if line.startswith(("from pipeline", "import pipeline"))]
        assert not outer, path


@pytest.mark.parametrize(
    ("name", "folds", "settings"),
    [
        ("unetpp", 1, {"window_size": "fit"}),
        ("nnunet_resenc", 2, {"keep_largest": ("box_left",), "fill_holes": ("box_small",)}),
        ("unet2015", 1, {"remove_small_ml": {"box_small": 0.5}, "blend": "hann"}),
    ],
)
def test_other_networks_and_settings(name, folds, settings, model: Path, dataset: Path, tmp_path: Path) -> None:
    folder = made(model, tmp_path / "model", name, folds, **settings)
    export(folder, tmp_path / "bundle", "monai-bundle")
    require_same_masks(folder, tmp_path / "bundle", dataset / "images", tmp_path)


@pytest.mark.parametrize("kind", ["plain", "thick", "flat", "regions"])
def test_models_of_nnunet_become_bundles(kind, tmp_path: Path) -> None:
    import_nnunet(write_results(tmp_path / "results", KINDS[kind]), tmp_path / "model")
    (tmp_path / "scans").mkdir()
    for number, channel in enumerate(image(KINDS[kind])):
        several = len(KINDS[kind].channels) > 1
        nib.save(channel, tmp_path / "scans" / (f"case_{number:04}.nii.gz" if several else "case.nii.gz"))
    export(tmp_path / "model", tmp_path / "bundle", "monai-bundle")
    require_same_masks(tmp_path / "model", tmp_path / "bundle", tmp_path / "scans", tmp_path)


def logits_of(model: Path, images: torch.Tensor) -> torch.Tensor:
    networks = Predictor.load(model, device="cpu").networks
    with torch.no_grad():
        return torch.stack([network(images) for network in networks]).mean(dim=0)


@pytest.mark.parametrize("name", ["unetpp", "nnunet_resenc"])
def test_an_onnx_file_gives_the_logits_of_any_number_of_patches(name, model: Path, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    folder = made(model, tmp_path / "model", name, folds=2)
    assert export(folder, tmp_path / "out", "onnx") == ("model.onnx", "volseg.json")
    file = tmp_path / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = torch.randn(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(7))
        (found,) = session.run(["logits"], {"image": images.numpy()})
        expected = logits_of(folder, images)
        assert np.abs(found - expected.numpy()).max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    about = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert json.loads(about["labels"])["names"] == {"1": "box_left", "2": "box_small"}
    assert json.loads(about["spacing_mm"]) == [2.0, 2.0, 2.0]
    (normalization,) = json.loads(about["normalization"])
    assert normalization["scheme"] == "zscore"


def test_a_program_of_pytorch_gives_the_logits(model: Path, tmp_path: Path) -> None:
    assert export(model, tmp_path / "out", "torch-export") == ("model.pt2", "volseg.json")
    extra = {"volseg.json": ""}
    program = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra).module()
    for count in (1, 4):
        images = torch.randn(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(program(images), logits_of(model, images), rtol=0, atol=1e-4)
    assert json.loads(extra["volseg.json"])["output"]["channels"] == ["background", "box_left", "box_small"]


def test_a_model_of_volseg_takes_its_licence_along(tmp_path: Path) -> None:
    export("hippocampus", tmp_path / "out", "torch-export")
    about = json.loads((tmp_path / "out" / "volseg.json").read_text())
    assert about["licence"] == "cc-by-sa-4.0"
    assert "# hippocampus" in (tmp_path / "out" / "model_card.md").read_text()


def refused(message: str, model: Path | str, out: Path, to: str = "torch-export", **options: object) -> None:
    before = sorted(out.rglob("*"))
    with pytest.raises(VolsegError, match=message):
        export(model, out, to, **options)  # type: ignore[arg-type]
    assert sorted(out.rglob("*")) == before


def test_what_cannot_be_exported_is_said_and_nothing_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("expected a model folder", tmp_path / "none", out)
    refused("--to: expected one of monai-bundle, onnx, torch-export, got tflite", model, out, "tflite")
    refused("infer.roi: expected none for a bundle, got body", model, out, "monai-bundle", settings=["infer.roi=body"])
    import_nnunet(write_results(tmp_path / "results", KINDS["cascade"]).parent, tmp_path / "cascade")
    for to in ("monai-bundle", "torch-export"):
        refused("expected one that sees images alone, got a cascade", tmp_path / "cascade", out, to)
    pair = tmp_path / "pair"
    for member in ("a", "b"):
        made(model, pair / member, "unetpp")
    (pair / "ensemble.json").write_text(json.dumps({"members": ["a", "b"]}))
    refused("expected one model, got an ensemble of 2. Export its members", pair, out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused("expected a new folder, or a model that was exported before, got other files", model, out)


def test_packages_that_are_missing_are_named(monkeypatch, model: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(network_files, "find_spec", lambda name: None if name == "onnx" else object())
    refused(r"expected onnx, got none\. Run pip install 'volseg\[onnx\]'\.", model, tmp_path / "out", "onnx")


def test_a_file_that_gives_other_logits_is_not_written(monkeypatch, model: Path, tmp_path: Path) -> None:
    other = Predictor.load(made(model, tmp_path / "other", "unetpp"), device="cpu").models[0]
    right = network_files._exported
    monkeypatch.setattr(
        network_files, "_exported", lambda network, trained: right(network_files.MeanLogits(other.networks), trained)
    )
    refused("logits of PyTorch's program: expected the network's within", model, tmp_path / "out")
    images = torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(VolsegError, match="a difference of nan"):
        network_files.require_same(images, images / 0, "a test")
    network_files.require_same(images + 1e5, images + 1e5 + 1, "a test")  # 1e-5 of the largest


def test_the_traced_network_is_all_that_a_bundle_loads(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "bundle", "monai-bundle")
    extra = {"metadata.json": "", "inference.json": ""}
    content = io.BytesIO((tmp_path / "bundle" / "models" / "model.ts").read_bytes())
    network = torch.jit.load(content, _extra_files=extra)
    images = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(network(images), logits_of(model, images), rtol=0, atol=1e-4)
    assert json.loads(extra["metadata.json"])["volseg"]["crop"] == "nonzero"
