"""Identities that the terms of the loss must keep."""

import pytest
import torch

from pipeline.train.terms import focal_cross_entropy, tversky_index


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
    ours = tversky_index(intersection, reference, predicted, smooth=1e-5)
    assert torch.equal(ours, (2 * intersection + 1e-5) / (reference + predicted + 1e-5))


def test_tversky_by_hand() -> None:
    ours = tversky_index(
        torch.tensor([[4.0]]), torch.tensor([[6.0]]), torch.tensor([[7.0]]), alpha=0.3, beta=0.7, smooth=1.0
    )
    # TP 4, FN 2, FP 3
    assert float(ours) == pytest.approx((2 * 4 + 1) / (2 * 4 + 2 * 0.3 * 3 + 2 * 0.7 * 2 + 1))


def test_an_organ_absent_from_both_is_right() -> None:
    empty = torch.zeros((2, 1))
    assert torch.equal(tversky_index(empty, empty, empty), torch.ones((2, 1)))
    assert torch.equal(tversky_index(empty, empty, empty, batch=True), torch.ones((1, 1)))
