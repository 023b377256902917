"""The prepared-case store."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import read_prepared

from pipeline.core.errors import DataError, VolsegError
from pipeline.data.prepared_cases import prepared_ids, read_info, stored_hash
from pipeline.data.store import (
    PreparedCase,
    QuantizedTensor,
    class_voxels,
    open_array,
    open_prepared,
    open_stage_map,
    packed,
    read_class_voxels,
    stage_map_hash,
    step_of,
    write_prepared,
    write_stage_map,
)


@pytest.fixture
def case() -> PreparedCase:
    generator = np.random.default_rng(0)
    label = np.zeros((20, 70, 9), np.int8)
    label[2:5, 3:6, 1] = 1
    label[10, 60, 8] = 2
    image = generator.normal(size=(2, 20, 70, 9)).astype(np.float32)
    return PreparedCase("case 1", image, label, class_voxels(label, 4, generator), {"hash": "abc", "group": None})


def test_what_is_written_comes_back_exactly(tmp_path: Path, case: PreparedCase) -> None:
    write_prepared(tmp_path, case, steps=False)
    back = read_prepared(tmp_path, "case 1")
    assert np.array_equal(back.image, case.image)
    assert back.image.dtype == np.float32
    assert np.array_equal(back.label, case.label)
    assert back.label.dtype == np.int8
    assert {value: where.tolist() for value, where in back.class_voxels.items()} == {
        value: where.tolist() for value, where in case.class_voxels.items()
    }
    assert (prepared_ids(tmp_path), stored_hash(tmp_path, "case 1")) == (("case 1",), "abc")
    assert stored_hash(tmp_path, "other") is None


def test_a_box_is_read_without_the_rest(tmp_path: Path, case: PreparedCase) -> None:
    write_prepared(tmp_path, case, steps=False)
    image, label = open_prepared(tmp_path, "case 1")
    assert np.array_equal(image[:, 3:9, 60:70, 2:4], case.image[:, 3:9, 60:70, 2:4])
    assert np.array_equal(label[3:9, 60:70, 2:4], case.label[3:9, 60:70, 2:4])


def test_class_voxels_are_a_bounded_choice_of_the_class() -> None:
    label = np.zeros((4, 4, 4), np.int8)
    label[:2] = 3
    label[3, 3, 3] = 5
    label[3, 0, 0] = -1
    found = class_voxels(label, 6, np.random.default_rng(1))
    assert {value: len(where) for value, where in found.items()} == {3: 6, 5: 1}
    assert all(label[tuple(where)] == 3 for where in found[3])
    assert found[5].tolist() == [[3, 3, 3]]
    assert len({tuple(where) for where in found[3].tolist()}) == 6
    assert class_voxels(np.zeros((2, 2, 2), np.int8), 6, np.random.default_rng(1)) == {}


def test_a_case_without_its_last_file_is_not_there(tmp_path: Path, case: PreparedCase) -> None:
    write_prepared(tmp_path, case)
    (tmp_path / "cases" / "case 1" / "case.json").unlink()
    assert prepared_ids(tmp_path) == ()


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "voxels.npy.gz"])
@pytest.mark.parametrize("kept", [None, 0, 40, -30])
def test_a_missing_or_truncated_file_is_named(tmp_path: Path, case: PreparedCase, name: str, kept: int | None) -> None:
    write_prepared(tmp_path, case)
    path = tmp_path / "cases" / "case 1" / name
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[:kept])
    rule = "stored voxel positions" if name == "voxels.npy.gz" else "a blosc2 array"
    with pytest.raises(DataError) as caught:
        read_prepared(tmp_path, "case 1")
    assert str(caught.value).startswith(f"{path}: expected {rule}, got ")
    assert str(caught.value).endswith(". Delete the case's folder and run `volseg preprocess` again.")


@pytest.mark.parametrize("damage", [b"\0", b"\xff"])
def test_damage_inside_a_chunk_is_named_when_it_is_read(tmp_path: Path, case: PreparedCase, damage: bytes) -> None:
    write_prepared(tmp_path, case)
    path = tmp_path / "cases" / "case 1" / "image.b2nd"
    info = {key: value for key, value in read_info(tmp_path, "case 1").items() if key != "checksums"}
    path.with_name("case.json").write_text(json.dumps(info))  # as older versions wrote it
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + damage * 400 + content[half + 400 :])
    image, _ = open_prepared(tmp_path, "case 1")
    assert image.shape == case.image.shape
    for read in (
        lambda: image[...],
        lambda: image.load(torch.device("cpu")),
        lambda: read_prepared(tmp_path, "case 1"),
    ):
        with pytest.raises(DataError, match=r"image.b2nd: expected a blosc2 array, got .* `volseg preprocess` again"):
            read()


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "voxels.npy.gz"])
def test_a_changed_byte_anywhere_is_found_before_a_voxel_is_read(tmp_path: Path, case: PreparedCase, name: str) -> None:
    write_prepared(tmp_path, case)
    path = tmp_path / "cases" / "case 1" / name
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 40).astype(int).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match=f"{name}: expected .*, got another content than was prepared. Delete the"):
            read_class_voxels(tmp_path, "case 1") if name == "voxels.npy.gz" else open_prepared(tmp_path, "case 1")
    path.write_bytes(content)
    assert np.array_equal(read_prepared(tmp_path, "case 1").label, case.label)


def test_arrays_of_other_cases_are_refused(tmp_path: Path, case: PreparedCase) -> None:
    write_prepared(tmp_path, case)
    home = tmp_path / "cases" / "case 1"
    (home / "image.b2nd").write_bytes(packed(case.image[:, 1:]))
    info = read_info(tmp_path, "case 1")
    (home / "case.json").write_text(json.dumps({key: value for key, value in info.items() if key != "checksums"}))
    with pytest.raises(
        DataError, match=r"case 1: expected an image and its label map, got shapes \(2, 19, 70, 9\) and"
    ):
        open_prepared(tmp_path, "case 1")


@pytest.mark.parametrize(
    "wrong", [{"group": ["a"]}, {"images": "a"}, {"hash": 3}, {"trace": []}, {"checksums": {"image.b2nd": 1}}]
)
def test_entries_of_another_type_are_named(tmp_path: Path, case: PreparedCase, wrong: dict[str, object]) -> None:
    write_prepared(tmp_path, case)
    path = tmp_path / "cases" / "case 1" / "case.json"
    path.write_text(json.dumps({**read_info(tmp_path, "case 1"), **wrong}))
    with pytest.raises(VolsegError, match=rf"case.json: {next(iter(wrong))}.*: expected .* Delete the case's folder"):
        open_prepared(tmp_path, "case 1")


def test_damaged_voxels_inside_the_archive_are_named(tmp_path: Path, case: PreparedCase) -> None:
    write_prepared(tmp_path, case)
    path = tmp_path / "cases" / "case 1" / "voxels.npy.gz"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(20) + content[80:])
    with pytest.raises(DataError, match=r"voxels.npy.gz: expected stored voxel positions, got .* `volseg preprocess`"):
        read_class_voxels(tmp_path, "case 1")


@pytest.mark.parametrize("content", [b"", b'{"hash": "ab', b"[1]", b"\xff\xfe", b'{"hash": 3}'])
def test_a_damaged_case_json_means_that_the_case_is_made_again(
    tmp_path: Path, case: PreparedCase, content: bytes
) -> None:
    write_prepared(tmp_path, case)
    path = tmp_path / "cases" / "case 1" / "case.json"
    path.write_bytes(content)
    assert stored_hash(tmp_path, "case 1") is None
    if b"3" not in content:
        with pytest.raises(VolsegError, match=r"case.json: (content: )?expected "):
            read_info(tmp_path, "case 1")


# Intensities in 16 bits, on disk and in memory.


@pytest.mark.parametrize(
    ("largest", "step"),
    [
        (1.0, 2.0**-14),  # 1 / 2^-14 = 16384 fits into 32767, 1 / 2^-15 does not
        (-6.4, 2.0**-12),
        (63.99, 2.0**-9),
        (64.0, None),  # steps of 2^-8 would be off by up to 0.002
        (0.0, 2.0**-9),
    ],
)
def test_the_step_is_the_smallest_power_of_two_that_holds_the_largest(largest: float, step: float | None) -> None:
    assert step_of(np.array([[[[0.0, largest]]]], np.float32)) == step


def test_intensities_come_back_within_half_a_step_and_zero_exactly(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 3, (2, 40, 70, 33)).astype(np.float32)
    image[0, :5] = 0.0
    step = step_of(image)
    assert step is not None
    (tmp_path / "image.b2nd").write_bytes(packed(image, step))
    array = open_array(tmp_path / "image.b2nd")
    assert (array.shape, array.step, array.nbytes) == (image.shape, step, 2 * image.size)
    back = array[...]
    assert back.dtype == np.float32
    assert np.abs(back - image).max() <= step / 2 < 0.001
    assert not back[0, :5].any()
    box = (slice(None), slice(3, 9), slice(60, 70), slice(2, 4))
    assert np.array_equal(array[box], back[box])
    held = array.load(torch.device("cpu"))
    assert isinstance(held, QuantizedTensor)
    assert held.values.dtype == torch.int16
    assert held.shape == image.shape
    assert torch.equal(held[box], torch.from_numpy(back[box]))


def test_whole_numbers_are_stored_as_they_are(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(-1, 3, (20, 70, 9)).astype(np.int8)
    (tmp_path / "label.b2nd").write_bytes(packed(label))
    array = open_array(tmp_path / "label.b2nd")
    assert array.step is None
    assert np.array_equal(array[...], label)
    assert array[...].dtype == np.int8
    held = array.load(torch.device("cpu"))
    assert isinstance(held, torch.Tensor)
    assert np.array_equal(held.numpy(), label)


def test_wide_intensities_are_stored_as_they_are(tmp_path: Path) -> None:
    image = np.array([[[[0.5, 1e6]]]], np.float32)
    (tmp_path / "image.b2nd").write_bytes(packed(image, step_of(image)))
    assert open_array(tmp_path / "image.b2nd")[...].tolist() == image.tolist()


@pytest.mark.parametrize(("kind", "largest", "stored"), [(np.uint8, 255, np.uint8), (np.uint16, 300, np.int16)])
def test_what_a_first_stage_found_comes_back(tmp_path: Path, kind: type, largest: int, stored: type) -> None:
    found = np.random.default_rng(0).integers(0, largest + 1, (20, 70, 9)).astype(kind)
    assert stage_map_hash(tmp_path, "case 1") is None
    write_stage_map(tmp_path, "case 1", found, "abc")
    assert stage_map_hash(tmp_path, "case 1") == "abc"
    back = open_stage_map(tmp_path, "case 1", found.shape)
    assert np.array_equal(back[...], found)
    assert back.packed.dtype == stored
    assert torch.equal(back.load(torch.device("cpu")).int(), torch.from_numpy(found.astype(np.int32)))
    with pytest.raises(DataError, match=r"stage map: expected the shape of the prepared case, \(20, 70, 8\)"):
        open_stage_map(tmp_path, "case 1", (20, 70, 8))


def test_a_stage_map_that_is_damaged_or_gone_is_told_of(tmp_path: Path) -> None:
    write_stage_map(tmp_path, "a", np.ones((4, 5, 6), np.uint8), "abc")
    content = bytearray((tmp_path / "a.b2nd").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.b2nd").write_bytes(content)
    with pytest.raises(DataError, match="stage map: expected what the first stage found, got a damaged one"):
        open_stage_map(tmp_path, "a", (4, 5, 6))
    (tmp_path / "a.b2nd").unlink()
    assert stage_map_hash(tmp_path, "a") is None  # so that the next training makes it again
    with pytest.raises(DataError, match="got none"):
        open_stage_map(tmp_path, "a", (4, 5, 6))
