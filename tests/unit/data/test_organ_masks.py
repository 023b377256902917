from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.organ_masks import organ_file_names, write_organs
from pipeline.data.volumes import read_label_map

GRID = Grid.from_spacing((3, 2, 1), (1.0, 1.0, 2.0), "LPS")


def test_names_are_safe_and_differ_on_every_system() -> None:
    table = LabelTable({1: "lung: left", 2: "lung? left", 3: "Aorta", 4: "aorta", 5: "...", 6: "Gefäß"})
    assert list(organ_file_names(table, ".nii.gz").values()) == [
        "lung_ left.nii.gz",
        "lung_ left_2.nii.gz",
        "Aorta.nii.gz",
        "aorta_2.nii.gz",
        "organ.nii.gz",
        "Gefäß.nii.gz",
    ]


def test_every_organ_and_region_has_a_mask(tmp_path: Path) -> None:
    labels = LabelMap(np.array([0, 1, 2, 2, 0, 7], np.uint16).reshape(GRID.shape), GRID)
    organs = LabelTable({1: "liver", 2: "spleen", 9: "aorta"})
    regions = LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "core": (2,)})
    for table in (organs, regions):
        names = organ_file_names(table, ".nii.gz")
        write_organs(labels, table, tmp_path / "case", names, dict.fromkeys(table.targets, "#ff0000"))
    found = {path.name: read_label_map(path) for path in (tmp_path / "case").iterdir()}
    assert {name: mask.array.ravel().tolist() for name, mask in found.items()} == {
        "liver.nii.gz": [0, 1, 0, 0, 0, 0],
        "spleen.nii.gz": [0, 0, 1, 1, 0, 0],
        "aorta.nii.gz": [0, 0, 0, 0, 0, 0],
        "disc.nii.gz": [0, 1, 1, 1, 0, 0],
        "core.nii.gz": [0, 0, 1, 1, 0, 0],
    }
    assert all(mask.grid == GRID for mask in found.values())
