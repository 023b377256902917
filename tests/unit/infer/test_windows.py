from __future__ import annotations

import numpy as np
import pytest
import torch
from members import logits_of, member
from monai.data.utils import compute_importance_map
from scipy.ndimage import gaussian_filter
from torch import nn

from pipeline.config.settings import Settings
from pipeline.infer.trained_model import SliceNetwork, TrainedModel
from pipeline.infer.tta import Rotation
from pipeline.infer.windows import (
    MIN_IMPORTANCE,
    axis_overlaps,
    fitting_window,
    importance_map,
    nnunet_importance,
    tile_starts,
    window_starts,
)
from pipeline.model.folder import ModelCard
from pipeline.model.spec import NetworkSpec


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (20, 8, 0.5, [0, 4, 8, 12]),
        (21, 8, 0.5, [0, 3, 7, 10, 13]),  # 13 voxels in 4 steps of at most 4: 0, 3.25, 6.5, 9.75, 13
        (16, 8, 0.0, [0, 8]),
        (17, 8, 0.0, [0, 5, 9]),  # 4.5 rounds up
        (9, 8, 0.5, [0, 1]),
        (8, 8, 0.5, [0]),
        (3, 8, 0.5, [0]),
        (5, 1, 0.5, [0, 1, 2, 3, 4]),  # slices: the step is never below one voxel
        (30, 10, 0.9, list(range(21))),  # 10 * (1 - 0.9) is a rounding error below 1
    ],
)
def test_starts_are_evenly_spread(size, window, overlap, expected):
    assert window_starts(size, window, overlap) == expected


@pytest.mark.parametrize(
    ("size", "window", "expected"),
    [
        (20, 8, [0, 4, 8, 12]),
        (13, 8, [0, 2, 5]),  # 2.5 becomes the even number
        (25, 8, [0, 3, 7, 10, 14, 17]),  # 3.4, 6.8, 10.2, 13.6
        (23, 8, [0, 4, 8, 11, 15]),  # 3.75, 7.5, 11.25
    ],
)
def test_starts_round_halves_as_nnunet_does(size, window, expected):
    assert window_starts(size, window, 0.5, half_to_even=True) == expected


def test_nnunets_gaussian_lies_around_the_middle_voxel_and_is_cut_off():
    found = nnunet_importance((4, 1))
    # SD half a voxel, cut off two voxels from the middle.
    assert found[:, 0].tolist() == torch.tensor([10 * np.exp(-8), 10 * np.exp(-2), 10, 10 * np.exp(-2)]).half().tolist()


@pytest.mark.parametrize("window", [(12, 16), (8, 9, 20)])
def test_nnunets_gaussian_is_the_filtered_impulse_in_16_bits(window):
    impulse = np.zeros(window)
    impulse[tuple(n // 2 for n in window)] = 1
    wide = gaussian_filter(impulse, [n / 8 for n in window], mode="constant")
    expected = torch.from_numpy(wide * 10 / wide.max()).half()
    found = importance_map(window, "nnunet")
    assert torch.equal(found[expected > 0], expected[expected > 0].float())
    assert (found[expected == 0] == expected[expected > 0].min().float()).all()


@pytest.mark.parametrize(
    ("size", "tile", "step", "overlap", "expected"),
    [
        (512, 388, 16, 0.0, [0, 384]),  # the U-Net of 2015: tiles of 388 pixels lie 384 apart
        (800, 388, 16, 0.5, [0, 192, 384, 576]),  # half of 388 is 194; the last tile reaches beyond the axis
        (388, 388, 16, 0.5, [0]),
        (3, 4, 16, 0.0, [0]),  # a single tile may be smaller than the step
        (20, 16, 16, 0.9, [0, 16]),  # never less than a step apart
        (4, 1, 1, 0.5, [0, 1, 2, 3]),
        (30, 10, 1, 0.9, list(range(21))),  # 10 * (1 - 0.9) is a rounding error below 1
    ],
)
def test_tiles_start_at_multiples_of_the_step(size, tile, step, overlap, expected):
    assert tile_starts(size, tile, step, overlap) == expected


def test_tiles_that_leave_gaps_are_refused():
    with pytest.raises(ValueError, match=r"tile: expected at least 16 voxels, the network's step, got 4\. Enlarge the"):
        tile_starts(5, 4, 16)
    with pytest.raises(ValueError, match="tile: expected at least 1 voxel, got 0 on an axis of 5 by 1"):
        tile_starts(5, 0, 1)


@pytest.mark.parametrize("overlap", [1.0, -0.1, (0.5, 0.5), float("nan")])
def test_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ValueError, match=r"window overlap: expected a number in \[0, 1\) or 3 of them"):
        axis_overlaps(overlap, 3)


def test_empty_windows_and_axes_are_refused():
    with pytest.raises(ValueError, match="at least 1 voxel, got 0 on an axis of 5"):
        window_starts(5, 0, 0.5)
    with pytest.raises(ValueError, match="at least 1 voxel, got 4 on an axis of 0"):
        window_starts(0, 4, 0.5)


@pytest.mark.parametrize("window", [(16,), (7, 12), (96, 16, 1), (32, 24, 9)])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_importance_equals_that_of_monai(window, blend):
    expected = compute_importance_map(window, mode=blend, sigma_scale=0.125)
    weights = importance_map(window, blend)
    assert weights.dtype == torch.float32
    assert weights.shape == expected.shape
    np.testing.assert_allclose(weights.numpy(), expected.numpy(), rtol=1e-5)


def test_importance_is_gaussian_symmetric_and_never_zero():
    weights = importance_map((33, 33, 33)).double()
    assert weights[16, 16, 16] == 1.0
    assert weights[20, 16, 16].item() == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2), rel=1e-6)
    assert weights[0, 0, 0].item() == pytest.approx(MIN_IMPORTANCE)
    assert torch.equal(weights, weights.flip(0, 1, 2))


def test_unknown_blend_is_refused():
    with pytest.raises(ValueError, match="blend: expected one of gaussian, hann, constant, nnunet, got 'cosine'"):
        importance_map((4, 4), "cosine")


# Windows that suit a volume of about the size of the training patch.


def _legal(step):
    class Network(nn.Conv2d if len(step) == 2 else nn.Conv3d):
        def legal_size(self, size):
            return tuple(-(-n // one) * one for n, one in zip(size, step, strict=True))

    return Network(1, 2, 1)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((35, 51, 35), (40, 56, 40)),  # as the patch
        ((33, 47, 29), (40, 48, 32)),  # no padding that can be left out
        ((42, 57, 50), (48, 64, 40)),  # one window instead of two, up to a quarter more; 56 would be too long for 40
        ((51, 200, 9), (40, 56, 24)),  # the patch along long axes; not less than half of it along short ones
    ],
)
def test_windows_fit_volumes_of_about_the_size_of_the_patch(shape, expected):
    assert fitting_window(_legal((8, 8, 8)), (40, 56, 40), shape) == expected


def test_networks_without_rules_see_the_volume_as_it_is():
    assert fitting_window(nn.Identity(), (10, 10, 4), (9, 12, 5)) == (9, 12, 5)


def test_a_window_of_slices_stays_one_slice_thick():
    assert fitting_window(SliceNetwork(_legal((16, 16)), 2), (64, 64, 1), (50, 70, 30)) == (64, 80, 1)


def _inference(size, rotation=None, patch=(8, 8, 8)):
    plan, network = member().card.plan, _legal((2, 2, 2))
    spec = NetworkSpec(name="unet", dims=3, in_channels=1, out_channels=2, options={}, patch_size=patch)
    augment = {"rotate_degrees": 180.0, "flip_axes": []} if rotation else {}
    infer = {"window_size": size, "batch_size": 2, "rotate": rotation is not None}
    settings = Settings.model_validate({"infer": infer, "augment": augment, "train": {"precision": "fp32"}})
    card = ModelCard(network=spec, plan=plan, settings=settings, provenance={})
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    model = TrainedModel(card, [network.eval()], torch.device("cpu"))
    assert model.passes.rotation == rotation
    return model, seen, network


def test_fit_sees_the_volume_at_once_and_the_default_in_windows():
    image = torch.randn(1, 10, 9, 6, generator=torch.Generator().manual_seed(0))
    found = {}
    for size, expected in ((None, {(2, 1, 8, 8, 8)}), ("fit", {(1, 1, 10, 10, 6)})):
        model, seen, network = _inference(size)
        network.weight.data.fill_(2)
        network.bias.data.fill_(1)
        found[size] = logits_of(model, image)
        assert set(seen) == expected if size == "fit" else expected <= set(seen)
    torch.testing.assert_close(found["fit"], found[None])  # a network of single voxels has nothing to gain


def test_rotated_windows_stay_square():
    model, seen, _ = _inference("fit", Rotation((0, 1)))
    logits_of(model, torch.zeros(1, 10, 7, 6))
    assert {shape[2:] for shape in seen} == {(8, 8, 8)}
