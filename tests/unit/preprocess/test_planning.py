"""Proposed class weights by hand, and plans with, without and with wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.settings import PreprocessSettings
from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint
from pipeline.preprocess.plan_file import Plan, read_plan, write_plan
from pipeline.preprocess.planning import plan_from_fingerprints, propose_class_weights
from pipeline.preprocess.prepare_case import case_hash

NAMES = ("liver", "left-vein", "tumour", "nowhere")


def case(name: str, voxels: tuple[int, ...], edge_mm: float = 1.0) -> CaseFingerprint:
    none = np.zeros((1, 0), np.float32)
    return CaseFingerprint(name, (99, 99, 99), (99, 99, 99), (edge_mm,) * 3, none, (5, *voxels))


CASES = [case("a", (100_000, 1_600, 100, 0)), case("b", (7_500, 0, 0, 0), 2.0)]  # mm3: 160000, 1600, 100


def plan(tmp_path: Path, cases: list[CaseFingerprint]) -> tuple[Plan, CaseFiles]:
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"hashed, never read")
    files = CaseFiles("a", (image,), image)
    table = LabelTable(dict(enumerate(NAMES, start=1)))
    return plan_from_fingerprints(
        Dataset("toy", tmp_path, "pairs", ("CT",), table, (files,)), cases, PreprocessSettings(), 8
    ), files


def test_weights_are_square_roots_of_the_median_share() -> None:
    weights, why = propose_class_weights(NAMES, CASES)
    assert weights == {"tumour": 4.0}  # the square root of 1600 / 100; the organ that no case has moves nothing
    assert "tumour: 0.062 % of it, in 1 of 2 cases." in why


def test_weights_are_bounded_and_the_largest_come_first() -> None:
    weights, why = propose_class_weights(list("abcdefghi"), [case("a", (1, 100, 2_500, 5_000, 10**4, *(10**5,) * 4))])
    assert weights == {"a": 10.0, "b": 10.0, "c": 2.0, "d": 1.4}  # the median is 10000
    assert why.endswith("; and 1 more.")


@pytest.mark.parametrize("voxels", [(5, 0, 0, 0), (0, 0, 0, 0), (100, 60, 0, 40)])
def test_balanced_frequencies_propose_nothing(voxels: tuple[int, ...]) -> None:
    weights, why = propose_class_weights(NAMES, [case("a", voxels)])
    assert weights is None
    assert why.startswith("None proposed: no organ has less than a quarter of the median")


def test_a_proposal_changes_no_prepared_case_and_comes_back_from_its_file(tmp_path: Path) -> None:
    found, files = plan(tmp_path, CASES)
    assert found.class_weights == {"tumour": 4.0}
    without = found.model_copy(update={"class_weights": None})
    assert (found.content_hash, case_hash(files, found)) == (without.content_hash, case_hash(files, without))
    for each in (found, without):
        write_plan(each, tmp_path / "plan.yaml")
        assert read_plan(tmp_path / "plan.yaml") == each


def test_the_longest_reason_comes_back_word_by_word(tmp_path: Path) -> None:
    found, _ = plan(tmp_path, [case("a", (10**6, 50, 100, 10**7))])
    assert "left-vein" in found.reasons["class_weights"]
    write_plan(found, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml").reasons == found.reasons


def test_a_plan_of_an_earlier_version_is_read_and_prepares_the_same_cases(tmp_path: Path) -> None:
    found, _ = plan(tmp_path, CASES)
    write_plan(found, tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    assert "class_weights:\n  tumour: 4.0\n" in text
    (tmp_path / "plan.yaml").write_text(text.replace("class_weights:\n  tumour: 4.0\n", ""))
    old = read_plan(tmp_path / "plan.yaml")
    assert (old.class_weights, old.content_hash) == (None, found.content_hash)


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ("livr: 4.0", "class_weights: organs: expected names of the labels, got livr"),
        ("tumour: 0", "class_weights.tumour: expected more than 0, got 0"),
        ("tumour: .inf", "class_weights.tumour: expected a finite number, got inf"),
        ("tumour: heavy", "class_weights.tumour: expected a valid number, got 'heavy'"),
    ],
)
def test_wrong_edits_are_named(tmp_path: Path, edited: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    write_plan(plan(tmp_path, CASES)[0], file)
    file.write_text(file.read_text().replace("tumour: 4.0", edited))
    with pytest.raises(VolsegError, match=message):
        read_plan(file)
