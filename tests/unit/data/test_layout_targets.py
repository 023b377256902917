"""Where files go in every layout, and what names they get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core import DataError, LabelTable
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.layout_targets import target_dataset

ROOT, OUT = Path("data"), Path("out")


def dataset(*ids: str, channels: tuple[str, ...] = ("CT",), tests: tuple[CaseFiles, ...] = ()) -> Dataset:
    images = [tuple(ROOT / f"{case}_{n}.nii.gz" for n, _ in enumerate(channels)) for case in ids]
    cases = [CaseFiles(case, files, ROOT / f"{case}_seg.nii.gz") for case, files in zip(ids, images, strict=True)]
    return Dataset("Belly", ROOT, "datalist", channels, LabelTable({1: "liver", 4: "spleen"}), tuple(cases), tests)


def names(files: CaseFiles) -> list[str]:
    return [path.relative_to(OUT).as_posix() for path in (*files.images, *files.label_sources)]


HELD_OUT = CaseFiles("t", (ROOT / "t.nii.gz",), ROOT / "t_seg.nii.gz")


@pytest.mark.parametrize(
    ("layout", "case", "held_out"),
    [
        ("nnunet", ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], ["imagesTs/t_0000.nii.gz", "labelsTs/t.nii.gz"]),
        ("decathlon", ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], ["imagesTs/t.nii.gz", "labelsTs/t.nii.gz"]),
        ("pairs", ["images/a.nii.gz", "labels/a.nii.gz"], ["imagesTs/t.nii.gz", "labelsTs/t.nii.gz"]),
        ("datalist", ["images/a.nii.gz", "labels/a.nii.gz"], ["imagesTs/t.nii.gz", "labelsTs/t.nii.gz"]),
        (
            "organs",
            ["a/ct.nii.gz", "a/segmentations/liver.nii.gz#label=1", "a/segmentations/spleen.nii.gz#label=4"],
            ["t/ct.nii.gz"],
        ),
    ],
)
def test_places(layout: str, case: list[str], held_out: list[str]) -> None:
    found = target_dataset(dataset("a", tests=(HELD_OUT,)), OUT, layout).dataset
    assert (found.layout, found.root, found.name) == (layout, OUT, "Belly")
    assert (names(found.cases[0]), names(found.tests[0])) == (case, held_out)


@pytest.mark.parametrize(
    ("layout", "images"),
    [
        ("nnunet", ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]),
        ("decathlon", ["imagesTr/a.nii.gz#channel=1of2", "imagesTr/a.nii.gz#channel=2of2"]),
        ("pairs", ["images/a_0000.nii.gz", "images/a_0001.nii.gz"]),
        ("organs", ["a/image_0000.nii.gz", "a/image_0001.nii.gz"]),
    ],
)
def test_places_of_several_channels(layout: str, images: list[str]) -> None:
    found = target_dataset(dataset("a", channels=("T2", "T1")), OUT, layout).dataset
    assert found.channels == ("T2", "T1")
    assert names(found.cases[0])[:2] == images


def test_ids_become_file_names_and_stay_unique() -> None:
    found = target_dataset(dataset("a b", "a_b", "a/b", "Schädel_1", ".x", "a_b"), OUT, "nnunet")
    assert [files.id for files in found.dataset.cases] == ["a_b_2", "a_b", "a_b_3", "Schädel_1", "x", "a_b_4"]
    assert found.notes[-1].startswith(
        "4 cases renamed, because files are named after them: a b -> a_b_2, a/b -> a_b_3, .x -> x, a_b -> a_b_4 "
    )


def test_a_held_out_case_with_the_name_of_another_gets_its_own() -> None:
    found = target_dataset(dataset("t", tests=(HELD_OUT,)), OUT, "organs").dataset
    assert [found.cases[0].id, found.tests[0].id] == ["t", "t_2"]


def test_pairs_need_ids_that_do_not_end_in_a_role() -> None:
    assert target_dataset(dataset("x_seg"), OUT, "pairs").dataset.cases[0].id == "x_seg_case"
    assert target_dataset(dataset("x_seg"), OUT, "nnunet").dataset.cases[0].id == "x_seg"


def test_groups_stay_and_a_fixed_split_goes_where_it_can() -> None:
    source = dataset("a", "b")
    first, second = source.cases
    source = replace(
        source, cases=(replace(first, group="p1", split="train"), replace(second, group="p2", split="validation"))
    )
    for layout in ("nnunet", "decathlon", "datalist", "organs", "pairs"):
        found = target_dataset(source, OUT, layout)
        assert [files.group for files in found.dataset.cases] == ["p1", "p2"]
        assert [files.split for files in found.dataset.cases] == (
            ["train", "validation"] if layout == "datalist" else [None, None]
        )
        assert any("split is lost" in note for note in found.notes) == (layout not in ("datalist", "nnunet"))


def test_organs_would_train_on_labelled_held_out_cases() -> None:
    notes = target_dataset(dataset("a", tests=(HELD_OUT,)), OUT, "organs").notes
    assert notes == ("references of 1 held-out cases are left out, because organs would take these cases for training",)


@pytest.mark.parametrize("layout", ["drishti", "bids", ""])
def test_unknown_layouts_are_refused(layout: str) -> None:
    with pytest.raises(DataError, match="--to: expected one of nnunet, decathlon, datalist, organs, pairs, got"):
        target_dataset(dataset("a"), OUT, layout)
