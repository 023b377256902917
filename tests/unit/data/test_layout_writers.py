"""Where files go in every layout, and what names they get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.core.labels import LabelTable
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.label_tables import label_table
from pipeline.data.layout_writers import converted_dataset, label_content, translate_labels

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
    found = converted_dataset(dataset("a", tests=(HELD_OUT,)), OUT, layout).dataset
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
    found = converted_dataset(dataset("a", channels=("T2", "T1")), OUT, layout).dataset
    assert found.channels == ("T2", "T1")
    assert names(found.cases[0])[:2] == images


def test_ids_become_file_names_and_stay_unique() -> None:
    found = converted_dataset(dataset("a b", "a_b", "a/b", "Schädel_1", ".x", "a_b"), OUT, "nnunet")
    assert [files.id for files in found.dataset.cases] == ["a_b_2", "a_b", "a_b_3", "Schädel_1", "x", "a_b_4"]
    assert found.notes[-1].startswith(
        "4 cases renamed, because files are named after them: a b -> a_b_2, a/b -> a_b_3, .x -> x, a_b -> a_b_4 "
    )


def test_a_held_out_case_with_the_name_of_another_gets_its_own() -> None:
    found = converted_dataset(dataset("t", tests=(HELD_OUT,)), OUT, "organs").dataset
    assert [found.cases[0].id, found.tests[0].id] == ["t", "t_2"]


def test_pairs_need_ids_that_do_not_end_in_a_role() -> None:
    assert converted_dataset(dataset("x_seg"), OUT, "pairs").dataset.cases[0].id == "x_seg_case"
    assert converted_dataset(dataset("x_seg"), OUT, "nnunet").dataset.cases[0].id == "x_seg"


def test_groups_stay_and_a_fixed_split_goes_where_it_can() -> None:
    source = dataset("a", "b")
    first, second = source.cases
    source = replace(
        source, cases=(replace(first, group="p1", split="train"), replace(second, group="p2", split="validation"))
    )
    for layout in ("nnunet", "decathlon", "datalist", "organs", "pairs"):
        found = converted_dataset(source, OUT, layout)
        assert [files.group for files in found.dataset.cases] == ["p1", "p2"]
        assert [files.split for files in found.dataset.cases] == (
            ["train", "validation"] if layout == "datalist" else [None, None]
        )
        assert any("split is lost" in note for note in found.notes) == (layout not in ("datalist", "nnunet"))


def test_organs_would_train_on_labelled_held_out_cases() -> None:
    notes = converted_dataset(dataset("a", tests=(HELD_OUT,)), OUT, "organs").notes
    assert notes == ("references of 1 held-out cases are left out, because organs would take these cases for training",)


@pytest.mark.parametrize("layout", ["drishti", "bids", ""])
def test_unknown_layouts_are_refused(layout: str) -> None:
    with pytest.raises(DataError, match="--to: expected one of decathlon, nnunet, datalist, organs, pairs, got"):
        converted_dataset(dataset("a"), OUT, layout)


# Label tables in the form of other layouts, by hand.

ORGANS = LabelTable({1: "liver", 2: "spleen"})
GAPS = LabelTable({3: "liver", 7: "prostate/uterus"}, ignore_label=5)
DISC = LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "cup": (2,)})


def test_a_table_without_gaps_stays() -> None:
    for layout in ("nnunet", "decathlon", "datalist", "organs", "pairs"):
        found = translate_labels(ORGANS, layout)
        assert (found.labels, found.renumbered, found.notes) == (ORGANS, {}, ())


def test_nnunet_gets_consecutive_values_and_the_ignore_label_last() -> None:
    found = translate_labels(GAPS, "nnunet")
    assert found.labels == LabelTable({1: "liver", 2: "prostate/uterus"}, ignore_label=3)
    assert found.renumbered == {3: 1, 7: 2, 5: 3}
    assert [note.split(":")[0] for note in found.notes] == [
        "labels renumbered, because nnU-Net wants values without gaps"
    ]
    assert "3 -> 1, 7 -> 2, 5 -> 3" in found.notes[0]
    assert label_content(found.labels, "nnunet") == {
        "labels": {"background": 0, "liver": 1, "prostate/uterus": 2, "ignore": 3}
    }


def test_other_layouts_keep_values() -> None:
    assert translate_labels(GAPS, "decathlon").labels == GAPS
    assert label_content(GAPS, "decathlon") == {
        "labels": {"0": "background", "3": "liver", "7": "prostate/uterus", "5": "ignore"}
    }
    assert label_content(GAPS, "pairs") == {"names": {"3": "liver", "7": "prostate/uterus"}, "ignore_label": 5}


def test_nnunet_gets_regions_with_their_order() -> None:
    found = translate_labels(DISC, "nnunet")
    assert label_content(found.labels, "nnunet") == {
        "labels": {"background": 0, "disc": [1, 2], "cup": 2},
        "regions_class_order": [1, 2],
    }
    assert found.labels == LabelTable({1: "label_1", 2: "cup"}, None, {"disc": (1, 2), "cup": (2,)}, (1, 2))
    assert found.notes == ("names of label values lost, because nnU-Net names regions only: rim",)


def test_regions_of_single_values_stay_regions_when_read_back() -> None:
    table = LabelTable({1: "a", 4: "b"}, 9, {"a": (1,), "b": (4,)})
    found = translate_labels(table, "nnunet")
    content = label_content(found.labels, "nnunet")
    assert content["labels"] == {"background": 0, "a": [1], "b": [2], "ignore": 3}
    assert label_table(content["labels"], "x", content) == found.labels
    assert found.labels.regions == {"a": (1,), "b": (2,)}


def test_crossing_regions_are_told() -> None:
    table = LabelTable({1: "l", 2: "r", 3: "both"}, regions={"left": (1, 3), "right": (2, 3)}, painted=(1, 2))
    assert any("cross" in note for note in translate_labels(table, "nnunet").notes)
    assert translate_labels(table, "decathlon").notes == ()


def test_names_that_are_numbers_cannot_be_mistaken_for_values() -> None:
    found = translate_labels(LabelTable({10: "10", 20: "2"}), "nnunet")
    assert found.labels == LabelTable({1: "label_10", 2: "label_2"})


def test_decathlon_and_own_tables_are_read_back_the_same() -> None:
    for table in (ORGANS, GAPS, DISC):
        for layout in ("decathlon", "datalist"):
            content = label_content(table, layout)
            inner = content["labels"] if layout == "decathlon" else content
            assert label_table(inner, "x", content) == table


def test_organs_get_names_that_can_be_files() -> None:
    found = translate_labels(LabelTable({7: "prostate/uterus", 8: ".hidden"}), "organs")
    assert found.labels == LabelTable({7: "prostate_uterus", 8: "hidden"})
    assert found.notes == (
        "organs renamed, because files are named after them: prostate/uterus -> prostate_uterus, .hidden -> hidden",
    )


def test_organs_that_would_share_a_file_are_refused() -> None:
    with pytest.raises(DataError, match="unique names, got 'a_b' for 1 and 2"):
        translate_labels(LabelTable({1: "a/b", 2: "a_b"}), "organs")


def test_organs_cannot_hold_ignored_voxels() -> None:
    with pytest.raises(DataError, match="organs layout: expected a dataset without an ignore label, got label 5"):
        translate_labels(GAPS, "organs")
