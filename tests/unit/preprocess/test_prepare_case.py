"""Fingerprint, plan, transforms and the store, on small volumes worked out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Lambdad, RandGaussianNoised, ScaleIntensityd
from PIL import Image as Picture
from prepared import read_prepared

from pipeline.config.settings import PreprocessSettings
from pipeline.core.errors import DataError, VolsegError
from pipeline.core.grid import Box, Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.volumes import read_image, write_image, write_label_map
from pipeline.preprocess.fingerprint import channel_statistics, fingerprint_case, foreground_box
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.plan_file import Normalization, Plan, read_plan, write_plan
from pipeline.preprocess.planning import plan_from_fingerprints
from pipeline.preprocess.prepare_case import case_hash, prepare_case, prepare_image, run_transforms, transform_text
from pipeline.preprocess.transforms import Normalized, transforms

LABELS = LabelTable({1: "a", 7: "b"}, ignore_label=9)


def case(folder: Path, *, orientation: str = "RAS", name: str = "one") -> CaseFiles:
    """10 x 12 x 8 voxels, 0 outside the box [2:8, 3:11, 1:7]; organ a is 100, organ b 200, one ignored voxel."""
    grid = Grid.from_spacing((10, 12, 8), (1.0, 1.0, 2.0))
    array, labels = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.uint8)
    array[2:8, 3:11, 1:7] = 10.0
    labels[3:6, 4:8, 2:5] = 1
    labels[6, 9, 5] = 7
    labels[2, 3, 1] = 9
    array[labels == 1], array[labels == 7] = 100.0, 200.0
    image_path, label_path = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    write_image(Image(array[None], grid).reoriented(orientation), image_path)
    write_label_map(LabelMap(labels, grid).reoriented(orientation), label_path)
    return CaseFiles(name, (image_path,), label_path)


def dataset(folder: Path, *cases: CaseFiles, channel: str = "MR") -> Dataset:
    return Dataset("toy", folder, "pairs", (channel,), LABELS, cases)


def plan_of(folder: Path, files: CaseFiles, channel: str = "MR") -> Plan:
    section = PreprocessSettings()
    found = fingerprint_case(files, LABELS, section.orientation, section.crop)
    return plan_from_fingerprints(dataset(folder, files, channel=channel), [found], section, 8)


def test_foreground_box() -> None:
    array = np.zeros((2, 5, 6, 7), np.float32)
    array[1, 2:4, 3, 1:6] = 1
    assert foreground_box(array) == Box((2, 3, 1), (4, 4, 6))
    assert foreground_box(np.zeros((1, 2, 3, 4), np.float32)) == Box((0, 0, 0), (2, 3, 4))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_fingerprint_is_taken_along_the_target_axes(tmp_path: Path, orientation: str) -> None:
    found = fingerprint_case(case(tmp_path, orientation=orientation), LABELS, "RAS", "nonzero")
    assert found.shape == (10, 12, 8)
    assert found.cropped_shape == (6, 8, 6)
    assert found.spacing_mm == pytest.approx((1, 1, 2))
    assert sorted(set(found.intensities.ravel().tolist())) == [100.0, 200.0]
    assert found.class_voxels == (6 * 8 * 6 - 36 - 1 - 1, 36, 1)


def test_pictures_of_two_resolutions_are_prepared_as_one(tmp_path: Path) -> None:
    """Their shapes agree; the image's resolution counts for both."""
    pixels = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    Picture.fromarray(pixels).save(tmp_path / "image.tif", dpi=(300, 300))
    Picture.fromarray((pixels > 99).astype(np.uint8)).save(tmp_path / "label.tif", dpi=(72, 72))
    files = CaseFiles("c", (tmp_path / "image.tif",), tmp_path / "label.tif")
    plan = plan_of(tmp_path, files)
    assert plan.spacing_mm[:2] == pytest.approx([25.4 / 300] * 2, abs=1e-6)
    result, _ = run_transforms({"id": "c", "image": list(files.images), "label": files.label_sources}, plan)
    assert result["image"].shape == result["label"].shape == (1, 30, 20, 1)


def test_channel_statistics_pool_the_foreground(tmp_path: Path) -> None:
    found = fingerprint_case(case(tmp_path), LABELS, "RAS", "nonzero")
    (statistics,) = channel_statistics([found, found])
    assert statistics.mean == pytest.approx((36 * 100 + 200) / 37)
    assert statistics.percentile_00_5 == 100
    empty = replace(found, intensities=np.zeros((1, 0), np.float32))
    assert channel_statistics([empty])[0].sd == 1.0


def test_every_case_weighs_the_same_in_the_channel_statistics(tmp_path: Path) -> None:
    large = fingerprint_case(case(tmp_path), LABELS, "RAS", "nonzero")
    few = replace(large, intensities=np.array([[0.0, 10.0, 20.0]], np.float32))
    (statistics,) = channel_statistics([large, few, replace(large, intensities=np.zeros((1, 0), np.float32))])
    mean = ((36 * 100 + 200) / 37 + 10) / 2
    assert statistics.mean == pytest.approx(mean)
    squares = (36 * (100 - mean) ** 2 + (200 - mean) ** 2) / 37 + sum((x - mean) ** 2 for x in (0, 10, 20)) / 3
    assert statistics.sd == pytest.approx((squares / 2) ** 0.5)
    assert (statistics.percentile_00_5, statistics.percentile_99_5) == (0, 200)  # 200 has 1 / 74 of the weight


def test_the_plan_follows_the_fingerprint_and_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, case(tmp_path))
    assert plan.spacing_mm == (1, 1, 2)
    assert plan.median_shape == (6, 8, 6)
    assert plan.slice_axis == 2
    assert plan.axes(2) == (0, 1)
    assert [entry.scheme for entry in plan.normalization] == ["zscore_nonzero"]  # cropping keeps 30 %
    write_plan(plan, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_ct_is_normalized_by_the_dataset(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, case(tmp_path), channel="CT")
    (entry,) = plan.normalization
    assert entry.scheme == "ct"
    assert entry.mean == pytest.approx((36 * 100 + 200) / 37)
    assert entry.low == 100


def test_an_edited_plan_with_a_wrong_key_is_refused(tmp_path: Path) -> None:
    write_plan(plan_of(tmp_path, case(tmp_path)), tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    for wrong, message in (
        (text.replace("crop: nonzero", "crop: body"), "plan.yaml: crop: expected 'nonzero' or 'none', got 'body'"),
        (text.replace("crop: nonzero", "crop: [nonzero"), "plan.yaml: expected a plan in YAML, got"),
        (text + "crop: none\n", "plan.yaml: crop: expected the key once, got it on lines"),
        (text.replace("crop: nonzero", "crop: &a [*a]"), "plan.yaml: expected a plan in YAML, got more than 100,000"),
        (
            re.sub(r"spacing_mm: \[[0-9.]+", "spacing_mm: [1.0e+30", text),
            "spacing_mm.0: expected at most 10000, got",
        ),
        (text.replace("orientation: RAS", "orientation: RAA"), "plan.yaml: orientation: orientation: expected three"),
        (re.sub("'([0-9]+)': ", r"'x\1': ", text), "plan.yaml: labels: label table: expected whole numbers"),
        (
            text.replace("  names:", "  x: 2024-13-45\n  names:"),
            "plan.yaml: labels: keys: expected some of ignore_label",
        ),
        (text.replace("low: null", "low: 3").replace("high: null", "high: 2"), "low, high: expected low <= high"),
        ("- crop", "plan.yaml: expected keys with values, got list"),
    ):
        (tmp_path / "plan.yaml").write_text(wrong)
        with pytest.raises(VolsegError, match=message):
            read_plan(tmp_path / "plan.yaml")
    with pytest.raises(VolsegError, match=r"no.yaml: expected a plan, got nothing there. Run `volseg preprocess`"):
        read_plan(tmp_path / "no.yaml")


def test_the_file_says_why_above_every_choice(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, case(tmp_path), channel="CT")
    write_plan(plan, tmp_path / "plan.yaml")
    lines = (tmp_path / "plan.yaml").read_text().splitlines()
    above = lines[lines.index("spacing_mm: [1.0, 1.0, 2.0]") - 1]
    assert above == "# Median of 1 cases along each axis."
    assert plan.reasons["patch_3d"].startswith("What a plain U-Net trains on in 8 GB, no larger than the median case")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Normalization(scheme="ct", low=-1, high=3, mean=1, sd=2), [-1.0, -0.5, 0.5, 1.0]),
        (Normalization(scheme="none"), [-5, 0, 2, 9]),
        (Normalization(scheme="zscore_nonzero"), [-7 / 32.666666**0.5, 0, 0, 7 / 32.666666**0.5]),
    ],
)
def test_normalization_by_hand(how: Normalization, expected: list[float]) -> None:
    image = MetaTensor(torch.tensor([-5.0, 0.0, 2.0, 9.0]).reshape(1, 4, 1, 1))
    found = Normalized(["image"], [how])({"image": image})["image"]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_holes_count_as_image_and_the_outside_stays_0() -> None:
    body = torch.zeros(2, 5, 5, 5)
    body[0, 1:4, 1:4, 1:4] = 3.0
    body[0, 2, 2, 2] = 0.0  # a hole; the second channel is 0 here too
    body[1, 1, 1, 1] = 27.0
    how = [Normalization(scheme="zscore_nonzero")] * 2
    first, second = Normalized(["image"], how)({"image": MetaTensor(body)})["image"].as_tensor()
    mean, sd = 26 / 9, (26 * (1 / 9) ** 2 + (26 / 9) ** 2) ** 0.5 / 27**0.5  # of 26 times 3 and a 0
    assert float(first[2, 2, 2]) == pytest.approx(-mean / sd, rel=1e-5)
    assert float(first[1, 1, 1]) == pytest.approx((3 - mean) / sd, rel=1e-4)
    assert float(second[1, 1, 1]) == pytest.approx(26 / 26**0.5, rel=1e-5)  # mean 1, of 27 once and 26 zeros
    assert not first[0].any()
    assert not second[0].any()


def test_zscore_has_mean_0_and_sd_1() -> None:
    image = MetaTensor(torch.arange(24.0).reshape(1, 2, 3, 4))
    found = Normalized(["image"], [Normalization(scheme="zscore")])({"image": image})["image"].as_tensor()
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_a_prepared_case_holds_classes_trace_and_voxels(tmp_path: Path, orientation: str) -> None:
    files = case(tmp_path, orientation=orientation)
    plan = plan_of(tmp_path, files)
    assert prepare_case(files, plan, tmp_path / "out")
    assert not prepare_case(files, plan, tmp_path / "out")  # nothing changed
    stored = read_prepared(tmp_path / "out", "one")
    assert stored.image.dtype == np.float32
    assert stored.image.shape == (1, 6, 8, 6)
    assert {int(v): int(n) for v, n in zip(*np.unique(stored.label, return_counts=True), strict=True)} == {
        -1: 1,
        0: 250,
        1: 36,
        2: 1,
    }
    assert stored.class_voxels[2].tolist() == [[4, 6, 4]]
    history = GridHistory.from_json(stored.info["trace"])
    assert (history.crop_start, history.crop_stop) == ((2, 3, 1), (8, 11, 7))
    assert history.source.orientation == orientation


def test_a_changed_file_or_plan_is_prepared_again(tmp_path: Path) -> None:
    files = case(tmp_path)
    plan = plan_of(tmp_path, files)
    prepare_case(files, plan, tmp_path / "out")
    assert prepare_case(files, plan.model_copy(update={"spacing_mm": (2, 2, 2)}), tmp_path / "out")
    assert read_prepared(tmp_path / "out", "one").label.shape == (3, 4, 6)
    case(tmp_path, orientation="LPS")  # the same name, written anew
    assert prepare_case(files, plan, tmp_path / "out")


def test_a_users_monai_transform_is_run_last(tmp_path: Path) -> None:
    files = case(tmp_path)
    plan = plan_of(tmp_path, files)
    extra = (ScaleIntensityd(["image"], minv=0.0, maxv=5.0),)
    prepare_case(files, plan, tmp_path / "out", extra)
    image = read_prepared(tmp_path / "out", "one").image
    assert (float(image.min()), float(image.max())) == (0.0, 5.0)


def test_a_changed_group_or_parameter_of_a_users_transform_is_prepared_again(tmp_path: Path) -> None:
    files = case(tmp_path)
    plan = plan_of(tmp_path, files)
    assert case_hash(replace(files, group="p1"), plan) != case_hash(files, plan)
    assert case_hash(replace(files, group="p1"), plan) != case_hash(replace(files, group="p2"), plan)

    def digest(*extra: object) -> str:
        return case_hash(files, plan, extra)

    five = digest(ScaleIntensityd(["image"], minv=0.0, maxv=5.0))
    assert digest(ScaleIntensityd(["image"], minv=0.0, maxv=5.0)) == five
    assert digest(ScaleIntensityd(["image"], minv=0.0, maxv=6.0)) != five  # held by an object of the transform's
    assert digest(ScaleIntensityd(["label"], minv=0.0, maxv=5.0)) != five
    noise = digest(RandGaussianNoised(["image"], prob=1.0))  # holds a random state, whose repr has an address
    assert digest(RandGaussianNoised(["image"], prob=1.0)) == noise
    assert digest(Lambdad(["image"], func=np.abs)) != digest(Lambdad(["image"], func=np.sqrt))


def test_nan_wrong_channels_and_unknown_labels_are_named(tmp_path: Path) -> None:
    files = case(tmp_path)
    plan = plan_of(tmp_path, files)
    grid = Grid.from_spacing((10, 12, 8), (1.0, 1.0, 2.0))
    bad = np.zeros((1, *grid.shape), np.float32)
    bad[0, 0, 0, :3] = np.nan
    with pytest.raises(DataError, match=r"case x: image: expected finite intensities, got 3 voxels of NaN or infinity"):
        prepare_image(Image(bad, grid), plan, case="x")
    with pytest.raises(DataError, match=r"case x: channels: expected 1 \(MR\), got 2"):
        prepare_image(Image(np.zeros((2, *grid.shape), np.float32), grid), plan, case="x")
    labels = np.full(grid.shape, 3, np.uint8)
    write_label_map(LabelMap(labels, grid), tmp_path / "one_label.nii.gz")
    with pytest.raises(DataError, match=r"case one: label values: expected only 0 and .* got \[3\]"):
        prepare_case(files, plan, tmp_path / "out")


def test_a_label_map_on_another_grid_is_refused_in_mm(tmp_path: Path) -> None:
    files = case(tmp_path)
    plan = plan_of(tmp_path, files)
    shifted = Grid.from_spacing((10, 12, 8), (1.0, 1.0, 2.0)).cropped((1, 0, 0), (11, 12, 8))
    write_label_map(LabelMap(np.ones(shifted.shape, np.uint8), shifted), tmp_path / "one_label.nii.gz")
    with pytest.raises(DataError, match=r"case one: label.* grid: expected the image grid .* a difference of 1 mm"):
        prepare_case(files, plan, tmp_path / "out")


def test_an_image_of_zeros_is_kept_whole(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, case(tmp_path))
    grid = Grid.from_spacing((5, 6, 7), (1.0, 1.0, 2.0))
    array, history = prepare_image(Image(np.zeros((1, *grid.shape), np.float32), grid), plan)
    assert array.shape == (1, 5, 6, 7)
    assert history.crop_stop == (5, 6, 7)


def test_a_target_shape_holds_whatever_the_size_of_a_case(tmp_path: Path) -> None:
    files, other = case(tmp_path), case(tmp_path, name="two")
    section = PreprocessSettings(shape=(5, 6, 1), crop="none")
    prints = [fingerprint_case(each, LABELS, section.orientation, section.crop) for each in (files, other)]
    plan = plan_from_fingerprints(dataset(tmp_path, files, other), prints, section, 8)
    assert plan.shape == plan.median_shape == (5, 6, 1)
    assert plan.spacing_mm == (2, 2, 16)  # 10 x 12 x 8 voxels of 1 x 1 x 2 mm
    assert plan.slice_axis == 2
    assert plan.reasons["spacing_mm"] == "What the shape makes of the median case."
    grid = Grid.from_spacing((30, 6, 4), (1.0, 3.0, 1.0))
    prepared, history = prepare_image(Image(np.ones((1, 30, 6, 4), np.float32), grid), plan)
    assert prepared.shape == (1, 5, 6, 1)
    assert history.source == grid
    assert history.prepared == grid.resized((5, 6, 1))
    assert history.prepared.spacing_mm == (6, 3, 4)


def test_slices_of_pictures_lie_across_their_only_slice(tmp_path: Path) -> None:
    found = replace(
        fingerprint_case(case(tmp_path), LABELS, "RAS", "none"), cropped_shape=(512, 384, 1), spacing_mm=(1.0, 1.0, 1.0)
    )
    files = case(tmp_path)
    plan = plan_from_fingerprints(dataset(tmp_path, files), [found], PreprocessSettings(shape=(224, 224, 1)), 8)
    assert plan.spacing_mm == (2.285714, 1.714286, 1.0)  # the first axis is the coarsest
    assert plan.slice_axis == 2
    assert plan.patch_2d.patch_size == (224, 224)


def test_a_case_that_lacks_a_channel_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"case one: image channels: expected 3 files, got 1\. Add the missing files"):
        fingerprint_case(case(tmp_path), LABELS, "RAS", "none", channels=3)


# Texts that name a value the same way in every process.


class Plain:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (1.5, "1.5"),
        ((1, "a"), "[1, 'a']"),
        ({"b": 1, "a": [2]}, "{a: [2], b: 1}"),
        ({3, 1, 2}, "{1, 2, 3}"),
        (torch.float16, "torch.float16"),
        (Plain(size=3, inner=Plain(x="y")), "Plain{inner: Plain{x: 'y'}, size: 3}"),
        (np.linalg.norm, "numpy.linalg.norm"),
        (object(), "object"),
    ],
)
def test_values_by_hand(value: object, expected: str) -> None:
    assert transform_text(value) == expected


def test_arrays_are_named_by_type_shape_and_content() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert transform_text(array) == transform_text(array.copy())
    assert len({transform_text(x) for x in (array, array + 1, array.T.copy(), array.astype(np.float32))}) == 4
    assert transform_text(torch.ones(3)) != transform_text(torch.zeros(3))


def test_an_object_that_holds_itself_has_a_name() -> None:
    loop = Plain()
    loop.__dict__["itself"] = loop
    assert transform_text(loop).startswith("Plain{itself: Plain{")


def test_transforms_differ_by_their_parameters_alone() -> None:
    assert transform_text(ScaleIntensityd(["image"], minv=0.0)) == transform_text(ScaleIntensityd(["image"], minv=0.0))
    assert transform_text(ScaleIntensityd(["image"], minv=0.0)) != transform_text(ScaleIntensityd(["image"], minv=0.5))
    assert transform_text(RandGaussianNoised(["image"], std=0.1)) == transform_text(
        RandGaussianNoised(["image"], std=0.1)
    )
    assert transform_text(RandGaussianNoised(["image"], std=0.1)) != transform_text(
        RandGaussianNoised(["image"], std=0.2)
    )


def test_monai_collates_prepared_cases(tmp_path: Path) -> None:
    files = [case(tmp_path, name=name) for name in ("one", "two")]
    chain = transforms(plan_of(tmp_path, files[0]), with_label=True)
    prepared = [chain({"id": f.id, "image": list(f.images), "label": f.label_sources}) for f in files]
    batch = list_data_collate(prepared)
    assert batch["id"] == ["one", "two"]
    assert batch["image"].shape == batch["label"].shape == (2, 1, 6, 8, 6)
    assert torch.equal(batch["image"][1], prepared[1]["image"])
    assert torch.equal(batch["source_affine"][0], torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64)))
    assert [part.tolist() for part in batch["crop_start"]] == [[2, 2], [3, 3], [1, 1]]


def test_what_goes_wrong_in_a_transform_is_told_as_it_was_raised(tmp_path: Path) -> None:
    """MONAI's own words are about an object at some address."""
    files = case(tmp_path)
    plan = plan_of(tmp_path, files)

    def fail(_: object) -> None:
        raise KeyError("spleen")

    with pytest.raises(KeyError, match="spleen"):
        prepare_image(read_image(files.images), plan, extra=[Lambdad(["image"], fail)])
    fine = plan.model_copy(update={"spacing_mm": (0.5, 0.5, 1.0)})
    message = r"case big: image of spacing 1 x 1 x 2 mm, resampled .* expected at most 0 MB of memory"
    with pytest.raises(DataError, match=message):
        prepare_image(read_image(files.images), fine, case="big", most_bytes=5)
