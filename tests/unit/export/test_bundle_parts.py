"""What a bundle does in place of volseg, held against volseg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.export.bundle_parts import Finished, Resampled, Windows, cases
from pipeline.infer.cleaning import Cleaning, classes_with
from pipeline.infer.inferer import StreamingInferer
from pipeline.preprocess import resample as volseg


def files(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).touch()
    return str(folder)


def test_cases_are_files_or_files_of_all_channels(tmp_path: Path) -> None:
    folder = files(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "notes.txt")
    assert [case["case"] for case in cases(folder, 1)] == ["b_0000", "b_0001"]
    (case,) = cases(folder, 2)
    assert (case["case"], [Path(file).name for file in case["image"]]) == ("b", ["b_0000.nii.gz", "b_0001.nii.gz"])


def test_missing_channels_and_empty_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected NIfTI files, got none\. Set dataset_dir"):
        cases(str(tmp_path), 1)
    with pytest.raises(ValueError, match=r"expected 2 files CASE_0000\.nii\.gz, … per case, got 1 of 'b'"):
        cases(files(tmp_path, "a_0000.nii", "a_0001.nii", "b_0000.nii"), 2)


@pytest.mark.parametrize("shape", [(14, 15, 16), (20, 21, 1)])
def test_masks_are_cleaned_as_volseg_cleans_them(shape: tuple[int, int, int]) -> None:
    labels = LabelTable({3: "liver", 5: "tumor"}, regions={"liver": (3, 5), "tumor": (5,)}, painted=(3, 5))
    cleaning = Cleaning(("liver",), {"tumor": 0.012}, ("liver", "tumor"))
    index = (np.random.default_rng(3).random(shape) < 0.55).astype(np.int16)
    index[2:7, 2:9] *= 2
    spacing = (1.0, 2.0, 1.5)
    grid = Grid.from_spacing(shape, spacing)
    expected = labels.from_index(cleaning.apply(index, labels, grid.voxel_volume_ml))
    finished = Finished(
        "pred",
        [0, 3, 5],
        keep_largest=[labels.without("liver")],
        remove_small=[(labels.without("tumor"), 0.012)],
        fill_holes=[(labels.without(name), classes_with(labels, name)) for name in ("liver", "tumor")],
    )
    image = MetaTensor(torch.from_numpy(index)[None], affine=torch.tensor(grid.affine))
    result = finished({"pred": image, "case": "c"})["pred"]
    assert np.array_equal(result.numpy()[0], expected)
    assert not np.array_equal(expected, labels.from_index(index))
    assert result.meta["filename_or_obj"] == "c.nii.gz"


@pytest.mark.parametrize("spacing", [(1.0, 1.2, 0.9), (0.8, 0.8, 4.0)])
def test_images_are_resampled_as_volseg_resamples_them(spacing: tuple[float, float, float]) -> None:
    grid = Grid.from_spacing((12, 11, 7), spacing)
    array = torch.from_numpy(np.random.default_rng(5).normal(size=(2, *grid.shape)).astype(np.float32))
    image = MetaTensor(array, affine=torch.tensor(grid.affine))
    expected = volseg.Resampled("image", (1.1, 1.0, 1.0))({"image": image})["image"]
    found = Resampled("image", (1.1, 1.0, 1.0))({"image": image})["image"]
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert torch.allclose(found.affine, expected.affine)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("blend", ["gaussian", "nnunet"])
def test_windows_lie_and_weigh_as_in_volseg(axes: tuple[int, int, int], blend: str) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(0, 1, windows.shape[2])[:, None, None]
        return torch.cat([windows * ramp, windows.flip(4)], dim=1)  # what it says depends on where a window lies

    volume = torch.randn(1, 1, 9, 17, 12, generator=torch.Generator().manual_seed(0))
    patch, placement = (6, 8, 10), "nnunet" if blend == "nnunet" else "even"
    sizes = {"step": [1, 1, 1], "smallest": [1, 1, 1], "lone_cell": True, "border": None}
    windows = Windows(patch, sizes, blend=blend, placement=placement, batch=3, axes=axes)
    found = windows(volume, network)
    turned = volume.permute(0, 1, *(axis + 2 for axis in axes))
    streamed = StreamingInferer(patch, 0.5, blend, placement=placement)(turned, network)
    torch.testing.assert_close(found.permute(0, 1, *(axis + 2 for axis in axes)), streamed)
    assert found.shape == (1, 2, 9, 17, 12)
