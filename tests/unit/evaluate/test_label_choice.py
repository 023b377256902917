"""Which label table holds, and lists of cases."""

import json

import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.evaluate.label_choice import choose_labels
from pipeline.evaluate.pairing import FilePair, pair_files
from pipeline.stages.prediction_files import chosen_labels, write_labels


@pytest.fixture
def folders(tmp_path):
    for name in ("pred", "ref"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").touch()
    return tmp_path / "pred", tmp_path / "ref"


def write(folder, names):
    (folder / "labels.json").write_text(json.dumps(names))


def test_tables_that_contradict_each_other_need_a_word(folders):
    prediction, reference = folders
    write(prediction, {"1": "liver", "2": "spleen", "7": "heart"})
    write(reference, {"1": "spleen", "2": "liver", "3": "aorta"})
    with pytest.raises(VolsegError, match=r"got 1 for liver in the predictions and for spleen in the references\."):
        choose_labels(prediction, reference)
    table = LabelTable({1: "spleen", 2: "liver", 3: "aorta"})
    by_name = choose_labels(prediction, reference, match="name")
    both = LabelTable({1: "spleen", 2: "liver"})
    assert (by_name.labels, by_name.remap, by_name.unscored) == (both, {1: 2, 2: 1, 7: 0}, {3: "aorta"})
    assert by_name.notes[0] == "Predicted organs that the references do not know were left out: heart."
    assert "does not name them: aorta (3)." in by_name.notes[1]
    by_value = choose_labels(prediction, reference, match="value")
    assert (by_value.labels, by_value.remap, by_value.unscored) == (both, {}, {3: "aorta"})
    everything = choose_labels(prediction, reference, reference / "labels.json", "name")
    assert (everything.labels, everything.unscored) == (table, {})
    assert everything.notes[1] == (
        "The labels.json of the predictions does not name aorta (3): they count as missed, since --labels names them."
    )


def test_what_predictions_cannot_have_is_not_scored(folders):
    prediction, reference = folders
    write(prediction, {"2": "spleen"})
    write(reference, {"1": "liver", "2": "spleen", "3": "aorta", "ignore": 255})
    found = choose_labels(prediction, reference)
    assert (found.labels, found.unscored) == (LabelTable({2: "spleen"}, 255), {1: "liver", 3: "aorta"})
    assert found.notes == (
        "Not scored, since the labels.json of the predictions does not name them: liver (1), aorta (3). In the "
        "references they count as background. If they should count as missed, give a file that names all labels with "
        "--labels.",
    )


def test_a_value_that_is_remapped_to_an_organ_can_be_in_the_predictions(folders):
    write(folders[0], {"1": "liver"})
    write(folders[1], {"1": "liver", "2": "spleen", "3": "aorta"})
    found = choose_labels(*folders, match="value", remap=["7=spleen"])
    assert (found.labels, found.remap) == (LabelTable({1: "liver", 2: "spleen"}), {7: 2})
    assert found.unscored == {3: "aorta"}


def test_predictions_say_themselves_what_they_were_not_asked_for(folders):
    whole = LabelTable({1: "rim", 2: "cup_value", 5: "vessel"}, 9, {"disc": (1, 2), "cup": (2,), "vessels": (5,)})
    write_labels(folders[0], chosen_labels(whole, ["cup"]))
    found = choose_labels(*folders)
    assert found.labels == LabelTable({2: "cup_value"}, 9, {"cup": (2,)})
    assert found.unscored == {1: "rim", 5: "vessel"}
    assert "does not name them: disc (1+2), vessels (5)." in found.notes[0]
    write_labels(folders[0], chosen_labels(whole, ()))
    assert choose_labels(*folders) == (whole, {}, (), {})


def test_names_of_other_spelling_are_not_silently_left_out(folders):
    write(folders[0], {"4": "Liver"})
    write(folders[1], {"1": "liver", "2": "spleen"})
    with pytest.raises(
        VolsegError, match=r"an organ that both name, got Liver in the predictions and liver, spleen in"
    ):
        choose_labels(*folders)
    write(folders[0], {"1": "liver", "4": "Spleen"})
    assert (
        choose_labels(*folders)
        .notes[0]
        .endswith("The references do not name Spleen: organs that are the same must have the same name.")
    )


def test_an_organ_that_is_wider_in_the_references_is_a_contradiction(folders):
    write(folders[0], {"1": "liver"})
    (folders[1] / "labels.json").write_text(
        '{"labels": {"tissue": 1, "tumour": 2}, "regions": {"liver": [1, 2], "tumour": [2]}}'
    )
    with pytest.raises(VolsegError, match=r"got 1 for liver in the predictions and for tissue"):
        choose_labels(*folders)
    write(folders[0], {"names": {"1": "tissue"}, "regions": {"liver": [1]}})
    with pytest.raises(VolsegError, match=r"got liver as 1 in the predictions and as 1\+2 in the references"):
        choose_labels(*folders)


def test_one_name_with_two_values_is_a_contradiction_too(folders):
    write(folders[0], {"4": "liver"})
    write(folders[1], {"1": "liver"})
    with pytest.raises(VolsegError, match=r"got liver as 4 in the predictions and as 1 in the references\."):
        choose_labels(*folders)


def test_a_given_table_holds(folders, tmp_path):
    write(folders[0], {"1": "liver"})
    (tmp_path / "own.json").write_text('{"1": "spleen"}')
    assert choose_labels(*folders, given=tmp_path / "own.json").labels == LabelTable({1: "spleen"})
    assert choose_labels(*folders).labels == LabelTable({1: "liver"})


def test_names_cannot_match_without_both_tables(folders):
    write(folders[1], {"1": "liver"})
    with pytest.raises(VolsegError, match=r"--match name: expected a labels\.json .* got none beside the predictions"):
        choose_labels(*folders, match="name")


def test_names_with_usual_endings_match(tmp_path):
    for folder, names in (
        ("pred", ("Liver_01_seg", "liver_02-pred_0000", "x_mask")),
        ("ref", ("liver_01", "LIVER_02")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.nii.gz").touch()
    found = pair_files(tmp_path / "pred", tmp_path / "ref")
    assert [(pair.case, pair.prediction.name) for pair in found] == [
        ("LIVER_02", "liver_02-pred_0000.nii.gz"),
        ("liver_01", "Liver_01_seg.nii.gz"),
    ]


def test_ambiguous_endings_match_nothing(tmp_path):
    for folder, names in (("pred", ("a_seg", "a_pred", "b")), ("ref", ("a", "b"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.nii.gz").touch()
    assert [pair.prediction is None for pair in pair_files(tmp_path / "pred", tmp_path / "ref")] == [True, False]


def test_lists_of_cases_name_their_files(tmp_path):
    (tmp_path / "pred.csv").write_text("case,prediction\nb,masks/2.nii.gz\na,masks/1.nii.gz\n")
    entries = [{"image": "i/a_0000.nii.gz", "label": "l/x.nii.gz"}, {"case": "c", "label": "l/c.nii.gz"}, {"case": "d"}]
    (tmp_path / "ref.json").write_text(json.dumps({"labels": {"1": "liver"}, "cases": entries}))
    assert pair_files(tmp_path / "pred.csv", tmp_path / "ref.json") == [
        FilePair("a", tmp_path / "masks" / "1.nii.gz", tmp_path / "l" / "x.nii.gz"),
        FilePair("c", None, tmp_path / "l" / "c.nii.gz"),
    ]
    assert choose_labels(tmp_path / "pred.csv", tmp_path / "ref.json").labels == LabelTable({1: "liver"})


def test_wrong_lists_are_one_sentence(tmp_path):
    (tmp_path / "ref.csv").write_text("case,label\na,l/a.nii.gz\n")
    (tmp_path / "none.csv").write_text("case,picture\na,l/a.nii.gz\n")
    (tmp_path / "twice.csv").write_text("case,label\na,1.nii.gz\na,2.nii.gz\n")
    with pytest.raises(DataError, match=r"prediction list: expected entries with one of prediction, .* got none"):
        pair_files(tmp_path / "none.csv", tmp_path / "ref.csv")
    with pytest.raises(DataError, match=r"case a: .*expected one entry per case, got two"):
        pair_files(tmp_path / "twice.csv", tmp_path / "ref.csv")
