"""Class weights by hand, from lists and from label maps in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.settings import LossSettings, SampleSettings
from pipeline.core.errors import ConfigError
from pipeline.core.labels import LabelTable
from pipeline.data.store import PreparedCase, open_prepared, write_prepared
from pipeline.preprocess.plan_file import Plan
from pipeline.train.class_weights import (
    balanced_weights,
    class_voxel_counts,
    class_weights,
    planned_weights,
    require_class_weights,
    sampling_weights,
)

BALANCED = LossSettings(class_weights="balanced")
PLANNED = LossSettings(class_weights="plan")


def plan(table: LabelTable, weights: dict[str, float] | None) -> Plan:
    return Plan.model_validate(
        {
            **{"dataset": "toy", "channels": ["CT"], "labels": table.to_json(), "orientation": "RAS", "crop": "none"},
            **{"spacing_mm": [1, 1, 1], "image_order": 3, "store_dtype": "float32", "normalization": []},
            **{"median_shape": [9, 9, 9], "slice_axis": 2, "class_weights": weights},
            "patch_3d": {"patch_size": [8, 8, 8], "batch_size": 2},
            "patch_2d": {"patch_size": [8, 8], "batch_size": 2},
        }
    )


def test_counts_over_memory_and_disk_leave_out_the_ignored(tmp_path: Path) -> None:
    label = np.zeros((130, 2, 2), np.int8)  # three slabs
    label[0], label[100], label[129, 0] = 1, 2, -1
    image = np.zeros((1, *label.shape), np.float32)
    write_prepared(tmp_path, PreparedCase("a", image, label, {}, {}))
    on_disk = open_prepared(tmp_path, "a")[1]
    assert class_voxel_counts([on_disk]) == (510, 4, 4)
    assert class_voxel_counts([on_disk, torch.from_numpy(label), np.full((1, 1, 1), 1)], 5) == (1020, 9, 8, 0, 0)


def test_balanced_weights_have_a_mean_of_one_over_voxels_and_equal_sums_per_class() -> None:
    counts = (60, 30, 0, 10)
    weights = balanced_weights(counts)
    assert weights == pytest.approx((100 / 180, 100 / 90, 1.0, 100 / 30))
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) / 100 == pytest.approx(1.0)


def test_balanced_regions_have_a_mean_of_one() -> None:
    # class 1 alone is the rim, class 2 the cup: 40 voxels of the disc, 10 of the cup; the third occurs nowhere
    weights = balanced_weights((50, 30, 10), ((1, 2), (2,), (3,)))
    assert weights == pytest.approx((0.4, 1.6, 1.0))


def test_without_any_voxel_all_weigh_the_same() -> None:
    assert balanced_weights((0, 0)) == (1.0, 1.0)


def test_weights_as_the_settings_want_them() -> None:
    labels = [torch.tensor([[[0, 0, 0, 1]]])]
    assert class_weights(LossSettings(), 2, labels) is None
    balanced = class_weights(BALANCED, 2, labels)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([4 / 6, 2.0])
    given = class_weights(LossSettings(class_weights=(1.0, 3.0)), 2, labels)
    assert given is not None
    assert given.tolist() == [1.0, 3.0]


def test_a_list_of_another_length_is_refused_with_the_organs_named() -> None:
    settings = LossSettings(class_weights=(1.0, 3.0))
    with pytest.raises(ConfigError) as error:
        require_class_weights(settings, ["background", "liver", "spleen"])
    assert error.value.problems == (
        "loss.class_weights: expected 3 numbers (background, liver, spleen), got 2: [1.0, 3.0]. "
        "Give one for each, or write balanced.",
    )
    with pytest.raises(ConfigError, match=r"expected 1 numbers \(region 0\), got 2"):
        class_weights(settings, 1, [], regions=((1,),))
    require_class_weights(settings, ["background", "liver"])
    require_class_weights(BALANCED, ["background", "liver", "spleen"])


def test_the_plans_weights_stand_in_the_order_of_classes() -> None:
    organs = LabelTable({1: "liver", 3: "tumour", 7: "vein"})
    proposed = plan(organs, {"vein": 2.5, "tumour": 7.0})
    assert planned_weights(PLANNED, proposed).class_weights == (1.0, 1.0, 7.0, 2.5)
    assert planned_weights(BALANCED, proposed) is BALANCED
    assert sampling_weights(SampleSettings(class_weights="plan"), proposed) == {2: 7.0, 3: 2.5}
    assert sampling_weights(SampleSettings(), proposed) is None


def test_a_region_weighs_what_its_lightest_organ_does() -> None:
    nested = LabelTable(
        {1: "edema", 2: "core", 3: "enhancing"}, None, {"whole": (1, 2, 3), "inner": (2, 3), "tip": (3,)}
    )
    proposed = plan(nested, {"enhancing": 6.0, "core": 2.0})
    assert planned_weights(PLANNED, proposed).class_weights == (1.0, 2.0, 6.0)
    assert sampling_weights(SampleSettings(class_weights="plan"), proposed) == {2: 2.0, 3: 6.0}


def test_a_plan_without_a_proposal_weighs_all_the_same() -> None:
    balanced = plan(LabelTable({1: "liver"}), None)
    assert planned_weights(PLANNED, balanced).class_weights == "none"
    assert sampling_weights(SampleSettings(class_weights="plan"), balanced) is None
    with pytest.raises(ValueError, match=r"class_weights: expected numbers, got 'plan'. Call planned_weights first"):
        class_weights(PLANNED, 2, [])
