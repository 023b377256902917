"""Which mirrored and rotated windows a model may be shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from members import ORGANS, image, member, plan

from pipeline.config import Settings
from pipeline.core.errors import ConfigError
from pipeline.core.labels import LabelTable
from pipeline.infer.augmented import augmentation_problems, mirror_axes, rotation_of
from pipeline.infer.mirror import Rotation
from pipeline.infer.predictor import Predictor

ALONE = LabelTable({1: "liver", 2: "spleen"})
TURNED = {"rotate_degrees": 180.0, "flip_axes": []}


def rotating(**augment: Any) -> dict[str, Any]:
    return {"infer": {"rotate": True}, "augment": TURNED | augment}


def test_the_plane_lies_in_the_slices_and_across_the_coarse_axis() -> None:
    spec = member().card.network
    assert rotation_of(plan(), spec) == Rotation((0, 1))
    assert rotation_of(plan(spacing_mm=(2.0, 2.01, 1.0)), spec) == Rotation((0, 1))
    assert rotation_of(plan(spacing_mm=(2.0, 2.1, 1.0)), spec) == Rotation((0, 1), quarter=False)
    assert rotation_of(plan(spacing_mm=(5.0, 1.0, 1.0), slice_axis=0), spec) == Rotation((1, 2))
    flat = spec.model_copy(update={"patch_size": (8, 32, 32)})
    assert rotation_of(plan(), flat) == Rotation((1, 2))  # training rotates it there only
    assert rotation_of(plan(slice_axis=1), member(2).card.network) == Rotation((0, 2))


@pytest.mark.parametrize(
    ("augment", "table", "message"),
    [
        ({"rotate_degrees": 30.0}, ALONE, r"rotate_degrees\), got one with up to 30\. Set it to false"),
        ({"rotate_p": 0.0}, ALONE, r"infer.rotate: expected a model trained with rotations .*, got one without\."),
        ({"enabled": False}, ALONE, r"got one without\. Set it to false"),
        ({"flip_axes": ["LR"]}, ORGANS, r"infer.rotate: expected no left and right organs where .*, got 1 pairs\."),
    ],
)
def test_what_training_did_not_show_is_refused(augment: dict[str, Any], table: LabelTable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        member(table=table, settings=rotating(**augment))


def test_what_training_showed_is_taken() -> None:
    spec = member().card.network
    for augment, table in (({}, ORGANS), ({"flip_axes": ["LR"]}, ALONE), ({"flip_axes": ["AP"]}, ORGANS)):
        settings = Settings.model_validate(rotating(**augment))
        assert augmentation_problems(plan(table), spec, settings, settings.infer) == []
    both = Settings.model_validate({"infer": {"mirror": True, "rotate": True}, "augment": {"flip_axes": []}})
    problems = augmentation_problems(plan(ALONE), spec, both, both.infer)
    assert [problem.split(":")[0] for problem in problems] == ["infer.mirror", "infer.rotate"]
    across = plan(spacing_mm=(5.0, 1.0, 1.0), slice_axis=0)  # left and right lie across the plane
    settings = Settings.model_validate(rotating(flip_axes=["LR"]))
    assert augmentation_problems(across, spec, settings, settings.infer) == []
    assert mirror_axes(across, 3, settings) == (0,)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_that_rotates_predicts_a_rotated_image_alike(dims: int) -> None:
    # Windows of a square volume that fits into one: rotated input, rotated logits.
    turning = member(dims, table=ALONE, settings=rotating(), spacing_mm=(1.0, 1.0, 1.0), crop="none")
    plain = member(dims, table=ALONE, settings={"augment": TURNED}, spacing_mm=(1.0, 1.0, 1.0), crop="none")
    volume = torch.randn(1, 8, 8, 8 if dims == 3 else 3, generator=torch.Generator().manual_seed(0))
    turned = torch.rot90(volume, 1, (1, 2))
    found, other = (turning.inference.logits(one) for one in (volume, turned))
    torch.testing.assert_close(torch.rot90(found, 1, (1, 2)), other, atol=1e-4, rtol=1e-4)
    first, second = (plain.inference.logits(one) for one in (volume, turned))
    assert (torch.rot90(first, 1, (1, 2)) - second).abs().max() > 0.01
    mean = sum(torch.rot90(plain.inference.logits(torch.rot90(volume, n, (1, 2))), -n, (1, 2)) for n in range(4)) / 4
    torch.testing.assert_close(found, mean, atol=1e-4, rtol=1e-4)


def test_images_are_predicted_with_rotations_and_soft_outputs() -> None:
    predictor = Predictor([member(table=ALONE, settings=rotating(flip_axes=["AP"]))])
    soft = predictor.predict_soft(image(), ("liver",))
    np.testing.assert_array_equal(soft.label_map.array, predictor.predict(image()).array)
