"""The code in docs/api.md, run as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from generated_dicom import save, slices_of
from toy import write_toy

import pipeline

DOCUMENT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_example_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path / "my_dataset", 3)
    shutil.copy(tmp_path / "my_dataset" / "images" / "toy_0.nii.gz", tmp_path / "scan.nii.gz")
    shutil.copytree(model, tmp_path / "model")
    scan = pipeline.read_image(tmp_path / "scan.nii.gz")
    save(slices_of(np.rint(scan.array[0]).astype(np.int16), scan.grid.affine), tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(blocks) == 14
    exec("\n".join(blocks), {})  # the document is ours
    assert (tmp_path / "mask.nii.gz").is_file()


def test_every_public_name_has_an_example() -> None:
    lines = re.findall(r"from pipeline import (\([^)]*\)|.*)", DOCUMENT)
    imported = set(re.findall(r"\w+", " ".join(lines)))
    assert imported == set(pipeline.__all__)
