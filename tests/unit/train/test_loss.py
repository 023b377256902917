"""Soft Dice and cross-entropy against values worked out by hand."""

import math

import pytest
import torch

from pipeline.config import TrainSettings
from pipeline.train.loss import dice_ce_loss, head_weights, supervised_loss

DICE = TrainSettings(ce_weight=0.0)
CE = TrainSettings(dice_weight=0.0)


def two_voxels() -> tuple[torch.Tensor, torch.Tensor]:
    """Two voxels, two classes; foreground probabilities 0.8 and 0.3; labels 1 and 0."""
    p = torch.tensor([0.8, 0.3])
    logits = torch.stack([torch.log(1 - p), torch.log(p)])[None, :, :, None, None]
    return logits, torch.tensor([1, 0])[None, :, None, None]


def test_cross_entropy_is_the_mean_negative_log_probability() -> None:
    logits, labels = two_voxels()
    assert float(dice_ce_loss(logits, labels, CE)) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2, abs=1e-6)


def test_soft_dice_of_the_foreground() -> None:
    logits, labels = two_voxels()
    # 2 * 0.8 / (1 + 0.8 + 0.3)
    assert float(dice_ce_loss(logits, labels, DICE)) == pytest.approx(1 - 1.6 / 2.1, abs=1e-4)


def test_ignored_voxels_count_in_neither_term() -> None:
    logits, labels = two_voxels()
    labels[0, 1] = -1
    both = TrainSettings()
    expected = -math.log(0.8) + 1 - 1.6 / 1.8
    assert float(dice_ce_loss(logits, labels, both)) == pytest.approx(expected, abs=1e-4)


def test_a_patch_without_any_annotation_has_no_loss_and_no_gradient() -> None:
    logits, labels = two_voxels()
    logits = logits.clone().requires_grad_()
    loss = dice_ce_loss(logits, torch.full_like(labels, -1), TrainSettings())
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == 0.0


def test_batch_dice_pools_the_patches() -> None:
    logits, labels = two_voxels()
    other = torch.zeros_like(logits)  # probability 0.5 everywhere
    batch, target = torch.cat([logits, other]), torch.cat([labels, torch.zeros_like(labels)])
    pooled = float(dice_ce_loss(batch, target, TrainSettings(ce_weight=0.0, batch_dice=True)))
    assert pooled == pytest.approx(1 - 1.6 / (1 + 1.1 + 1.0), abs=1e-4)
    separate = float(dice_ce_loss(batch, target, DICE))
    assert separate == pytest.approx(((1 - 1.6 / 2.1) + 1.0) / 2, abs=1e-4)


def test_half_precision_logits_do_not_overflow() -> None:
    logits = torch.full((1, 2, 64, 64, 64), 100.0, dtype=torch.float16)
    labels = torch.zeros((1, 64, 64, 64), dtype=torch.int64)
    assert math.isfinite(float(dice_ce_loss(logits, labels, TrainSettings())))


def test_head_weights_halve_and_sum_to_one() -> None:
    assert head_weights(3) == pytest.approx((4 / 7, 2 / 7, 1 / 7))


def test_heads_are_compared_with_labels_at_their_resolution() -> None:
    labels = torch.zeros((1, 4, 4), dtype=torch.int64)
    labels[:, ::2, ::2] = 1  # exactly the places a stride-2 head stands at
    fine, coarse = torch.zeros((1, 2, 4, 4)), torch.zeros((1, 2, 2, 2))
    coarse[:, 1] = 20.0
    loss = supervised_loss((fine, coarse), labels, CE)
    assert float(loss) == pytest.approx(2 / 3 * math.log(2), abs=1e-6)


def test_gradient_equals_a_one_hot_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (2, 3, 4, 5), generator=generator)
    logits = torch.randn((2, 3, 3, 4, 5), generator=generator, dtype=torch.float32).requires_grad_()
    (ours,) = torch.autograd.grad(dice_ce_loss(logits, labels, TrainSettings()), logits)
    valid = (labels >= 0)[:, None]
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), 3).movedim(-1, 1) * valid
    p = logits.softmax(1) * valid
    dims = (2, 3, 4)
    dice = (2 * (p * hot).sum(dims) + 1e-5) / (p.sum(dims) + hot.sum(dims) + 1e-5)
    reference = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1) + 1 - dice[:, 1:].mean()
    (theirs,) = torch.autograd.grad(reference, logits)
    assert torch.allclose(ours, theirs, atol=1e-6)
