"""MONAI's LoadImaged with our reader."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Orientationd

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.core.volume import LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.monai_reader import VolumeReader
from pipeline.data.volume_file import VolumeError, join_source
from pipeline.data.volumes import write_label_map


def load(image=None, label=None) -> dict[str, torch.Tensor]:
    """Both keys as the pipeline loads them."""
    data = {key: value for key, value in (("image", image), ("label", label)) if value is not None}
    steps = {
        "image": LoadImaged("image", reader=VolumeReader()),
        "label": LoadImaged("label", reader=VolumeReader(labels=True), dtype=None),
    }
    return Compose([*(steps[key] for key in data), EnsureChannelFirstd(list(data))])(data)


def cause(error: BaseException) -> BaseException:
    """What MONAI wrapped."""
    return cause(error.__cause__) if error.__cause__ is not None else error


def test_image_and_label(nifti, ramp, blob) -> None:
    affine = np.diag([-2.0, -3.0, 4.0, 1.0])
    data = load(nifti("a.nii.gz", ramp, affine), nifti("l.nii.gz", blob, affine))
    assert data["image"].shape == (1, 4, 5, 6)
    assert data["image"].dtype == torch.float32
    assert data["image"][0, 3, 2, 1] == 321
    assert data["label"].dtype == torch.int32
    assert torch.equal(data["label"].as_tensor()[0], torch.from_numpy(blob).int())
    for key in data:
        np.testing.assert_array_equal(data[key].affine.numpy(), affine)
    turned = Orientationd(["image"], axcodes="RAS", labels=None)(data)
    assert turned["image"][0, 0, 2, 1] == 321


def test_affine_is_ras_for_all_formats(tmp_path, blob) -> None:
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3), "PIL")
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        write_label_map(LabelMap(blob, grid), tmp_path / f"a{suffix}")
        found = LoadImage(reader=VolumeReader())(tmp_path / f"a{suffix}")
        np.testing.assert_allclose(found.affine.numpy(), grid.affine, atol=1e-6)
        np.testing.assert_array_equal(found.numpy(), blob)
        assert found.meta["space"] == "RAS"
        assert tuple(found.meta["spatial_shape"]) == (4, 5, 6)


def test_channels(nifti, ramp) -> None:
    affine = np.eye(4)
    affine[0, 3] = 1e-5  # MONAI itself would refuse this
    data = load([nifti("a.nii.gz", ramp), nifti("b.nii", ramp + 1000, affine)])
    assert data["image"].shape == (2, 4, 5, 6)
    assert data["image"][:, 1, 0, 0].tolist() == [100, 1100]
    path = nifti("c.nii.gz", np.stack([ramp, ramp + 1000], axis=-1))
    data = load([join_source(path, "channel", n, 2) for n in (1, 2)])
    assert data["image"][:, 1, 0, 0].tolist() == [100, 1100]
    assert load(nifti("d.nii", ramp[..., None]))["image"].shape == (1, 4, 5, 6)
    assert load(nifti("e.nii", ramp[..., 0]))["image"].shape == (1, 4, 5, 1)


def test_labels_stay_exact(nifti) -> None:
    values = np.array([0, 2**24 + 1], np.uint32).reshape(2, 1, 1)
    assert load(label=nifti("a.nii.gz", values))["label"].flatten().tolist() == [0, 2**24 + 1]


def test_organ_masks(nifti) -> None:
    liver, spleen = np.zeros((2, 3, 3, 3), dtype=np.uint8)
    liver[0], spleen[1, 0] = 1, 1
    files = CaseFiles("c", (), organs=((2, nifti("liver.nii.gz", liver)), (5, nifti("spleen.nii.gz", spleen))))
    label = load(label=files.label_sources)["label"]
    assert label.shape == (1, 3, 3, 3)
    assert label[0, 0, 0, 0] == 2
    assert label[0, 1, 0, 0] == 5
    assert label[0, 2, 0, 0] == 0


def test_refusals_reach_the_user(nifti, tmp_path, ramp) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.2
    bad = {
        "missing": tmp_path / "no.nii.gz",
        "affine": nifti("shear.nii.gz", ramp, shear),
        "dimensions": nifti("four.nii.gz", np.stack([ramp] * 2, axis=-1)),
    }
    for code, path in bad.items():
        with pytest.raises(RuntimeError) as caught:
            load(path)
        error = cause(caught.value)
        assert isinstance(error, VolumeError)
        assert error.code == code
        assert str(error).startswith(f"{path}: ")
    with pytest.raises(VolumeError, match=r"got 0\.5 "):
        LoadImage(reader=VolumeReader(labels=True))(nifti("half.nii.gz", np.full((2, 2, 2), 0.5)))
    moved = nifti("moved.nii.gz", ramp, np.diag([1, 1, 2, 1]))
    with pytest.raises(DataError, match="grid of channel 2: expected the grid of channel 1"):
        LoadImage(reader=VolumeReader())([nifti("a.nii.gz", ramp), moved])
    with pytest.raises(VolumeError, match="label: expected one file, got 2"):
        LoadImage(reader=VolumeReader(labels=True))([moved, moved])


def test_verify_suffix() -> None:
    assert VolumeReader().verify_suffix(["a.nii.gz", "b.MHA"])
    assert not VolumeReader().verify_suffix("a.dcm")


@pytest.mark.realdata
def test_real_label_equals_nibabel(real_data) -> None:
    path = real_data / "ct_multiorgan" / "example_mr_sm_labels.nii.gz"
    label = load(label=path)["label"]
    stored = nib.load(path)
    np.testing.assert_array_equal(label.numpy()[0], np.asarray(stored.dataobj))
    np.testing.assert_allclose(label.affine.numpy(), stored.affine)
