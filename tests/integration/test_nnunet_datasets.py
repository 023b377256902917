"""Whole datasets against nnU-Net 2.8.1: fingerprint, plan and prepared arrays (``nnunet_golden_datasets.py``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anisotropic import write_coronal_mr, write_thick_ct
from nnunet_plans import require_same_plan

from pipeline.config.settings import PreprocessSettings
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import read_grid
from pipeline.phantom.torso import write_phantom
from pipeline.preprocess.fingerprint import CaseFingerprint, channel_statistics, fingerprint_case
from pipeline.preprocess.plan_file import Plan
from pipeline.preprocess.planning import plan_from_fingerprints
from pipeline.preprocess.prepare_case import run_transforms

GOLDEN = Path(__file__).parents[1] / "golden"
STRIDE = 97  # of the voxels kept


@pytest.fixture(scope="module", params=["thick_ct", "coronal_mr", "phantom", "hippocampus"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Dataset, list[CaseFingerprint], dict[str, Any], str]:
    """A dataset, our fingerprints of its cases, what nnU-Net made of it, and its name."""
    name = request.param
    if name == "hippocampus":
        folder = request.getfixturevalue("real_data") / "Task04_Hippocampus"
    else:
        folder = tmp_path_factory.mktemp(name)
        writers: dict[str, Callable[[Path], object]] = {"thick_ct": write_thick_ct, "coronal_mr": write_coronal_mr}
        writers["phantom"] = lambda there: write_phantom(there, cases=6, tests=0)
        writers[name](folder)
    dataset = open_dataset(folder)
    prints = [fingerprint_case(files, dataset.labels, "RAS", "nonzero") for files in dataset.cases]
    return dataset, prints, json.loads((GOLDEN / "nnunet_datasets.json").read_text())[name], name


def plan_of(dataset: Dataset, prints: list[CaseFingerprint]) -> Plan:
    return plan_from_fingerprints(dataset, prints, PreprocessSettings(), 8.0)


def test_fingerprints_agree(both: tuple[Dataset, list[CaseFingerprint], dict[str, Any], str]) -> None:
    _, prints, golden, _ = both
    theirs = golden["fingerprint"]
    assert [[*reversed(found.cropped_shape)] for found in prints] == theirs["shapes_after_crop"]
    spacings = [[*reversed(found.spacing_mm)] for found in prints]
    assert np.allclose(spacings, theirs["spacings"], atol=1e-6)
    kept = np.median([np.prod(found.cropped_shape) / np.prod(found.shape) for found in prints])
    assert kept == pytest.approx(theirs["median_relative_size_after_cropping"], abs=1e-9)
    # Both tools look at randomly chosen foreground voxels, so these agree as well as samples do.
    for channel, statistics in enumerate(channel_statistics(prints)):
        wanted = theirs["foreground_intensity_properties_per_channel"][str(channel)]
        scale = wanted["std"]
        assert statistics.mean == pytest.approx(wanted["mean"], abs=0.03 * scale)
        assert statistics.sd == pytest.approx(scale, rel=0.03)
        assert statistics.percentile_00_5 == pytest.approx(wanted["percentile_00_5"], abs=0.05 * scale)
        assert statistics.percentile_99_5 == pytest.approx(wanted["percentile_99_5"], abs=0.05 * scale)


def test_plans_agree(both: tuple[Dataset, list[CaseFingerprint], dict[str, Any], str]) -> None:
    dataset, prints, golden, _ = both
    require_same_plan(plan_of(dataset, prints), golden["transpose_forward"], golden["configurations"])


def test_prepared_arrays_agree(both: tuple[Dataset, list[CaseFingerprint], dict[str, Any], str]) -> None:
    dataset, prints, golden, name = both
    plan = with_statistics(plan_of(dataset, prints), golden["fingerprint"])
    arrays = np.load(GOLDEN / "nnunet_datasets.npz")
    files = {found.id: found for found in dataset.cases}
    for case, shape in golden["shapes"].items():
        orientation = "RAS" if name == "phantom" else read_grid(files[case].images[0]).orientation
        turned = plan.model_copy(update={"orientation": orientation})  # as the files that nnU-Net has read
        image, label = prepared(files[case], turned, golden["transpose_forward"])
        assert list(label.shape) == shape
        difference = np.abs(image.reshape(len(image), -1)[:, ::STRIDE] - arrays[f"{name}/{case}/image"])
        assert difference.max() < 1e-3
        wanted = np.maximum(arrays[f"{name}/{case}/label"], 0)  # nnU-Net marks the border it masks with -1
        assert np.mean(label.ravel()[::STRIDE] == wanted) >= 0.999


def with_statistics(plan: Plan, fingerprint: dict[str, Any]) -> Plan:
    """The same plan: CT normalization by the very voxels that nnU-Net chose."""
    chosen = []
    for channel, entry in enumerate(plan.normalization):
        found = fingerprint["foreground_intensity_properties_per_channel"][str(channel)]
        values = {"mean": found["mean"], "sd": found["std"]}
        limits = {"low": found["percentile_00_5"], "high": found["percentile_99_5"]}
        chosen.append(entry.model_copy(update={**values, **limits}) if entry.scheme == "ct" else entry)
    return plan.model_copy(update={"normalization": tuple(chosen)})


def prepared(
    files: CaseFiles, plan: Plan, transpose_forward: list[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A prepared case along nnU-Net's axes."""
    data = {"id": files.id, "image": list(files.images), "label": files.label_sources}
    result, _ = run_transforms(data, plan)
    order = [2 - axis for axis in transpose_forward]
    image, label = result["image"].as_tensor().numpy(), result["label"].as_tensor().numpy()[0]
    return image.transpose(0, *(axis + 1 for axis in order)), label.transpose(order)
