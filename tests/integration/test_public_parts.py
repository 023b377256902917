"""The parts that a loop of one's own is made of: each against what the steps do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from torch import nn
from toy import toy_settings, write_toy

from pipeline import (
    Image,
    LabelMap,
    Measures,
    StreamingInferer,
    build_network,
    evaluate_pairs,
    make_plan,
    open_dataset,
    predict_image,
    read_image,
    read_label_map,
    transforms,
)
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan


class Threshold(nn.Module):
    """Class 1 where the normalized intensity is above 0."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(window), window, window - 1], dim=1)


def test_a_plan_is_that_of_preprocess(dataset: Path, prepared: Path) -> None:
    assert make_plan(open_dataset(dataset), toy_settings(), jobs=1) == read_plan(prepared / PLAN_FILE)


def test_monai_takes_the_cases_and_the_transforms(dataset: Path) -> None:
    data = open_dataset(dataset)
    plan = make_plan(data, jobs=1)
    case = data.as_monai()[0]
    assert (case["id"], case["image"], case["label"]) == (
        data.cases[0].id,
        [*data.cases[0].images],
        (data.cases[0].label,),
    )
    chain = transforms(plan)
    batch = list_data_collate([chain(entry) for entry in data.as_monai()[:2]])
    assert batch["image"].shape[:2] == (2, 1)
    assert batch["label"].unique().tolist() == [*range(plan.label_table.classes)]


def test_a_network_follows_from_the_plan(prepared: Path) -> None:
    plan = read_plan(prepared / PLAN_FILE)
    network = build_network("unet", plan=plan, deep_supervision=False, seed=0)
    assert network.in_channels == 1
    size = network.legal_size(plan.patch_3d.patch_size)
    assert size == plan.patch_3d.patch_size
    assert network.eval()(torch.zeros(1, 1, *size)).shape == (1, plan.label_table.classes, *size)
    with pytest.raises(ConfigError, match=r"network: expected 1 and \d channels as in the plan, got 2 and \d"):
        build_network("unet", plan=plan, in_channels=2)
    with pytest.raises(ConfigError, match=r"network: expected in_channels and out_channels, or a plan, got neither"):
        build_network("unet")


@pytest.mark.parametrize("training", [True, False])
def test_a_mask_lies_on_the_grid_of_its_image(dataset: Path, training: bool) -> None:
    data = open_dataset(dataset)
    plan = make_plan(data, jobs=1)
    image = read_image(data.cases[0].images[0])
    turned = image.reoriented("PIR")
    network = Threshold().train(training)
    one = predict_image(image, network, plan, StreamingInferer((16, 16, 16)))
    other = predict_image(turned, network, plan)
    assert (network.training, one.grid, other.grid) == (training, image.grid, turned.grid)
    assert (other.reoriented(image.grid.orientation).array == one.array).mean() > 0.999
    assert 0 < (one.array != 0).mean() < 1


def test_a_2d_network_sees_every_slice(dataset: Path) -> None:
    data = open_dataset(dataset)
    plan = make_plan(data, jobs=1)
    network = build_network("unet", 2, plan=plan, seed=0)
    image = read_image(data.cases[0].images[0])
    assert predict_image(image, network, plan).grid == image.grid


def test_networks_without_padding_see_the_margin(dataset: Path) -> None:
    data = open_dataset(dataset)
    plan = make_plan(data, jobs=1)
    network = build_network("unet2015", 2, plan=plan, features=(4, 8), seed=0)
    image = read_image(data.cases[0].images[0])
    assert predict_image(image, network, plan).grid == image.grid


def test_pairs_are_scored_as_maps_and_as_files(dataset: Path) -> None:
    data = open_dataset(dataset)
    files = [case.label for case in data.cases[:2] if case.label is not None]
    maps = [read_label_map(file) for file in files]
    empty = LabelMap(np.zeros_like(maps[1].array), maps[1].grid)
    by_files = evaluate_pairs([(files[0], str(files[0])), (None, files[1])], data.labels)
    by_maps = evaluate_pairs([(maps[0], maps[0]), (empty, maps[1])], data.labels, measures=Measures(tolerance_mm=2.0))
    assert [row.dice for row in by_files.rows] == [row.dice for row in by_maps.rows]
    assert {row.dice for row in by_maps.rows if row.case == "case_0"} == {1.0}
    assert {row.dice for row in by_maps.rows if row.case == "case_1"} == {0.0}
    assert [entry.id for entry in by_files.cases] == ["toy_0", "toy_1"]
    table = by_maps.to_dataframe()
    assert [*table.columns[:6]] == ["case", "label", "name", "status", "dice", "iou"]
    assert "hd95_mm" in table
    assert "hd95_mm" not in by_files.to_dataframe()
    assert len(table) == 2 * len(data.labels.organs)


def test_a_prediction_on_another_grid_is_a_failure_of_its_case(dataset: Path) -> None:
    data = open_dataset(dataset)
    reference = read_label_map(data.cases[0].label or "")
    other = LabelMap(reference.array[1:], reference.grid.cropped((1, 0, 0), reference.grid.shape))
    found = evaluate_pairs([(other, reference), (reference, reference)], data.labels)
    assert [case for case, _ in found.failures] == ["case_0"]
    assert [row.dice for row in found.rows] == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(VolsegError, match=r"All 1 cases failed\. The first: case case_0: "):
        evaluate_pairs([(other, reference)], data.labels)


def test_an_image_with_too_many_channels_is_refused(dataset: Path) -> None:
    data = open_dataset(dataset)
    plan = make_plan(data, jobs=1)
    image = read_image(data.cases[0].images[0])
    two = Image(np.concatenate([image.array, image.array]), image.grid)
    with pytest.raises(Exception, match=r"scan: .*channel"):
        predict_image(two, Threshold(), plan, case="scan")


def test_measures_of_all_organs_and_wrong_names(dataset: Path) -> None:
    data = open_dataset(dataset)
    pair = (data.cases[0].label or "", data.cases[0].label or "")
    rows = evaluate_pairs([pair], data.labels, measures=Measures(lesions=("all",))).rows
    assert {row.value("lesion_f1") for row in rows} == {1.0}
    with pytest.raises(VolsegError, match=r"--lesions: expected organs of the label table .*, got liver"):
        evaluate_pairs([pair], data.labels, measures=Measures(lesions=("liver",)))
    with pytest.raises(VolsegError, match=r"pair: expected a LabelMap or a file, got an object of type ndarray"):
        evaluate_pairs([(np.zeros(3), pair[1])], data.labels)  # type: ignore[list-item]


def test_what_does_not_suit_a_plan_is_refused(dataset: Path) -> None:
    data = open_dataset(dataset)
    plan, image = make_plan(data, jobs=1), read_image(data.cases[0].images[0])
    with pytest.raises(VolsegError, match=r"network: expected 3 output channels, got 1"):
        predict_image(image, nn.Identity(), plan, StreamingInferer((8, 8, 8)))
    with pytest.raises(VolsegError, match=r"inferer: expected windows along i, j, k, got windows of 2 axes"):
        predict_image(image, Threshold(), plan, StreamingInferer((8, 8)))
    with pytest.raises(VolsegError, match=r"image: expected an Image, got an object of type ndarray"):
        predict_image(image.array, Threshold(), plan)  # type: ignore[arg-type]
    with pytest.raises(VolsegError, match=r"plan: expected no further transforms of training, got Own"):
        predict_image(image, Threshold(), plan.model_copy(update={"extra": ("Own",)}))


def test_frozen_layers_stay_in_their_mode(dataset: Path) -> None:
    data = open_dataset(dataset)
    plan, image = make_plan(data, jobs=1), read_image(data.cases[0].images[0])
    network = build_network("unet", plan=plan, norm="batch", seed=0)
    frozen = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm3d)).eval()
    predict_image(image, network, plan)
    assert (network.training, frozen.training) == (True, False)


def test_a_plan_is_refused_where_a_case_cannot_be_used(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "data", 3)
    (folder / "images" / "toy_1.nii.gz").write_bytes(b"no volume")
    with pytest.raises(VolsegError, match=r"dataset: expected usable cases only, got 1 that are not.*toy_1"):
        make_plan(open_dataset(folder), jobs=1)
