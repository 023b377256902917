"""The whole plan from fingerprints, against what nnU-Net 2.8.1 plans (``nnunet_golden_plans.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import PreprocessSettings
from pipeline.core.labels import LabelTable
from pipeline.data.layouts import CaseFiles, Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint
from pipeline.preprocess.planning import make_plan
from pipeline.preprocess.topology import feature_widths, topology

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nnunet_plans.json").read_text())
SCHEMES = {("CTNormalization", False): "ct", ("ZScoreNormalization", False): "zscore"}
SCHEMES[("ZScoreNormalization", True)] = "zscore_nonzero"


def fingerprint(number: int, case: dict[str, Any]) -> CaseFingerprint:
    k, j, i = case["shapes"][number]
    z, y, x = case["spacings"][number]
    whole = (round(i / case["kept"]), j, k)
    intensities = np.zeros((len(case["channels"]), 10), np.float32)
    return CaseFingerprint(f"case_{number}", whole, (i, j, k), (x, y, z), intensities, (1,) * case["labels"])


@pytest.mark.parametrize("case", GOLDEN, ids=[str(tuple(case["shapes"][0])) for case in GOLDEN])
def test_plans_are_those_of_nnunet(case: dict[str, Any]) -> None:
    prints = [fingerprint(number, case) for number in range(len(case["shapes"]))]
    labels = LabelTable({n: f"organ {n}" for n in range(1, case["labels"])})
    files = tuple(CaseFiles(found.id, (Path("image.nii.gz"),), Path("label.nii.gz")) for found in prints)
    dataset = Dataset("made up", Path(), "pairs", tuple(case["channels"]), labels, files)
    plan = make_plan(dataset, prints, PreprocessSettings(), case["memory_gb"])
    order = [2 - axis for axis in case["transpose_forward"]]  # it reads z, y, x and puts the coarsest axis first
    assert plan.slice_axis == order[0]
    for name, patch, theirs in (("3d_fullres", plan.patch_3d, order), ("2d", plan.patch_2d, order[1:])):
        wanted = case["configurations"].get(name)
        if wanted is None:
            continue
        axes = sorted(theirs)
        assert [plan.spacing_mm[axis] for axis in theirs] == pytest.approx(wanted["spacing"], abs=2e-5)
        assert [patch.patch_size[axes.index(axis)] for axis in theirs] == wanted["patch_size"]
        assert patch.batch_size == wanted["batch_size"]
        shape = topology(patch.patch_size, [plan.spacing_mm[axis] for axis in axes])
        for mine, key in ((shape.strides, "strides"), (shape.kernel_sizes, "kernel_sizes")):
            assert [[stage[axes.index(axis)] for axis in theirs] for stage in mine] == wanted[key]
        assert list(feature_widths(len(shape.strides), len(axes))) == wanted["features"]
        schemes = zip(wanted["normalization"], wanted["use_mask"], strict=True)
        assert [entry.scheme for entry in plan.normalization] == [SCHEMES[scheme] for scheme in schemes]
