"""Target spacing, patch and batch: by hand, and against what nnU-Net 2.8.1 plans (``nnunet_golden_plans.py``)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.preprocess.patch_rules import batch_size, coarsest_axis, plan_patch, target_spacing
from pipeline.preprocess.topology import feature_widths, topology

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nnunet_plans.json").read_text())


def test_target_spacing_is_the_median_per_axis() -> None:
    assert target_spacing([(1, 1, 2), (1, 1, 3), (2, 2, 2.5)], [(100, 100, 60)] * 3) == (1, 1, 2.5)


def test_a_much_coarser_axis_takes_its_10th_percentile() -> None:
    spacings = [(1.0, 1.0, float(z)) for z in range(4, 15)]  # 4 … 14: median 9, 10th percentile 5
    assert target_spacing(spacings, [(300, 300, 50)] * 11) == (1.0, 1.0, 5.0)
    # the same spacing with as many slices as a third of the other axes is left alone
    assert target_spacing(spacings, [(300, 300, 100)] * 11) == (1.0, 1.0, 9.0)


def test_the_exception_never_gets_finer_than_the_other_axes() -> None:
    spacings = [(2.0, 2.0, z) for z in (1.0, 7.0, 7.0, 7.0)]
    assert target_spacing(spacings, [(300, 300, 50)] * 4)[2] == pytest.approx(max(2.8, 2.0))


@pytest.mark.parametrize("case", GOLDEN, ids=[str(tuple(case["shapes"][0])) for case in GOLDEN])
def test_plans_are_those_of_nnunet(case: dict[str, Any]) -> None:
    spacings = [(x, y, z) for z, y, x in case["spacings"]]  # it reads z, y, x
    shapes = [(i, j, k) for k, j, i in case["shapes"]]
    target = target_spacing(spacings, shapes)
    resampled = [
        [round(n * mm / t) for n, mm, t in zip(*one, target, strict=True)] for one in zip(shapes, spacings, strict=True)
    ]
    median = np.median(resampled, axis=0).tolist()
    order = [2 - axis for axis in case["transpose_forward"]]  # and puts the coarsest axis first
    assert order[0] == coarsest_axis(target)
    for name in {"2d", "3d_fullres"} & case["configurations"].keys():
        wanted = case["configurations"][name]
        theirs = order[1:] if name == "2d" else order
        axes = sorted(theirs)
        mm = [target[axis] for axis in axes]
        patch = plan_patch([median[axis] for axis in axes], mm, case["labels"], case["memory_gb"])
        voxels = math.prod(median) * len(shapes)
        shape = topology(patch, mm)

        def turned(values: Sequence[Any], axes: Sequence[int] = axes, theirs: Sequence[int] = theirs) -> list[Any]:
            return [values[axes.index(axis)] for axis in theirs]

        assert turned(mm) == pytest.approx(wanted["spacing"], abs=2e-5)
        assert turned(patch) == wanted["patch_size"]
        assert batch_size(patch, mm, case["labels"], case["memory_gb"], voxels) == wanted["batch_size"]
        assert [turned(stride) for stride in shape.strides] == wanted["strides"]
        assert [turned(kernel) for kernel in shape.kernel_sizes] == wanted["kernel_sizes"]
        assert list(feature_widths(len(shape.strides), len(patch))) == wanted["features"]


def test_too_little_memory_ends_at_the_smallest_patch() -> None:
    assert plan_patch((200, 200, 100), (1, 1, 2), 2, 1e-9) == (1, 1, 1)
    assert plan_patch((20, 30), (1, 1), 2, 1e-9) == (1, 1)


def test_batch_is_at_least_2_and_at_most_a_20th_of_the_dataset() -> None:
    assert batch_size((40, 56, 40), (1, 1, 1), 3, 8, 208 * 36 * 50 * 35) == 7
    assert batch_size((40, 56, 40), (1, 1, 1), 3, 8, 10.0) == 2
    assert batch_size((128, 128, 128), (1, 1, 1), 2, 8, 1e12) == 2
