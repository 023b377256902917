"""The README's commands, run as they stand, on a phantom dataset."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.volumes import read_label_map
from pipeline.model.zoo import zoo_model
from pipeline.phantom.torso import write_phantom

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TOUR = re.search(r"## Five minutes.*?```bash\n(.*?)```.*?```python\n(.*?)```", README, re.DOTALL)

FIRST = re.search(r"## A first mask.*?```bash\n(.*?)```", README, re.DOTALL)

# A test has seconds where the reader has minutes: a shorter budget, a smaller network and a coarser grid
# in place of configs/quick.yaml.
QUICK = (
    "preprocess: {spacing_mm: [8, 8, 8]}\n"
    "sample: {patch_size: [32, 32, 32], batch_size: 2, folds: 2}\n"
    "model: {options: {features: [4, 8, 16]}}\n"
    "train: {budget: 5s, iterations_per_epoch: 10, validation_cases: 1}\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    write_phantom(folder / "my_dataset", cases=4, tests=1)
    shutil.copytree(folder / "my_dataset" / "imagesTs", folder / "scans")
    (folder / "quick.yaml").write_text(QUICK)
    return folder


def test_the_tour_runs(place: Path) -> None:
    assert TOUR is not None
    steps = []
    for line in TOUR[1].splitlines():
        command = line.split("#")[0].split()
        steps.append(command[1])
        words = [word.replace("configs/quick.yaml", "quick.yaml") for word in command[1:]]
        done = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert steps == ["check", "preprocess", "train", "predict", "evaluate", "report"]
    assert (place / "report.html").is_file()
    code = TOUR[2]
    for image in place.glob("scans/*.nii.gz"):
        code = re.sub(r"scans/[\w.]+", f"scans/{image.name}", code)
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (place / "mask.nii.gz").is_file()


def test_the_first_mask_needs_no_training(tmp_path: Path) -> None:
    """The way of a new user: no dataset, no settings, one image."""
    assert FIRST is not None
    shutil.copy(zoo_model("hippocampus").example[0], tmp_path / "scan.nii.gz")
    shown = []
    for line in FIRST[1].splitlines():
        command = line.split("#")[0].split()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shown.append(done.stdout)
    assert set(read_label_map(tmp_path / "masks" / "scan.nii.gz").volumes_ml()) == {1, 2}
    assert shown[0].startswith("1 predicted, 0 up to date, 0 failed: masks")
    assert shown[1].startswith("# hippocampus")


def test_every_local_link_leads_somewhere() -> None:
    root = Path(__file__).parents[2]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_the_two_commands_come_first() -> None:
    first = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]
