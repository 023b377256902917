"""Plans held against nnU-Net's, which count axes as z, y, x and put the coarsest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pipeline.preprocess.nnunet_rules import feature_widths, topology
from pipeline.preprocess.plan_file import Plan

SCHEMES = {("CTNormalization", False): "ct", ("ZScoreNormalization", False): "zscore"}
SCHEMES[("ZScoreNormalization", True)] = "zscore_nonzero"


def require_same_plan(plan: Plan, transpose_forward: Sequence[int], configurations: Mapping[str, Any]) -> None:
    """Assert that spacing, patch, batch, strides, kernels, features and normalization are those of nnU-Net.

    Args:
        plan: Ours, for 8 GB or whatever nnU-Net planned for.
        transpose_forward: nnU-Net's order of axes.
        configurations: Its configurations as ``nnunet_golden_plans.summary`` gives them.
    """
    order = [2 - axis for axis in transpose_forward]
    low = plan.low_resolution
    assert plan.slice_axis == order[0]
    assert (low is None) == ("3d_lowres" not in configurations)
    ours: list[tuple[str, Any, tuple[float, ...], list[int]]] = [
        ("3d_fullres", plan.patch_3d, plan.spacing_mm, order),
        ("2d", plan.patch_2d, plan.spacing_mm, order[1:]),
        *([] if low is None else [("3d_lowres", low, low.spacing_mm, order)]),
    ]
    for name, patch, spacing_mm, theirs in ours:
        wanted = configurations.get(name)
        if wanted is None:  # no 3D network for single slices
            continue
        axes = sorted(theirs)
        assert [spacing_mm[axis] for axis in theirs] == pytest.approx(wanted["spacing"], abs=2e-5)
        assert [patch.patch_size[axes.index(axis)] for axis in theirs] == wanted["patch_size"]
        assert patch.batch_size == wanted["batch_size"]
        shape = topology(patch.patch_size, [spacing_mm[axis] for axis in axes])
        for mine, key in ((shape.strides, "strides"), (shape.kernel_sizes, "kernel_sizes")):
            assert [[stage[axes.index(axis)] for axis in theirs] for stage in mine] == wanted[key]
        assert list(feature_widths(len(shape.strides), len(axes))) == wanted["features"]
        schemes = zip(wanted["normalization"], wanted["use_mask"], strict=True)
        assert [entry.scheme for entry in plan.normalization] == [SCHEMES[scheme] for scheme in schemes]
