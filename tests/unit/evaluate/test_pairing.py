import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.itk import write_picture
from pipeline.evaluate.label_choice import find_labels
from pipeline.evaluate.pairing import FilePair, find_images, pair_files


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_labels_beside_predictions_may_hold_regions(tmp_path):
    table = LabelTable({1: "rim", 2: "cup"}, 255, {"disc": (1, 2), "cup": (2,)})
    (touch(tmp_path / "pred") / "labels.json").write_text(json.dumps(table.to_json()))
    assert find_labels(tmp_path / "pred", tmp_path) == table
    references = touch(tmp_path / "data" / "labels", "a.nii.gz")
    content = {"labels": {"background": 0, "disc": [1, 2], "cup": 2}, "regions_class_order": [1, 2]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    found = find_labels(touch(tmp_path / "other"), references)
    assert found is not None
    assert found.target_values == {"disc": (1, 2), "cup": (2,)}


def test_folders_match_by_name_without_suffix_and_channel(tmp_path):
    prediction = touch(tmp_path / "pred", "b_0000.nii.gz", "a.mha", "notes.txt", ".hidden.nii.gz")
    reference = touch(tmp_path / "ref", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    assert pair_files(prediction, reference) == [
        FilePair("a", prediction / "a.mha", reference / "a.nii.gz"),
        FilePair("b", prediction / "b_0000.nii.gz", reference / "b.nii.gz"),
        FilePair("c", None, reference / "c.nii.gz"),
    ]


def test_two_files_belong_together_whatever_their_names(tmp_path):
    touch(tmp_path, "x.nii.gz", "y.nii.gz")
    assert pair_files(tmp_path / "x.nii.gz", tmp_path / "y.nii.gz") == [
        ("y", tmp_path / "x.nii.gz", tmp_path / "y.nii.gz")
    ]


def test_one_prediction_finds_its_own_reference(tmp_path):
    prediction = touch(tmp_path / "pred", "b_0000.nii.gz") / "b_0000.nii.gz"
    reference = touch(tmp_path / "ref", "a.nii.gz", "b.nii.gz")
    assert pair_files(prediction, reference) == [("b", prediction, reference / "b.nii.gz")]


def test_dataset_folder_counts_the_parts_that_were_predicted(tmp_path):
    touch(tmp_path / "labelsTr", "t1.nii.gz", "t2.nii.gz")
    touch(tmp_path / "labelsTs", "s1.nii.gz", "s2.nii.gz")
    prediction = touch(tmp_path / "pred", "s1_0000.nii.gz")
    assert [(pair.case, pair.prediction is None) for pair in pair_files(prediction, tmp_path)] == [
        ("s1", False),
        ("s2", True),
    ]
    touch(prediction, "t2.nii.gz")
    assert [pair.case for pair in pair_files(prediction, tmp_path)] == ["s1", "s2", "t1", "t2"]


def test_ambiguous_and_foreign_names_are_refused(tmp_path):
    reference = touch(tmp_path / "ref", "a.nii.gz")
    twice = touch(tmp_path / "twice", "a.nii.gz", "a_0000.nii.gz")
    with pytest.raises(DataError, match=r"case a: .*one file, got a\.nii\.gz and a_0000\.nii\.gz"):
        pair_files(twice, reference)
    other = touch(tmp_path / "other", "q.nii.gz")
    with pytest.raises(VolsegError, match=r"prediction names: expected those of the references \(a\), got q\."):
        pair_files(other, reference)


def test_labels_come_from_the_predictions_then_from_the_dataset(tmp_path):
    prediction, reference = touch(tmp_path / "pred"), touch(tmp_path / "data" / "labelsTr")
    assert find_labels(prediction, reference) is None
    dataset = reference.parent / "dataset.json"
    dataset.write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    assert find_labels(prediction, reference) == LabelTable({1: "liver"})
    dataset.write_text(json.dumps({"labels": {"background": 0, "spleen": 2, "ignore": 3}}))
    assert find_labels(prediction, reference.parent) == LabelTable({2: "spleen"}, 3)
    (prediction / "labels.json").write_text(json.dumps(LabelTable({4: "aorta"}).to_json()))
    assert find_labels(prediction, reference) == LabelTable({4: "aorta"})
    (prediction / "labels.json").write_text('{"names": {"1": "liver", "2": "liver"}}')
    with pytest.raises(VolsegError, match=r"labels\.json: label table: expected unique names"):
        find_labels(prediction, reference)
    (prediction / "labels.json").write_text("[]")
    with pytest.raises(VolsegError, match=r"labels\.json: labels: expected an object of values and names, got list"):
        find_labels(prediction, reference)


def test_images_from_the_record_of_the_prediction_or_beside_the_references(tmp_path):
    prediction = touch(tmp_path / "pred", "a.nii.gz", "b.nii.gz")
    reference = touch(tmp_path / "labelsTs", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    images = touch(tmp_path / "imagesTs", "b_0000.nii.gz", "b_0001.nii.gz", "c.nii.gz")
    record = {"cases": [{"case": "a", "images": ["/scans/a.nii.gz"], "prediction": str(prediction / "a.nii.gz")}]}
    (prediction / "predictions.json").write_text(json.dumps(record))
    pairs = pair_files(prediction, reference)
    assert find_images(prediction, pairs) == (
        {
            "a": (Path("/scans/a.nii.gz"),),
            "b": (images / "b_0000.nii.gz", images / "b_0001.nii.gz"),
            "c": (images / "c.nii.gz",),
        },
        (),
    )
    (prediction / "predictions.json").write_text("{}")
    assert "expected a list of cases" in find_images(prediction, pairs)[1][0]


def test_images_beside_may_be_pictures_in_colour_and_have_brackets_in_their_names(tmp_path):
    images = touch(tmp_path / "imagesTs", "scan [1]_0000.nii.gz", "scan [1]_0001.nii.gz")
    for name in ("eye.png", "eyes_0000.png"):
        write_picture(np.zeros((4, 5, 3), np.uint8), images / name)
    references = touch(tmp_path / "labelsTs", "scan [1].nii.gz", "eye.png", "eyes.png")
    pairs = [
        FilePair(name.split(".")[0], None, references / name) for name in ("scan [1].nii.gz", "eye.png", "eyes.png")
    ]
    assert find_images(tmp_path, pairs)[0] == {
        "scan [1]": (images / "scan [1]_0000.nii.gz", images / "scan [1]_0001.nii.gz"),
        "eye": tuple(images / f"eye.png#channel={n}of3" for n in (1, 2, 3)),
        "eyes": tuple(images / f"eyes_0000.png#channel={n}of3" for n in (1, 2, 3)),
    }
