import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.sample.folds import Fold, fixed_fold, make_folds, read_splits, usual_folds, write_splits

GOLDEN = Path(__file__).parents[2] / "golden" / "folds_seed12345.json"
CASES: Mapping[str, str | None] = {f"case_{number:02d}": None for number in range(13)}


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_every_case_validates_once_and_sizes_differ_by_at_most_one() -> None:
    folds = make_folds(CASES, 5, seed=1)
    assert sorted(case for fold in folds for case in fold.validation) == sorted(CASES)
    assert sorted(len(fold.validation) for fold in folds) == [2, 2, 3, 3, 3]
    for fold in folds:
        assert sorted(fold.train + fold.validation) == sorted(CASES)
        assert list(fold.train) == sorted(fold.train)


def test_seed_12345_gives_the_stored_folds() -> None:
    groups = {f"scan_{number:02d}": f"patient_{number // 3}" if number < 9 else None for number in range(24)}
    stored = read_splits(GOLDEN, groups, groups=groups)
    assert make_folds(groups, 5, seed=12345) == stored


def test_order_of_cases_does_not_matter_but_the_seed_does() -> None:
    backwards = dict(reversed(list(CASES.items())))
    assert make_folds(CASES, 4, seed=7) == make_folds(backwards, 4, seed=7)
    assert make_folds(CASES, 4, seed=7) != make_folds(CASES, 4, seed=8)


def test_a_patient_never_spans_a_split() -> None:
    groups = {f"scan_{number:02d}": f"patient_{number % 7}" for number in range(30)}
    for fold in make_folds(groups, 5, seed=3):
        assert not {groups[case] for case in fold.train} & {groups[case] for case in fold.validation}


def test_a_group_named_like_a_case_stays_apart() -> None:
    folds = make_folds({"a": None, "b": "a", "c": "a"}, 2, seed=0)
    assert {fold.validation for fold in folds} == {("a",), ("b", "c")}


def test_large_groups_are_dealt_first() -> None:
    groups = {**{f"big_{n}": "big" for n in range(4)}, **{f"one_{n}": None for n in range(4)}}
    assert sorted(len(fold.validation) for fold in make_folds(groups, 2, seed=5)) == [4, 4]


def test_fewer_groups_than_folds_is_refused() -> None:
    with pytest.raises(DataError) as error:
        make_folds({"a": "p1", "b": "p1", "c": "p2"}, 3, seed=0)
    assert str(error.value) == (
        "folds: expected at least 3 groups of cases for 3 folds, got 2 (3 cases). "
        "Lower sample.folds or add cases; cases of one group (patient) count once."
    )
    with pytest.raises(DataError, match=r"got 0 \(0 cases\)"):
        make_folds({}, 2, seed=0)
    with pytest.raises(DataError, match="folds: expected at least 2, got 1"):
        make_folds(CASES, 1, seed=0)


def test_written_splits_read_back(tmp_path: Path) -> None:
    folds = make_folds(CASES, 3, seed=0)
    write_splits(tmp_path / "splits.json", folds)
    assert read_splits(tmp_path / "splits.json", CASES) == folds
    assert json.loads((tmp_path / "splits.json").read_text())[0].keys() == {"train", "validation"}


def test_nnunet_key_is_read_and_cases_may_be_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "splits_final.json", [{"train": ["c", "a"], "val": ["b"]}])
    assert read_splits(path, ["a", "b", "c", "d"]) == (Fold(("a", "c"), ("b",)),)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"train": ["a", "x", "y"], "validation": ["b"]},
            "fold 0 train: expected ids of cases in the dataset, got x, y. Correct or remove them.",
        ),
        (
            {"train": ["a", "b"], "validation": ["b"]},
            "fold 0: expected no case in both train and validation, got b. Remove each from one of them.",
        ),
        (
            {"train": ["a"], "validation": []},
            "fold 0 validation: expected at least one case, got none. Move a case there.",
        ),
        (
            {"train": ["a", "a"], "validation": ["b"]},
            "fold 0 train: expected every case once, got a again. Remove the repetition.",
        ),
        (
            {"train": ["a", "c"], "validation": ["b"]},
            "fold 0: expected no group (patient) in both train and validation, got p. "
            "Move all of its cases to one side.",
        ),
        (
            {"train": ["a"], "test": ["b"]},
            'fold 0: expected an object {"train": [case ids], "validation": [case ids]}, '
            "got {'train': ['a'], 'test': ['b']}. Correct it, or delete the file to have it drawn again.",
        ),
        (
            {"train": ["a"], "validation": "b"},
            'fold 0: expected an object {"train": [case ids], "validation": [case ids]}, '
            "got {'train': ['a'], 'validation': 'b'}. Correct it, or delete the file to have it drawn again.",
        ),
    ],
)
def test_wrong_edits_are_named(tmp_path: Path, entry: object, message: str) -> None:
    path = save(tmp_path / "splits.json", [entry])
    with pytest.raises(DataError) as error:
        read_splits(path, ["a", "b", "c"], groups={"a": None, "b": "p", "c": "p"})
    assert str(error.value) == f"{path}: {message}"


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "splits.json", [{"train": ["a"], "val": ["z"]}, {"train": [], "val": ["a"]}])
    with pytest.raises(DataError) as error:
        read_splits(path, ["a"])
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "fold 0 validation" in lines[0]
    assert "fold 1 train" in lines[1]


def test_long_lists_are_shortened(tmp_path: Path) -> None:
    path = save(tmp_path / "splits.json", [{"train": [f"x{n}" for n in range(10)], "val": ["a"]}])
    with pytest.raises(DataError, match="x0, x1, x2, x3, x4, x5, x6, x7 and 2 more"):
        read_splits(path, ["a"])


@pytest.mark.parametrize(("content", "got"), [({}, "dict"), ([], "an empty list")])
def test_files_without_folds_are_refused(tmp_path: Path, content: object, got: str) -> None:
    with pytest.raises(DataError, match=f"splits: expected a list with one entry per fold, got {got}"):
        read_splits(save(tmp_path / "splits.json", content), ["a"])


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match="got nothing there"):
        read_splits(tmp_path / "none.json", ["a"])
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(VolsegError, match="expected JSON"):
        read_splits(tmp_path / "broken.json", ["a"])


def test_a_fixed_split_is_one_fold() -> None:
    splits = {"c": "train", "b": "validation", "a": "train"}
    assert fixed_fold(splits, {"a": "p1", "b": "p2", "c": "p1"}) == Fold(("a", "c"), ("b",))


@pytest.mark.parametrize(
    ("splits", "groups", "message"),
    [
        (
            {"a": "train", "b": "validation", "c": None},
            {},
            "split: expected train or validation for every case, got none for c. Name it for all, or for none.",
        ),
        ({"a": "validation"}, {}, "split train: expected at least one case, got none. Move a case there."),
        ({"a": "train"}, {}, "split validation: expected at least one case, got none. Move a case there."),
        (
            {"a": "train", "b": "validation"},
            {"a": "p1", "b": "p1"},
            "split: expected no group (patient) in both train and validation, got p1. "
            "Move all of its cases to one side.",
        ),
    ],
)
def test_a_fixed_split_that_cannot_be_used(
    splits: Mapping[str, str | None], groups: Mapping[str, str | None], message: str
) -> None:
    with pytest.raises(DataError) as error:
        fixed_fold(splits, groups)
    assert str(error.value) == message


def test_usual_folds_are_the_fixed_split_or_as_many_as_there_are_groups() -> None:
    groups = {"a": "p", "b": "p", "c": None, "d": "q"}
    assert usual_folds(groups, None, 5, 7) == make_folds(groups, 3, 7)
    assert usual_folds(groups, None, 2, 7) == make_folds(groups, 2, 7)
    splits = {"a": "train", "b": "train", "c": "validation", "d": "train"}
    assert usual_folds(groups, splits, 5, 7) == (Fold(("a", "b", "d"), ("c",)),)
    with pytest.raises(DataError, match="at least 2 groups"):
        usual_folds({"a": "p", "b": "p"}, None, 5, 7)


def test_ids_in_the_other_form_of_unicode(tmp_path) -> None:
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    (tmp_path / "s.json").write_text(f'[{{"train": ["{apart}"], "validation": ["b"]}}]', encoding="utf-8")
    assert read_splits(tmp_path / "s.json", [composed, "b"]) == (Fold((composed,), ("b",)),)
    assert read_splits(tmp_path / "s.json", [apart, "b"]) == (Fold((apart,), ("b",)),)
