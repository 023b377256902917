"""The loss against values worked out by hand, for organs and for regions."""

import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from members import plan_of
from monai.data import MetaTensor
from torch import Tensor

from pipeline.config.settings import LossSettings, SampleSettings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.store import PreparedCase, open_prepared, write_prepared
from pipeline.model.spec import build_network
from pipeline.preprocess.plan_file import LowResolution, Plan
from pipeline.train.loss import (
    SegmentationLoss,
    balanced_weights,
    border_weights,
    class_voxel_counts,
    class_weights,
    focal_cross_entropy,
    head_weights,
    planned_loss,
    require_class_weights,
    sampling_weights,
    supervised_loss,
    tversky_index,
)

DICE = LossSettings(ce_weight=0.0)
CE = LossSettings(dice_weight=0.0)


def two_voxels() -> tuple[Tensor, Tensor]:
    """Two voxels, two classes; foreground probabilities 0.8 and 0.3; labels 1 and 0."""
    p = torch.tensor([0.8, 0.3])
    logits = torch.stack([torch.log(1 - p), torch.log(p)])[None, :, :, None, None]
    return logits, torch.tensor([1, 0])[None, :, None, None]


def two_regions() -> tuple[Tensor, Tensor]:
    """Two voxels of classes 2 and 1; probabilities 0.9 and 0.2 of the outer region, 0.6 and 0.3 of the inner one."""
    p = torch.tensor([[0.9, 0.2], [0.6, 0.3]])
    return torch.logit(p)[None, :, :, None], torch.tensor([2, 1])[None, :, None]


NESTED = ((1, 2), (2,))


def test_cross_entropy_is_the_mean_negative_log_probability() -> None:
    logits, labels = two_voxels()
    assert float(supervised_loss(logits, labels, CE)) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2, abs=1e-6)


def test_soft_dice_of_the_foreground() -> None:
    logits, labels = two_voxels()
    # 2 * 0.8 / (1 + 0.8 + 0.3)
    assert float(supervised_loss(logits, labels, DICE)) == pytest.approx(1 - 1.6 / 2.1, abs=1e-4)


def test_tversky_weighs_what_is_missed_and_what_is_too_much() -> None:
    logits, labels = two_voxels()
    settings = LossSettings(ce_weight=0.0, tversky_alpha=0.3, tversky_beta=0.7, smooth=0.0)
    # TP 0.8, FP 0.3, FN 0.2
    expected = 1 - 0.8 / (0.8 + 0.3 * 0.3 + 0.7 * 0.2)
    assert float(supervised_loss(logits, labels, settings)) == pytest.approx(expected, abs=1e-6)


def test_class_weights_make_a_weighted_mean() -> None:
    logits, labels = two_voxels()
    loss = supervised_loss(logits, labels, CE, class_weights=torch.tensor([1.0, 3.0]))
    assert float(loss) == pytest.approx(-(3 * math.log(0.8) + math.log(0.7)) / 4, abs=1e-6)


def test_focal_loss_plays_easy_voxels_down() -> None:
    logits, labels = two_voxels()
    loss = supervised_loss(logits, labels, LossSettings(dice_weight=0.0, focal_gamma=2.0))
    assert float(loss) == pytest.approx(-(0.2**2 * math.log(0.8) + 0.3**2 * math.log(0.7)) / 2, abs=1e-6)


def test_ignored_voxels_count_in_neither_term() -> None:
    logits, labels = two_voxels()
    labels[0, 1] = -1
    expected = -math.log(0.8) + 1 - 1.6 / 1.8
    assert float(supervised_loss(logits, labels, LossSettings())) == pytest.approx(expected, abs=1e-4)


def test_batch_dice_pools_the_patches() -> None:
    logits, labels = two_voxels()
    other = torch.zeros_like(logits)  # probability 0.5 everywhere
    batch, target = torch.cat([logits, other]), torch.cat([labels, torch.zeros_like(labels)])
    pooled = float(supervised_loss(batch, target, LossSettings(ce_weight=0.0, batch_dice=True)))
    assert pooled == pytest.approx(1 - 1.6 / (1 + 1.1 + 1.0), abs=1e-4)
    separate = float(supervised_loss(batch, target, DICE))
    assert separate == pytest.approx(((1 - 1.6 / 2.1) + 1.0) / 2, abs=1e-4)


def test_regions_have_a_binary_cross_entropy_each() -> None:
    logits, labels = two_regions()
    outer, inner = -math.log(0.9) - math.log(0.2), -math.log(0.6) - math.log(0.7)
    assert float(supervised_loss(logits, labels, CE, regions=NESTED)) == pytest.approx((outer + inner) / 4, abs=1e-6)
    weighted = supervised_loss(logits, labels, CE, regions=NESTED, class_weights=torch.tensor([1.0, 3.0]))
    assert float(weighted) == pytest.approx((outer + 3 * inner) / 8, abs=1e-6)


def test_the_recipe_for_disc_and_cup() -> None:
    logits, labels = two_regions()
    settings = LossSettings(ce_weight=0.5, dice_weight=0.5, smooth=1.0)
    bce = -(math.log(0.9) + math.log(0.2) + math.log(0.6) + math.log(0.7)) / 4
    dice = ((2 * 1.1 + 1) / (2 + 1.1 + 1) + (2 * 0.6 + 1) / (1 + 0.9 + 1)) / 2
    loss = supervised_loss(logits, labels, settings, regions=NESTED)
    assert float(loss) == pytest.approx(0.5 * bce + 0.5 * (1 - dice), abs=1e-6)


def test_regions_leave_out_ignored_voxels_and_classes_of_no_region() -> None:
    logits, labels = two_regions()
    labels[0, 0] = -1
    labels[0, 1] = 7
    loss = supervised_loss(logits, labels, CE, regions=NESTED)
    assert float(loss) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2, abs=1e-6)


@pytest.mark.parametrize("regions", [(), NESTED])
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_a_patch_without_any_annotation_has_no_loss_and_no_gradient(
    regions: tuple[tuple[int, ...], ...], smooth: float
) -> None:
    logits, labels = two_regions()
    logits = logits.clone().requires_grad_()
    settings = LossSettings(smooth=smooth, focal_gamma=0.5, border_weight=10.0)
    weights = torch.tensor([0.5, 2.0])
    loss = supervised_loss(logits, torch.full_like(labels, -1), settings, regions=regions, class_weights=weights)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == 0.0


@pytest.mark.parametrize("regions", [(), ((1,), (2,))])
@pytest.mark.parametrize("sign", [-1, 1])
def test_certain_half_precision_logits_have_a_finite_loss_and_gradient(
    regions: tuple[tuple[int, ...], ...], sign: int
) -> None:
    logits = torch.full((1, 2, 16, 16), 60000.0 * sign, dtype=torch.float16)
    logits[:, 1] = -60000.0 * sign
    logits.requires_grad_()
    settings = LossSettings(focal_gamma=0.5, smooth=0.0)
    loss = supervised_loss(logits, torch.ones((1, 16, 16), dtype=torch.int64), settings, regions=regions)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_head_weights_sum_to_one() -> None:
    assert head_weights(3) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert head_weights(4, "equal") == (0.25, 0.25, 0.25, 0.25)
    assert head_weights(4, "nnunet") == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0.0))
    assert (head_weights(2, "nnunet"), head_weights(1, "nnunet")) == ((1.0, 0.0), (1.0,))


def test_networks_with_a_head_more_are_weighed_like_those_without() -> None:
    counts = {}
    for name in ("unet", "nnunet_plain"):
        network = build_network(name, 2, 1, 2, features=(4, 8, 16, 16), deep_supervision=True)
        counts[name] = len(network.train()(torch.zeros(1, 1, 16, 16)))
    assert counts == {"unet": 2, "nnunet_plain": 3}
    assert (*head_weights(2), 0.0) == head_weights(3, "nnunet")


def test_heads_are_compared_with_labels_at_their_resolution() -> None:
    labels = torch.zeros((1, 4, 4), dtype=torch.int64)
    labels[:, 1::2, 1::2] = 1  # of two voxels that a coarse one stands for, the one behind its centre: "nearest-exact"
    fine, coarse = torch.zeros((1, 2, 4, 4)), torch.zeros((1, 2, 2, 2))
    coarse[:, 1] = 20.0
    heads = {"level0": fine, "level1": coarse}
    assert float(supervised_loss(heads, labels, CE)) == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    equal = LossSettings(dice_weight=0.0, head_weights="equal")
    assert float(supervised_loss(heads, labels, equal)) == pytest.approx(math.log(2) / 2, abs=1e-6)
    first = LossSettings(dice_weight=0.0, head_weights="nnunet")
    assert float(supervised_loss(heads, labels, first)) == pytest.approx(math.log(2), abs=1e-6)


def test_labels_of_coarse_heads_are_those_in_the_middle() -> None:
    labels = torch.arange(9).reshape(1, 1, 9)
    for size, expected in ((3, [1, 4, 7]), (4, [1, 3, 5, 7]), (1, [4])):  # at 1.5, 4.5, 7.5, and so on, rounded down
        logits = torch.full((1, 9, 1, size), -50.0).scatter(1, torch.tensor(expected)[None, None, None], 50.0)
        assert float(supervised_loss({"coarse": logits}, labels, CE)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,))])
def test_the_border_between_two_objects_weighs_more(regions: tuple[tuple[int, ...], ...]) -> None:
    labels = torch.tensor([[[1, 0, 1]]])  # two objects with a gap of one voxel, d1 + d2 = 2 at each of the three
    logits = torch.zeros((1, 2, 1, 3))
    logits[:, :, 0, 1] = torch.tensor([2.0, -1.0])
    plain = supervised_loss(logits, labels, CE, regions=regions)
    weighted = LossSettings(dice_weight=0.0, border_weight=10.0, border_sigma_voxels=1.0)
    assert float(supervised_loss(logits, labels, weighted, regions=regions)) == pytest.approx(float(plain), abs=1e-6)
    # with a fourth voxel, at distance 1 and 3, weights are 1 + 10·exp(-2) three times and 1 + 10·exp(-8) once
    labels, logits = torch.cat([labels, labels[..., 1:2]], 2), torch.cat([logits, 0 * logits[..., :1] + 3], 3)
    each = torch.stack(
        [supervised_loss(logits[..., n : n + 1], labels[..., n : n + 1], CE, regions=regions) for n in range(4)]
    )
    weights = torch.tensor([1 + 10 * math.exp(-2)] * 3 + [1 + 10 * math.exp(-8)])
    expected = float((weights * each).sum() / weights.sum())
    assert float(supervised_loss(logits, labels, weighted, regions=regions)) == pytest.approx(expected, rel=1e-6)


def test_border_weights_that_are_known_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.zeros((1, 2, 6), dtype=torch.int64)
    labels[:, :, :2], labels[:, :, 4:] = 1, 1
    logits, settings = (
        torch.randn(1, 2, 2, 6, generator=torch.Generator().manual_seed(0)),
        LossSettings(border_weight=9),
    )
    expected, border = supervised_loss(logits, labels, settings), border_weights(labels, settings)
    monkeypatch.setattr(import_module("pipeline.train.loss"), "border_map", None)
    assert torch.equal(supervised_loss(logits, labels, settings, border=border), expected)
    assert border_weights(labels, LossSettings()) is None
    assert border_weights(labels, LossSettings(border_weight=9, ce_weight=0)) is None


def test_coarse_heads_take_the_border_weights_at_their_places() -> None:
    labels = torch.zeros((1, 2, 6), dtype=torch.int64)
    labels[:, :, :2], labels[:, :, 4:] = 1, 1
    coarse = torch.tensor([0.0, 5.0, 0.0]).expand(1, 2, 1, 3) * torch.tensor([-1.0, 1.0])[None, :, None, None]
    settings = LossSettings(dice_weight=0.0, border_weight=10.0, border_sigma_voxels=2.0)
    # columns 1, 3, 5: d1 + d2 = 0 + 3, 2 + 1, 0 + 4
    weights = [1 + 10 * math.exp(-(d**2) / 8) for d in (3, 3, 4)]
    losses = [math.log(2), 10 + math.log1p(math.exp(-10)), math.log(2)]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert float(supervised_loss({"coarse": coarse}, labels, settings)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_gradient_equals_a_one_hot_reference(order: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (2, 3, 4, 5), generator=generator)
    logits = torch.randn((2, 3, 3, 4, 5), generator=generator, dtype=torch.float32)
    logits = logits.contiguous(memory_format=order).requires_grad_()
    (ours,) = torch.autograd.grad(supervised_loss(logits, labels, LossSettings()), logits)
    assert ours.stride() == logits.stride()  # convolutions behind it would copy another memory order
    valid = (labels >= 0)[:, None]
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), 3).movedim(-1, 1) * valid
    p = logits.softmax(1) * valid
    dims = (2, 3, 4)
    dice = (2 * (p * hot).sum(dims) + 1e-5) / (p.sum(dims) + hot.sum(dims) + 1e-5)
    reference = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1) + 1 - dice[:, 1:].mean()
    (theirs,) = torch.autograd.grad(reference, logits)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_of_all_classes_one_tensor_is_kept(order: torch.memory_format) -> None:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    logits = torch.randn(2, 50, 4, 6, 8).contiguous(memory_format=order).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        supervised_loss(logits, torch.randint(0, 50, (2, 4, 6, 8)), LossSettings())
    # Beside the probabilities a few numbers per voxel: class index (8 bytes), annotated, shared, log-probability.
    assert logits.nbytes <= sum(kept.values()) <= logits.nbytes * (1 + 10 / 50)


def test_the_gradient_for_regions_equals_pytorchs_binary_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    logits = torch.randn((2, 2, 4, 5), generator=generator).requires_grad_()
    hot = torch.stack([labels > 0, labels == 2], dim=1).float()
    p = logits.sigmoid()
    dice = (2 * (p * hot).sum((0, 2, 3)) + 1) / ((p + hot).sum((0, 2, 3)) + 1)
    reference = torch.nn.functional.binary_cross_entropy_with_logits(logits, hot) + 1 - dice.mean()
    ours = supervised_loss(logits, labels, LossSettings(batch_dice=True, smooth=1.0), regions=NESTED)
    assert float(ours.detach()) == pytest.approx(float(reference.detach()), abs=1e-6)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, reference)]
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,), (3,))])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dice_weight": 0.0, "border_weight": 10.0, "border_sigma_voxels": 2.0},
        {"tversky_alpha": 0.3, "tversky_beta": 0.7, "focal_gamma": 2.0},
        {"ce_weight": 0.5, "dice_weight": 0.5, "smooth": 1.0, "batch_dice": True},
    ],
)
def test_free_logits_learn_the_labels(regions: tuple[tuple[int, ...], ...], settings: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 4, (2, 6, 7), generator=generator)
    logits = torch.zeros((2, 3 if regions else 4, 6, 7), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    weights = torch.tensor([0.5, 1.0, 2.0, 1.5])[: logits.shape[1]]
    chosen, losses = LossSettings.model_validate(settings), []
    for _ in range(60):
        loss = supervised_loss(logits, labels, chosen, regions=regions, class_weights=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    truth = [[int(c) in region for region in regions] if regions else int(c) for c in labels[labels >= 0]]
    found = logits.detach().movedim(1, -1)[labels >= 0]
    assert (found > 0 if regions else found.argmax(1)).tolist() == truth


# Identities that the terms of the loss must keep.


def test_focal_with_gamma_zero_is_the_cross_entropy() -> None:
    log_p = -torch.rand((2, 3, 5), generator=torch.Generator().manual_seed(0))
    weights = torch.ones_like(log_p)
    assert torch.equal(focal_cross_entropy(log_p, weights, 0.0), -log_p.mean())
    # and the limit of small gamma is approached smoothly
    assert float(focal_cross_entropy(log_p, weights, 1e-6)) == pytest.approx(float(-log_p.mean()), rel=1e-4)


def test_a_certain_voxel_has_no_focal_loss_and_a_finite_slope() -> None:
    log_p = torch.zeros((1, 1, 4), requires_grad=True)
    loss = focal_cross_entropy(log_p, torch.ones((1, 1, 4)), 0.5)
    loss.backward()
    assert loss.item() == 0.0
    assert log_p.grad is not None
    assert bool(torch.isfinite(log_p.grad).all())


def test_tversky_with_one_half_is_the_soft_dice_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    intersection, more, missed = torch.rand((3, 4, 2), generator=generator) * 1000
    reference, predicted = intersection + missed, intersection + more
    ours = tversky_index((intersection, reference, predicted), smooth=1e-5)
    assert torch.equal(ours, (2 * intersection + 1e-5) / (reference + predicted + 1e-5))


def test_tversky_by_hand() -> None:
    volumes = torch.tensor([[4.0]]), torch.tensor([[6.0]]), torch.tensor([[7.0]])
    ours = tversky_index(volumes, alpha=0.3, beta=0.7, smooth=1.0)
    # TP 4, FN 2, FP 3
    assert float(ours) == pytest.approx((2 * 4 + 1) / (2 * 4 + 2 * 0.3 * 3 + 2 * 0.7 * 2 + 1))


def test_an_organ_absent_from_both_is_right() -> None:
    empty = torch.zeros((2, 1))
    assert torch.equal(tversky_index((empty, empty, empty)), torch.ones((2, 1)))
    assert torch.equal(tversky_index((empty, empty, empty), batch=True), torch.ones((1, 1)))


def test_the_loss_of_a_plan_is_that_of_a_training() -> None:
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(-1, 3, (2, 4, 4, 4))
    expected = float(supervised_loss(logits, labels, LossSettings()))
    loss = SegmentationLoss(plan_of(3))
    assert float(loss(logits, labels)) == expected
    assert float(loss(MetaTensor(logits), MetaTensor(labels[:, None]))) == expected  # as MONAI's loaders give them
    heads = {"head0": logits, "head1": logits[:, :, ::2, ::2, ::2]}
    assert float(loss(heads, labels)) == float(supervised_loss(heads, labels, LossSettings()))


def test_the_loss_of_a_plan_leaves_the_margin_of_valid_networks_out() -> None:
    logits, labels = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 8, 6, 4))
    expected = supervised_loss(logits, labels[:, 2:6, 1:5], LossSettings())
    assert torch.equal(SegmentationLoss(plan_of(3))(logits, labels), expected)


def test_class_weights_of_a_plan_and_those_that_cannot_be() -> None:
    logits, labels = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 4, 4, 4))
    settings = LossSettings(class_weights=(1.0, 2.0, 5.0))
    expected = supervised_loss(logits, labels, settings, class_weights=torch.tensor([1.0, 2.0, 5.0]))
    assert torch.equal(SegmentationLoss(plan_of(3), settings)(logits, labels), expected)
    with pytest.raises(ConfigError, match=r"loss\.class_weights: expected numbers, plan or none .*, got balanced"):
        SegmentationLoss(plan_of(3), LossSettings(class_weights="balanced"))


# Class weights by hand, from lists and from label maps in memory and on disk.

BALANCED = LossSettings(class_weights="balanced")
PLANNED = LossSettings(class_weights="plan")


def plan(table: LabelTable, weights: dict[str, float] | None) -> Plan:
    return Plan.model_validate(
        {
            **{"dataset": "toy", "channels": ["CT"], "labels": table.to_json(), "orientation": "RAS", "crop": "none"},
            **{"spacing_mm": [1, 1, 1], "image_order": 3, "store_dtype": "float32"},
            **{"normalization": [{"scheme": "none"}]},
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
    assert planned_loss(PLANNED, proposed, 3).class_weights == (1.0, 1.0, 7.0, 2.5)
    assert planned_loss(BALANCED, proposed, 3) is BALANCED
    assert sampling_weights(SampleSettings(class_weights="plan"), proposed) == {2: 7.0, 3: 2.5}
    assert sampling_weights(SampleSettings(), proposed) is None


@pytest.mark.parametrize(("dims", "low", "expected"), [(2, False, True), (3, False, False), (3, True, True)])
def test_a_batch_dice_follows_from_the_plan_as_nnunet_plans_it(dims: int, low: bool, expected: bool) -> None:
    """nnunetv2 2.8.1: 2d true; 3d_fullres true where there is a 3d_lowres, which itself has false as a lone one has."""
    coarse = LowResolution(spacing_mm=(2, 2, 2), median_shape=(50, 50, 50), patch_size=(32, 32, 32), batch_size=2)
    planned = plan(LabelTable({1: "liver"}), None).model_copy(update={"low_resolution": coarse if low else None})
    assert planned_loss(LossSettings(batch_dice="auto"), planned, dims).batch_dice is expected
    for given in (True, False):
        assert planned_loss(LossSettings(batch_dice=given), planned, dims).batch_dice is given
    # A loop of one's own sees by the logits how many axes there are.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, *(8,) * dims), generator=generator)
    labels = torch.randint(0, 2, (2, *(8,) * dims), generator=generator)
    labels[0] = 0
    loss = SegmentationLoss(planned, LossSettings(batch_dice="auto"))(logits, labels)
    assert torch.equal(loss, supervised_loss(logits, labels, LossSettings(batch_dice=expected)))
    assert not torch.equal(loss, supervised_loss(logits, labels, LossSettings(batch_dice=not expected)))
    with pytest.raises(ValueError, match=r"batch_dice: expected true or false, got 'auto'. Call planned_loss first"):
        supervised_loss(logits, labels, LossSettings(batch_dice="auto"))


def test_a_region_weighs_what_its_lightest_organ_does() -> None:
    nested = LabelTable(
        {1: "edema", 2: "core", 3: "enhancing"}, None, {"whole": (1, 2, 3), "inner": (2, 3), "tip": (3,)}
    )
    proposed = plan(nested, {"enhancing": 6.0, "core": 2.0})
    assert planned_loss(PLANNED, proposed, 3).class_weights == (1.0, 2.0, 6.0)
    assert sampling_weights(SampleSettings(class_weights="plan"), proposed) == {2: 2.0, 3: 6.0}


def test_a_plan_without_a_proposal_weighs_all_the_same() -> None:
    balanced = plan(LabelTable({1: "liver"}), None)
    assert planned_loss(PLANNED, balanced, 3).class_weights == "none"
    assert sampling_weights(SampleSettings(class_weights="plan"), balanced) is None
    with pytest.raises(ValueError, match=r"class_weights: expected numbers, got 'plan'. Call planned_loss first"):
        class_weights(PLANNED, 2, [])


def test_shapes_that_do_not_fit_and_heads_in_a_list() -> None:
    logits, labels = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 4, 4, 4))
    loss = SegmentationLoss(plan_of(3))
    assert torch.equal(loss([logits], labels), loss(logits, labels))
    for wrong in (logits[:, :2], torch.randn(1, 3, 8, 4, 4), logits[..., 0]):
        with pytest.raises(VolsegError, match=r"loss: expected logits \(B, 3, \*S\) and labels"):
            loss(wrong, labels)
