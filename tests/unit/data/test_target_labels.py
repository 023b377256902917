"""Label tables in the form of other layouts, by hand."""

from __future__ import annotations

import pytest

from pipeline.core import DataError, LabelTable
from pipeline.data.label_names import label_table
from pipeline.data.target_labels import label_content, translate_labels

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
