"""Pooling, kernels, widths and feature maps, with values worked out by hand."""

from __future__ import annotations

import importlib

import pytest

from pipeline.preprocess.nnunet_rules import (
    batch_size,
    feature_map_values,
    feature_widths,
    plan_patch,
    topology,
)


def test_isotropic_patch_is_pooled_while_8_voxels_are_left() -> None:
    shape = topology((64, 64, 64), (1, 1, 1))
    assert shape.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert shape.kernel_sizes == ((3, 3, 3),) * 5
    assert shape.divisor == (16, 16, 16)


def test_coarse_axis_is_pooled_later_and_gets_flat_kernels() -> None:
    shape = topology((128, 128, 16), (1, 1, 5))
    # spacing 1 → 2 → 4 in plane; the slice axis joins when the in-plane spacing is above 2.5
    assert shape.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1))
    assert shape.kernel_sizes == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert topology((128, 128, 16), (1, 1, 5), max_stages=3).strides == shape.strides[:3]


def test_a_single_axis_needs_12_voxels() -> None:
    assert topology((12, 4), (1, 1)).strides == ((1, 1), (2, 1))
    assert topology((11, 4), (1, 1)).strides == ((1, 1),)
    assert topology((7, 7), (1, 1)).kernel_sizes == ((3, 3),)


def test_widths_double_up_to_a_limit() -> None:
    assert feature_widths(6, 3) == (32, 64, 128, 256, 320, 320)
    assert feature_widths(6, 2) == (32, 64, 128, 256, 512, 512)


def test_feature_maps_by_hand() -> None:
    # 8 x 4: 2 convolutions of 32; 4 x 2: 2 of 64; back: 1 transposed and 2 convolutions of 32, 3 logits
    assert feature_map_values((8, 4), ((1, 1), (2, 2)), 3) == 32 * 64 + 8 * 128 + 32 * 96 + 32 * 3


def test_feature_maps_are_those_of_the_network() -> None:
    network = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    building = importlib.import_module("torch.nn")
    shape = topology((96, 160, 128), (2.5, 1, 1))
    reference = network.PlainConvUNet(
        1, len(shape.strides), feature_widths(len(shape.strides), 3), building.Conv3d, shape.kernel_sizes,
        shape.strides, 2, 5, 2,
    )  # fmt: skip
    assert feature_map_values((96, 160, 128), shape.strides, 5) == reference.compute_conv_feature_map_size(
        (96, 160, 128)
    )


# Patch and batch by hand; ``test_plan_file.py`` holds whole plans against nnU-Net's.


def test_too_little_memory_ends_at_the_smallest_patch() -> None:
    assert plan_patch((200, 200, 100), (1, 1, 2), 2, 1e-9) == (1, 1, 1)
    assert plan_patch((20, 30), (1, 1), 2, 1e-9) == (1, 1)


def test_batch_is_at_least_2_and_at_most_a_20th_of_the_dataset() -> None:
    assert batch_size((40, 56, 40), (1, 1, 1), 3, 8, 208 * 36 * 50 * 35) == 7
    assert batch_size((40, 56, 40), (1, 1, 1), 3, 8, 10.0) == 2
    assert batch_size((128, 128, 128), (1, 1, 1), 2, 8, 1e12) == 2
