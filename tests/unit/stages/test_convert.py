"""Whole datasets from every layout to every other, read back and compared."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.core.documents import read_json
from pipeline.core.errors import AllFailedError, DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.layout_names import WRITTEN_LAYOUTS
from pipeline.data.layout_writers import converted_dataset
from pipeline.data.layouts import open_dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.volumes import open_volume, read_image, write_image, write_label_map
from pipeline.phantom.fundus import write_fundus
from pipeline.stages.convert import convert

LABELS = LabelTable({1: "liver", 2: "spleen"})
REGIONS = LabelTable({1: "edema", 2: "core", 4: "ring"}, regions={"tumor": (1, 2, 4), "inner": (2, 4), "ring": (4,)})
IGNORING = LabelTable({2: "liver", 5: "spleen"}, ignore_label=9)
AFFINE = np.array([[0.9, -0.2, 0, 5], [0.2, 0.9, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])


def write_source(
    root: Path, labels: LabelTable, channels: tuple[str, ...], *, cases: int = 4, tests: int = 2, groups: bool = False
) -> Path:
    """A datalist of cases with the values of the table; of the held-out ones the first has a reference."""
    rows = []
    values = [0, *labels.values, *([labels.ignore_label] if labels.ignore_label else [])]
    for index in range(cases + tests):
        rng = np.random.default_rng(index)
        grid = Grid((6, 5, 4), AFFINE)
        name, held_out = f"c_{index:03d}", index >= cases
        files = [f"volumes/{name} channel {n}.nii.gz" for n, _ in enumerate(channels)]
        for file in files:
            write_image(Image(rng.normal(-600, 400, (1, 6, 5, 4)).astype(np.float32), grid), root / file)
        label = f"volumes/{name} label.nii.gz"
        write_label_map(LabelMap(rng.choice(values, (6, 5, 4)).astype(np.uint8), grid), root / label)
        rows.append(
            {
                "case": name,
                "image": files,
                "label": None if index == cases + 1 else label,
                "group": f"patient {index // 2}" if groups else None,
                "split": "test" if held_out else None,
            }
        )
    content = {"name": "Belly", "channels": list(channels), "labels": labels.to_json(), "cases": rows}
    (root / "datalist.json").write_text(json.dumps(content))
    return root


def in_order(dataset: Dataset) -> Dataset:
    """Cases by id, the name left out: not every layout has a place for it."""
    cases, tests = (tuple(sorted(part, key=lambda files: files.id)) for part in (dataset.cases, dataset.tests))
    return replace(dataset, cases=cases, tests=tests, name="")


def require_same_voxels(source: Dataset, found: Dataset, renumbered: dict[int, int] | None = None) -> None:
    """Equal intensities, label values (renumbered) and grids, case by case in the order of ids."""
    for old_part, new_part in ((source.cases, found.cases), (source.tests, found.tests)):
        for old, new in zip(old_part, new_part, strict=True):
            image, converted = read_image(old.images), read_image(new.images)
            assert np.array_equal(image.array, converted.array)
            assert image.grid.difference_mm(converted.grid) < 1e-5
            if new.labelled:
                expected, reference = read_reference(old), read_reference(new)
                for value in expected.values():
                    moved = (renumbered or {}).get(value, value)
                    assert np.array_equal(expected.array == value, reference.array == moved)
                assert reference.grid == converted.grid


@pytest.mark.parametrize("to", WRITTEN_LAYOUTS)
@pytest.mark.parametrize("channels", [("CT",), ("T2", "FLAIR", "T1")], ids=["one", "three"])
@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORING], ids=["organs", "regions", "ignore"])
def test_every_layout_reads_back_as_the_source(tmp_path, labels, channels, to) -> None:
    source = open_dataset(write_source(tmp_path / "source", labels, channels, groups=True))
    out = tmp_path / "Dataset501_Belly"
    if to == "organs" and labels is IGNORING:
        with pytest.raises(DataError, match="organs layout: expected a dataset without an ignore label"):
            convert(tmp_path / "source", out, to, jobs=1)
        assert not out.exists()
        return
    batch = convert(tmp_path / "source", out, to, jobs=1)
    assert (len(batch.done), batch.kept, batch.failed) == (6, (), ())
    target = converted_dataset(source, out, to)
    found = open_dataset(out)
    assert in_order(found) == in_order(target.dataset)
    assert (found.channels, [files.id for files in found.cases]) == (channels, [files.id for files in source.cases])
    assert [files.group for files in (*found.cases, *found.tests)] == [
        files.group for files in (*source.cases, *source.tests)
    ]
    assert (found.labels.organs == labels.organs) == (to != "nnunet" or labels is not REGIONS)
    assert found.labels.targets == labels.targets
    require_same_voxels(source, found, dict(target.renumbered))
    assert found.tests[0].labelled == (to != "organs")


@pytest.mark.parametrize("channels", [("CT",), ("CT", "PET")], ids=["one", "two"])
def test_there_and_back_again_is_exact(tmp_path, channels) -> None:
    write_source(tmp_path / "source", LABELS, channels, groups=True)
    first, middle, last = (tmp_path / name for name in ("Dataset001_A", "B", "Dataset001_C"))
    convert(tmp_path / "source", first, "nnunet", jobs=1)
    convert(first, middle, "decathlon", jobs=1)
    convert(middle, last, "nnunet", jobs=1)
    volumes = sorted(path.relative_to(first) for path in first.rglob("*.nii.gz"))
    assert volumes == sorted(path.relative_to(last) for path in last.rglob("*.nii.gz"))
    assert len(volumes) == 6 * len(channels) + 5
    for path in volumes:
        before, after = open_volume(first / path), open_volume(last / path)
        assert before.grid == after.grid
        assert np.array_equal(before.load(), after.load())
        assert before.load().dtype == after.load().dtype
        copied = len(channels) == 1 or path.parts[0].startswith("labels")
        assert not copied or (first / path).read_bytes() == (last / path).read_bytes()
    for name in ("groups.csv", "splits_final.json"):
        assert (first / name).read_bytes() == (last / name).read_bytes()
    descriptions = [read_json(folder / "dataset.json") for folder in (first, last)]
    for description in descriptions:
        del description["description"]
    assert descriptions[0] == descriptions[1]


def test_nnunet_description_names_regions_and_ignored_voxels(tmp_path) -> None:
    table = LabelTable({1: "edema", 4: "ring"}, 7, {"tumor": (1, 4), "ring": (4,)})
    write_source(tmp_path / "source", table, ("FLAIR",))
    batch = convert(tmp_path / "source", tmp_path / "Dataset007_Brain", "nnunet", jobs=1)
    content = read_json(tmp_path / "Dataset007_Brain" / "dataset.json")
    assert content == {
        "name": "Belly",
        "description": "Converted by volseg from source (datalist). Labels renumbered: 4 -> 2, 7 -> 3.",
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "tumor": [1, 2], "ring": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 4,
        "numTest": 2,
        "file_ending": ".nii.gz",
    }
    assert batch.notes[0].startswith("labels renumbered, because nnU-Net wants values without gaps: 4 -> 2, 7 -> 3")
    record = read_json(tmp_path / "Dataset007_Brain" / "conversion.json")
    assert record["renumbered_labels"] == {"4": 2, "7": 3}


def test_nnunet_gets_the_folds_of_preprocess(tmp_path) -> None:
    source = open_dataset(write_source(tmp_path / "source", LABELS, ("CT",), cases=6, groups=True))
    out = tmp_path / "nnunet"
    batch = convert(tmp_path / "source", out, "nnunet", jobs=1)
    folds = read_json(out / "splits_final.json")
    assert [set(fold) for fold in folds] == [{"train", "val"}] * 3  # three groups of two cases
    groups = {files.id: files.group for files in source.cases}
    for fold in folds:
        assert not {groups[case] for case in fold["train"]} & {groups[case] for case in fold["val"]}
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(groups)
    assert any("name like Dataset501_Belly: rename" in note for note in batch.notes)
    (out / "splits_final.json").write_text(json.dumps(folds[:1]))
    batch = convert(tmp_path / "source", out, "nnunet", jobs=1)
    assert read_json(out / "splits_final.json") == folds[:1]
    assert any("splits_final.json: kept" in note for note in batch.notes)
    (out / "splits_final.json").write_text("{")
    batch = convert(tmp_path / "source", out, "nnunet", jobs=1)
    assert any("Or delete the file" in note for note in batch.notes)


def test_photographs_become_single_slices_of_three_channels_with_their_split(tmp_path) -> None:
    write_fundus(tmp_path / "eyes", cases=2, tests=1)
    out = tmp_path / "Dataset044_Disc"
    batch = convert(tmp_path / "eyes", out, "nnunet", jobs=1)
    assert batch.failed == ()
    found, source = open_dataset(out), open_dataset(tmp_path / "eyes")
    assert found.channels == ("R", "G", "B")
    assert found.labels.regions == {"disc": (1, 2), "cup": (2,)}
    require_same_voxels(source, found)
    assert open_volume(found.cases[0].images[0]).grid.shape[2] == 1
    assert open_volume(found.cases[0].images[0]).load().dtype == np.uint8
    expected = {"train": [f.id for f in source.cases if f.split == "train"]}
    expected["val"] = [f.id for f in source.cases if f.split == "validation"]
    assert read_json(out / "splits_final.json") == [expected]
    convert(tmp_path / "eyes", tmp_path / "list", "datalist", jobs=1)
    again = open_dataset(tmp_path / "list")
    assert [files.split for files in again.cases] == [files.split for files in source.cases]
    assert again.labels == source.labels


def test_a_bad_case_is_left_out_and_converted_once_it_is_repaired(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",)), tmp_path / "Dataset501_Belly"
    bad = root / "volumes" / "c_001 channel 0.nii.gz"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100])
    batch = convert(root, out, "nnunet", jobs=2)
    assert batch.exit_code == 2
    assert [case for case, _ in batch.failed] == ["c_001"]
    assert "truncated" in batch.failed[0][1]
    assert len(open_dataset(out).cases) == read_json(out / "dataset.json")["numTraining"] == 3
    assert not list(out.glob("*/c_001*"))
    bad.write_bytes(whole)
    batch = convert(root, out, "nnunet", jobs=1)
    assert (batch.done, len(batch.kept), batch.exit_code) == (("c_001",), 5, 0)
    assert len(open_dataset(out).cases) == 4


def test_without_a_usable_case_there_is_no_description(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",), tests=0), tmp_path / "out"
    for path in (root / "volumes").glob("*channel*"):
        path.write_bytes(b"no volume")
    with pytest.raises(AllFailedError, match=r"^case c_000: .* All 4 cases failed\.$") as caught:
        convert(root, out, "decathlon", jobs=1)
    assert caught.value.result.exit_code == 3
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["conversion.json"]


def test_a_killed_run_has_no_description_and_goes_on(tmp_path, monkeypatch) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",)), tmp_path / "out"

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.stages.convert._RECORD_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        convert(root, out, "pairs", jobs=1, progress=interrupt)
    assert not (out / "labels.json").exists()
    assert not list(out.rglob("*.part.*"))
    (out / "images" / ".0123abcd.part.c_003.nii.gz").write_bytes(b"half")  # what a process killed at once leaves
    batch = convert(root, out, "pairs", jobs=1)
    assert not list(out.rglob("*.part.*"))
    assert (len(batch.kept), len(batch.done)) == (3, 3)
    assert len(open_dataset(out).cases) == 4


def test_cases_that_are_gone_take_their_files_along(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",), groups=True), tmp_path / "out"
    convert(root, out, "organs", jobs=1)
    content = read_json(root / "datalist.json")
    content["cases"] = content["cases"][1:4]
    (root / "datalist.json").write_text(json.dumps(content))
    convert(root, out, "organs", jobs=1)
    assert not (out / "c_000").exists()
    assert [files.id for files in open_dataset(out).cases] == ["c_001", "c_002", "c_003"]


def test_unlabelled_cases_stay_held_out_as_organs(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("MR",)), tmp_path / "out"
    convert(root, out, "organs", jobs=1)
    found = open_dataset(out)
    assert found.channels == ("MR",)
    assert [(files.id, files.labelled) for files in found.tests] == [("c_004", False), ("c_005", False)]


def test_an_unusual_place_to_write_is_refused(tmp_path) -> None:
    root = write_source(tmp_path / "source", LABELS, ("CT",))
    other = write_source(tmp_path / "other", LABELS, ("CT",))
    for out in (root, root / "converted", tmp_path / "other" / ".." / "source"):
        with pytest.raises(VolsegError, match="expected a folder outside the dataset"):
            convert(root, out, "nnunet", jobs=1)
    with pytest.raises(VolsegError, match=r"expected a new folder, or an earlier conversion .*, got other files"):
        convert(root, other, "nnunet", jobs=1)
    convert(root / "datalist.json", root / "converted", "pairs", jobs=1)  # beside a list of files
    with pytest.raises(VolsegError, match=r"got one with source .*datalist.json, layout pairs"):
        convert(root / "datalist.json", root / "converted", "nnunet", jobs=1)
    with pytest.raises(VolsegError, match=r"got one with source .*datalist.json, layout pairs"):
        convert(other, root / "converted", "pairs", jobs=1)
    record = root / "converted" / "conversion.json"
    record.write_text(json.dumps({**read_json(record), "cases": [1]}))
    with pytest.raises(VolsegError, match=r"got a damaged conversion\.json"):
        convert(root / "datalist.json", root / "converted", "pairs", jobs=1)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(VolsegError, match=r"expected a new folder, .* got a file"):
        convert(root, file, "nnunet", jobs=1)
    with pytest.raises(VolsegError, match="nothing there"):
        convert(tmp_path / "no", tmp_path / "out", "nnunet", jobs=1)


def test_free_text_of_headers_is_cleared_unless_it_is_to_be_kept(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",)), tmp_path / "out"
    path = root / "volumes" / "c_001 channel 0.nii.gz"
    image = nib.load(path)
    image.header["aux_file"] = "Ann Smith"
    nib.save(image, path)
    batch = convert(root, out, "pairs", link=True, jobs=1)
    note = "the headers of 1 cases held free text, e.g. c_001: cleared in the copies; --keep-header-text keeps it"
    assert note in batch.notes
    copy = out / "images" / "c_001.nii.gz"
    assert not copy.samefile(path)
    assert (out / "images" / "c_002.nii.gz").samefile(root / "volumes" / "c_002 channel 0.nii.gz")
    assert nib.load(copy).header["aux_file"].item() == b""
    np.testing.assert_array_equal(read_image(copy).array, read_image(path).array)
    assert convert(root, out, "pairs", link=True, jobs=1).done == ()
    batch = convert(root, out, "pairs", keep_header_text=True, jobs=1)
    assert note not in batch.notes
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_linked_files_are_those_of_the_source(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",)), tmp_path / "out"
    convert(root, out, "decathlon", jobs=1, link=True)
    for old, new in zip(open_dataset(root).cases, open_dataset(out).cases, strict=True):
        assert new.images[0].samefile(old.images[0])
        assert new.label is not None
        assert old.label is not None
        assert new.label.samefile(old.label)


def test_a_folder_per_organ_set_with_masks_that_overlap_says_so(tmp_path) -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3] = 1
    write_image(Image(np.zeros((1, 4, 4, 4), np.float32), grid), tmp_path / "d/s1/mri.nii.gz")
    for organ, shift in (("gut", 0), ("liver", 1)):
        write_label_map(LabelMap(np.roll(mask, shift, 0), grid), tmp_path / f"d/s1/segmentations/{organ}.nii.gz")
    batch = convert(tmp_path / "d", tmp_path / "out", "pairs", jobs=1)
    assert batch.notes == ("organ masks overlap in 1 cases, e.g. s1: the organ with the later value has the voxels",)
    (found,) = open_dataset(tmp_path / "out").cases
    assert read_reference(found).array[:, 0, 0].tolist() == [0, 1, 2, 2]
    assert found == CaseFiles("s1", (tmp_path / "out/images/s1.nii.gz",), tmp_path / "out/labels/s1.nii.gz")


def test_hippocampus(tmp_path, real_data) -> None:
    """Real files: 206 of 208 label maps and all images fit nnU-Net as they are."""
    source, out = real_data / "Task04_Hippocampus", tmp_path / "Dataset004_Hippocampus"
    batch = convert(source, out, "nnunet", jobs=2)
    assert (len(batch.done), batch.failed) == (208, ())
    same = [
        (source / f"imagesTr/{case}.nii.gz").read_bytes() == (out / f"imagesTr/{case}_0000.nii.gz").read_bytes()
        for case in batch.done
    ]
    assert sum(same) == 208
    labels = [(source / f"labelsTr/{case}.nii.gz", out / f"labelsTr/{case}.nii.gz") for case in batch.done]
    assert sum(old.read_bytes() == new.read_bytes() for old, new in labels) == 206
    assert open_dataset(out).labels == open_dataset(source).labels


def test_the_description_of_a_dataset_is_no_way_into_it(tmp_path) -> None:
    root, out = write_source(tmp_path / "source", LABELS, ("CT",)), tmp_path / "Dataset001_Toy"
    convert(root, out, "nnunet", jobs=1)
    with pytest.raises(VolsegError, match="expected a folder outside the dataset"):
        convert(out / "dataset.json", out / "converted", "pairs", jobs=1)
