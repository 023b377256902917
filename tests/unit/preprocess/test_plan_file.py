"""The whole plan from fingerprints, against what nnU-Net 2.8.1 plans (``nnunet_golden_plans.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunet_plans import require_same_plan

from pipeline.config.settings import PreprocessSettings
from pipeline.console.printing import plan_lines
from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint
from pipeline.preprocess.planning import plan_from_fingerprints

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nnunet_plans.json").read_text())


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
    plan = plan_from_fingerprints(dataset, prints, PreprocessSettings(), case["memory_gb"])
    require_same_plan(plan, case["transpose_forward"], case["configurations"])


def made_up(shape: tuple[int, int, int], cases: int = 20) -> tuple[Dataset, list[CaseFingerprint]]:
    prints = [
        CaseFingerprint(f"case_{n}", shape, shape, (1.0, 1.0, 1.0), np.ones((1, 1), np.float32), (1, 1))
        for n in range(cases)
    ]
    files = tuple(CaseFiles(found.id, (Path("image.nii.gz"),), Path("label.nii.gz")) for found in prints)
    return Dataset("made up", Path(), "pairs", ("MR",), LabelTable({1: "organ"}), files), prints


def test_the_low_resolution_can_be_prepared_instead() -> None:
    dataset, prints = made_up((400, 400, 400))
    full = plan_from_fingerprints(dataset, prints, PreprocessSettings(), 8.0)
    low = plan_from_fingerprints(dataset, prints, PreprocessSettings(resolution="low"), 8.0)
    assert full.low_resolution is not None
    assert low.low_resolution is None
    assert (low.spacing_mm, low.median_shape) == (full.low_resolution.spacing_mm, full.low_resolution.median_shape)
    assert low.patch_3d.patch_size == full.low_resolution.patch_size == (128, 128, 128)
    assert low.patch_3d.batch_size == full.low_resolution.batch_size == 2
    # 3 % at a time until 128^3 voxels are a quarter of the case: 400 / 1.03^n <= 128 * 4^(1/3) from n = 23 on
    assert low.spacing_mm == pytest.approx((1.03**23,) * 3)
    assert np.prod(low.patch_3d.patch_size) / (400 / 1.03**23) ** 3 >= 0.25 > 128**3 / (400 / 1.03**22) ** 3
    assert full.content_hash != low.content_hash


def test_a_cascade_keeps_both_resolutions() -> None:
    dataset, prints = made_up((400, 400, 400))
    full, low, both = (
        plan_from_fingerprints(dataset, prints, PreprocessSettings(resolution=resolution), 8.0)
        for resolution in ("full", "low", "cascade")
    )
    reason = both.reasons["cascade"]
    assert reason.startswith("As set")
    assert both == full.model_copy(update={"cascade": True, "reasons": {**full.reasons, "cascade": reason}})
    first = both.first_stage()
    assert first.content_hash == low.content_hash
    assert first.patch_3d == low.patch_3d


def test_the_low_resolution_of_a_small_dataset_is_refused() -> None:
    dataset, prints = made_up((60, 60, 60))
    assert plan_from_fingerprints(dataset, prints, PreprocessSettings(), 8.0).low_resolution is None
    with pytest.raises(VolsegError, match=r"preprocess\.resolution: expected full, .* got low"):
        plan_from_fingerprints(dataset, prints, PreprocessSettings(resolution="low"), 8.0)


def test_a_plan_in_lines() -> None:
    dataset, prints = made_up((1300, 1200, 400))
    lines = plan_lines(plan_from_fingerprints(dataset, prints, PreprocessSettings(), 8.0))
    assert lines[0] == "spacing 1 x 1 x 1 mm, normalization zscore"
    assert lines[1] == "3D patch 192 x 192 x 64, batch 2"  # in the proportions of the median case
    assert lines[2].startswith("2D patch ")
    assert "e+" not in lines[2]
    assert lines[3].startswith("low resolution for more context: ")
