"""Estimated memory: hand-computed, from a header alone, and never below what reading really takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.check import check_case
from pipeline.data.dataset import CaseFiles
from pipeline.data.volumes import write_image, write_label_map
from pipeline.preprocess.fingerprint import CaseFingerprint, fingerprint_case
from pipeline.preprocess.plan_file import Normalization, PatchPlan, Plan
from pipeline.stages.memory import check_bytes, fingerprint_bytes, prepare_bytes

SHAPE = (40, 50, 60)
VOXELS = 120_000


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> CaseFiles:
    folder = tmp_path_factory.mktemp("case")
    grid = Grid.from_spacing(SHAPE, (1.0, 1.0, 2.0), "LPI")
    generator = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:30, 10:40, 10:50] = 1
    write_image(Image(generator.normal(0, 1, (1, *SHAPE)).astype(np.float32), grid), folder / "image.nii.gz")
    write_label_map(LabelMap(labels, grid), folder / "label.nii.gz")
    return CaseFiles("a", (folder / "image.nii.gz",), folder / "label.nii.gz")


def plan(**changed: object) -> Plan:
    patch = PatchPlan(patch_size=(8, 8, 8), batch_size=2)
    content = {
        "dataset": "toy",
        "channels": ("CT",),
        "labels": LabelTable({1: "box"}).to_json(),
        "orientation": "SRA",
        "crop": "none",
        "spacing_mm": (2.0, 1.0, 1.0),
        "image_order": 1,
        "store_dtype": "int16",
        "normalization": (Normalization(scheme="zscore"),),
        "median_shape": SHAPE,
        "slice_axis": 0,
        "patch_3d": patch,
        "patch_2d": PatchPlan(patch_size=(8, 8), batch_size=2),
    }
    return Plan.model_validate({**content, **changed})


def test_estimates_count_every_channel_and_the_reference(case: CaseFiles) -> None:
    assert check_bytes(case) == 8 * 2 * VOXELS
    assert fingerprint_bytes(case) == 12 * 2 * VOXELS
    two = CaseFiles("b", (case.images[0], Path("missing.nii.gz")), case.label)  # the first header is enough
    assert fingerprint_bytes(two) == 12 * 3 * VOXELS


def test_preparing_counts_the_larger_of_both_grids(case: CaseFiles) -> None:
    def size(**changed: object) -> int:
        return prepare_bytes(case, plan(**changed))

    assert size() == 16 * 2 * VOXELS  # the plan's first axis is the file's last
    assert size(spacing_mm=(1.0, 0.5, 1.0)) == 4 * 16 * 2 * VOXELS
    assert size(spacing_mm=(8.0, 8.0, 8.0)) == 16 * 2 * VOXELS
    assert size(shape=(100, 100, 100)) == 16 * 2 * 10**6


def test_a_case_whose_fingerprint_is_known_is_not_read_again() -> None:
    known = CaseFingerprint("a", (10, 20, 30), (5, 5, 5), (1.0, 1.0, 2.0), np.zeros((1, 0), np.float32), (6000,))
    missing = CaseFiles("a", (Path("missing.nii.gz"),))
    assert prepare_bytes(missing, plan(spacing_mm=(1.0, 1.0, 1.0)), known) == 16 * 2 * 2 * 6000


def test_what_cannot_be_read_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        check_bytes(CaseFiles("a", (tmp_path / "a.nii.gz",)))


def test_reading_takes_no_more_than_estimated(case: CaseFiles) -> None:
    table = LabelTable({1: "box"})

    def peak_bytes(measure: bool) -> int:
        tracemalloc.start()
        if measure:
            fingerprint_case(case, table, "RAS", "nonzero")
        else:
            check_case(case, table, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # gzip and nibabel hold some bytes of their own
    assert VOXELS < peak_bytes(False) < check_bytes(case) + 2**18
    assert VOXELS < peak_bytes(True) < fingerprint_bytes(case) + 2**18
