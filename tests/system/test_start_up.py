"""Which large libraries a command loads: loading them takes longer than much of the work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from generated_dicom import make_slices, save
from toy import write_toy

from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.volumes import read_label_map, write_label_map

SCIPY = ("scipy.spatial", "scipy.ndimage", "scipy.stats")  # scipy itself is small, and nibabel loads it
LARGE = {
    *("torch", "monai", "tensorboard", "mlflow", "safetensors", "ray", "onnx", "pydicom", "highdicom"),
    *SCIPY,
    *("matplotlib", "jinja2", "skimage", "pandas", "SimpleITK", "blosc2", "cc3d"),
    *("pynetdicom", "dicomweb_client", "fastapi", "uvicorn", "prometheus_client"),
}
COMMANDS = (
    *("check", "plan", "preprocess", "train", "predict", "report", "evaluate", "compare", "stats", "cross-validate"),
    *("choose", "convert", "inspect", "dicom", "phantom", "preview", "demo", "prune", "share", "networks", "config"),
    *("models", "model", "import-nnunet", "import-totalsegmentator", "export", "serve"),
)
TO_SCORE = ("data/labels", "data/labels", "--jobs", "1")

LOADED: dict[tuple[str, ...], set[str]] = {
    ("--help",): set(),
    **{(command, "--help"): set() for command in COMMANDS},
    ("config", "show"): set(),
    ("models",): set(),
    ("model", "show", "hippocampus"): set(),
    ("evaluate", *TO_SCORE, "-o", "scores", "--surface", "none"): set(),
    ("evaluate", *TO_SCORE, "-o", "same"): set(),  # surfaces that coincide need no search for the nearest point
    ("evaluate", "masks", "data/labels", "--jobs", "1", "-o", "scores"): {"scipy.spatial"},
    ("evaluate", *TO_SCORE, "-o", "scores", "--surface", "none", "--lesions", "all"): {"cc3d"},
    ("stats", "data/labels", "--images", "data/images", "-o", "stats", "--jobs", "1"): set(),
    ("compare", "scores_a", "scores_b", "-o", "compared"): {
        "scipy.spatial",
        "scipy.ndimage",
        "scipy.stats",
        "matplotlib",
    },
    ("report", "scores_a", "-o", "report.html"): {"matplotlib", "jinja2"},
    ("inspect", "series"): set(),  # pydicom is at work in another process
    ("dicom", "mask/mask.nii.gz", "series", "-o", "objects", "--objects", "sr,rtstruct,sc"): {"pydicom", "highdicom"},
}
"""Words of a command → the large libraries that it loads, and no others, in a real run."""


def run(words: tuple[str, ...], folder: Path) -> str:
    code = (
        "import sys\nfrom pipeline.__main__ import main\n"
        f"try:\n    main({list(words)!r})\n"
        f"except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('loaded:', *sorted({LARGE!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("loaded:", 1)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset, masks that differ from its references, and the scores of two models."""
    found = tmp_path_factory.mktemp("start_up")
    write_toy(found / "data", 2)
    for path in (found / "data" / "labels").iterdir():
        labels = read_label_map(path)
        write_label_map(LabelMap(np.roll(labels.array, 1, axis=0), labels.grid), found / "masks" / path.name)
    save(make_slices(np.zeros((3, 4, 5), np.int16)), found / "series")
    grid = open_series(found / "series").grid
    write_label_map(LabelMap(np.ones(grid.shape, np.uint8), grid), found / "mask" / "mask.nii.gz")
    (found / "mask" / "labels.json").write_text('{"1": "liver"}')
    for scores, masks in (("scores_a", "masks"), ("scores_b", "data/labels")):
        run(("evaluate", masks, "data/labels", "--jobs", "1", "-o", scores, "--surface", "none"), found)
    return found


@pytest.mark.parametrize("words", list(LOADED), ids=" ".join)
def test_a_command_loads_only_what_it_needs(words: tuple[str, ...], folder: Path) -> None:
    assert set(run(words, folder).split()) == LOADED[words]


def test_predicting_loads_what_writes_dicom_only_when_it_is_asked_for() -> None:
    # MONAI itself loads pydicom where it is installed.
    code = "import sys, pipeline.stages.predict\nprint(*sorted({'highdicom', 'contourpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_command_that_predicts_imports_of_monai_only_what_it_uses(folder: Path) -> None:
    words = ("predict", "hippocampus", "data/images/toy_0.nii.gz", "-o", "found")
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    # nibabel asks for pydicom, and is told that there is none.
    assert LARGE & imported - {"pydicom"} == {"torch", "monai", "safetensors", "scipy.ndimage", "cc3d"}
    assert not {"pydicom.dataset", "monai.engines"} & imported


def test_a_program_that_uses_volseg_has_all_of_monai() -> None:
    code = (
        "from pipeline import Predictor\nimport monai\n"
        "print(monai.networks.nets.SwinUNETR.__name__, monai.utils.optional_import('pandas')[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SwinUNETR", "True"]
