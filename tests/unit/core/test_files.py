from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from pipeline.core import locks
from pipeline.core.documents import read_json
from pipeline.core.errors import VolsegError
from pipeline.core.files import (
    atomic_path,
    copy_file,
    file_hash,
    read_record,
    remove_leftovers,
    text_hash,
    write_bytes,
    write_json,
    write_text,
)

needs_locks = pytest.mark.skipif(locks.fcntl is None, reason="no locks of POSIX")


def fail_with(code: int):
    def raise_error(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return raise_error


def write_half(target: Path, interruption: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise interruption


def test_writing_creates_the_folders_and_nothing_beside_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "note.txt", "Grüße\n")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        str(Path("a", "b", "note.txt"))
    ]
    assert (tmp_path / "a/b/note.txt").read_bytes() == "Grüße\n".encode()


def test_the_temporary_file_lies_beside_the_target_and_keeps_its_suffixes(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "mask.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffixes[-2:] == [".nii", ".gz"]
        temporary.write_bytes(b"x")
        assert not (tmp_path / "mask.nii.gz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize("name", ["n" * 239 + ".nii.gz", "字" * 80 + ".seg.nrrd", "n" * 255])
def test_names_of_any_length_that_a_file_can_have_are_written(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.name.endswith(name[-9:])
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_write_that_breaks_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "new.bin", RuntimeError())
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "old.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target, KeyboardInterrupt())
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", ["write", "sync"])
def test_a_full_disk_is_said_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, code: int
) -> None:
    target = tmp_path / "old.json"
    target.write_text("{}")
    if moment == "sync":
        monkeypatch.setattr(os, "fsync", fail_with(code))
    else:
        monkeypatch.setattr(json, "dump", fail_with(code))
    with pytest.raises(VolsegError) as caught:
        write_json(target, {"a": 1})
    assert str(caught.value) == (f"{target}: the disk is full, nothing was written. Free some space and run again.")
    assert target.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_without_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(Path, "write_bytes", fail_with(code))
    with pytest.raises(VolsegError, match=r"x\.txt: no permission to write there\. Choose another output folder\.$"):
        write_text(tmp_path / "x.txt", "x")


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(VolsegError, match=r"could not be written \(.+\)\. Check the path and the disk\.$"):
        write_text(tmp_path / "file" / "sub" / "x.txt", "x")


def test_a_folder_in_place_of_the_file_is_said_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(VolsegError, match=r"Check the path and the disk|no permission"):
        write_text(tmp_path / "x.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_json_is_readable_utf8_and_comes_back(tmp_path: Path) -> None:
    content = {"organ": "Milz – spleen", "dice": 0.1, "list": [1, None, True]}
    write_json(tmp_path / "x.json", content)
    assert (tmp_path / "x.json").read_bytes().decode() == json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_numbers_it_does_not_know(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"dice": value})
    assert list(tmp_path.iterdir()) == []


def test_reading_json_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match=r"none\.json: expected a JSON file, got nothing there\. Check the path\.$"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(VolsegError, match=r"half\.json: expected JSON, got Expecting value.*Repair or write the file"):
        read_json(tmp_path / "half.json")
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(VolsegError, match=r"latin\.json: expected a JSON file in UTF-8, got 'utf-8'"):
        read_json(tmp_path / "latin.json")
    with pytest.raises(VolsegError, match="expected a readable file"):
        read_json(tmp_path)


def test_text_hash_depends_on_every_part_and_its_boundaries() -> None:
    assert len(text_hash()) == 16
    assert text_hash("ab", "c") == text_hash("ab", "c")
    assert len({text_hash("ab", "c"), text_hash("a", "bc"), text_hash("abc"), text_hash("abc", ""), text_hash()}) == 5


def test_file_hash_is_blake2b_of_the_content(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.bin", b"volume" * 100_000)
    assert file_hash(tmp_path / "x.bin") == hashlib.blake2b(b"volume" * 100_000, digest_size=16).hexdigest()


def test_a_copy_is_a_file_of_its_own_and_a_link_is_not(tmp_path: Path) -> None:
    source, target = tmp_path / "a.bin", tmp_path / "sub" / "b.bin"
    source.write_bytes(b"volume")
    source.chmod(0o444)
    for link in (False, True, True, False):  # each onto what the one before left
        copy_file(source, target, link=link)
        assert target.read_bytes() == b"volume"
        assert target.samefile(source) == link
        assert [path.name for path in target.parent.iterdir()] == ["b.bin"]


def test_without_hard_links_a_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"volume")
    monkeypatch.setattr("os.link", fail_with(errno.EXDEV))
    copy_file(tmp_path / "a.bin", tmp_path / "b.bin", link=True)
    assert (tmp_path / "b.bin").read_bytes() == b"volume"


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"volume")
    (tmp_path / "s.bin").symlink_to(tmp_path / "a.bin")
    for link in (False, True):
        copy_file(tmp_path / "s.bin", tmp_path / "b.bin", link=link)
        assert not (tmp_path / "b.bin").is_symlink()
        assert (tmp_path / "b.bin").read_bytes() == b"volume"


def kill_while_writing(target: Path, content: bytes) -> None:
    process = os.fork()
    if process == 0:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL


@needs_locks
def test_what_a_killed_write_left_goes_with_the_next_write_of_that_file(tmp_path: Path) -> None:
    for name in ("a.json", "n" * 255, "m" + "n" * 254):
        kill_while_writing(tmp_path / name, b"half, and longer than the next")
    assert len(list(tmp_path.iterdir())) == 3
    for name in ("n" * 255, "m" + "n" * 254, "a.json"):
        write_text(tmp_path / name, name)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: name for name in ("a.json", "n" * 255, "m" + "n" * 254)
    }


@needs_locks
def test_a_file_that_another_write_is_at_is_left_to_it(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with atomic_path(target) as first, atomic_path(target) as second:
        first.write_bytes(b"first")
        write_text(target, "third")
        second.write_bytes(b"second")
        assert len({first, second}) == 2
        assert target.read_text() == "third"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "first")]


@needs_locks
def test_a_write_that_begins_as_another_ends_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename, later = tmp_path / "a.json", Path.replace, ExitStack()

    def replace(self: Path, other: Path) -> Path:
        moved = rename(self, other)
        monkeypatch.undo()
        later.enter_context(atomic_path(target)).write_bytes(b"second")
        return moved

    monkeypatch.setattr(Path, "replace", replace)
    write_text(target, "first")
    assert target.read_text() == "first"
    later.close()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "second")]


@needs_locks
def test_a_link_that_a_killed_copy_left_is_not_written_through(tmp_path: Path) -> None:
    source, target = tmp_path / "a.bin", tmp_path / "sub" / "b.bin"
    source.write_bytes(b"volume")
    kill_while_writing(target, b"half")
    (left,) = target.parent.iterdir()
    left.unlink()
    os.link(source, left)
    write_bytes(target, b"other")
    assert source.read_bytes() == b"volume"
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [("b.bin", b"other")]


@needs_locks
@pytest.mark.parametrize("whole", [True, False])
def test_without_locks_files_are_written_under_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    if whole:
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", fail_with(errno.EOPNOTSUPP))
    with atomic_path(tmp_path / "a.json") as first, atomic_path(tmp_path / "a.json") as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "first")]


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    below = "sub/.0123abcd.part.label.b2nd"
    kept = [".0.part.json", ".hidden", "0123abcd.part.plan.yaml", "plan.yaml"]
    for name in [*kept, below, ".0123abcd.part.plan.yaml", ".4567cdef.part.mask.nii.gz"]:
        (tmp_path / name).write_text("half")

    def there() -> list[str]:
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())

    remove_leftovers(tmp_path)
    assert there() == sorted([*kept, below])
    remove_leftovers(tmp_path, deep=True)
    assert there() == sorted(kept)
    remove_leftovers(tmp_path / "missing")


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)

    cases: dict[str, int]


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"cases": [1]}', '{"cases": {"a": "1"}}', '{"cases": {"a": 1}, "more": 1e999}']
)
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    assert read_record(path, _Record) == {}
    path.write_text('{"cases": {"a": 1}, "more": [2]}')
    assert read_record(path, _Record) == read_record(path) == {"cases": {"a": 1}, "more": [2]}
