"""The output folder of one run."""

import json
from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.core.files import OutputFolder, inside, read_record


def folder(path: Path, source: str = "a") -> OutputFolder:
    return OutputFolder(path, "record.json", {"source": source})


@pytest.mark.parametrize("content", ["", "no JSON", "[1]", '"text"', '{"source": "a"', "\udcff"])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    assert read_record(tmp_path / "record.json") == {}
    (tmp_path / "record.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_record(tmp_path / "record.json") == {}
    assert read_record(tmp_path) == {}


def test_a_new_or_empty_folder_and_that_of_an_earlier_run_are_taken(tmp_path: Path) -> None:
    folder(tmp_path / "new").require_own("an earlier run")
    assert not (tmp_path / "new").exists()
    (tmp_path / ".hidden").touch()
    folder(tmp_path).require_own("an earlier run")
    (tmp_path / "record.json").write_text(json.dumps({"source": "a", "files": ["x"]}))
    (tmp_path / "x").touch()
    found = folder(tmp_path)
    found.require_own("an earlier run")
    assert found.earlier == {"source": "a", "files": ["x"]}
    assert found.record == tmp_path / "record.json"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(VolsegError, match=r"^.*file: output folder: expected a new folder, or my run, got a file\."):
        folder(file).require_own("my run")
    with pytest.raises(VolsegError, match=r"got other files\. Choose another folder, or empty this one\.$"):
        folder(tmp_path).require_own("my run")
    (tmp_path / "record.json").write_text('{"source": "b"}')
    with pytest.raises(VolsegError, match=r"got one with source b\."):
        folder(tmp_path).require_own("my run")
    (tmp_path / "record.json").write_text("damaged")
    with pytest.raises(VolsegError, match=r"got other files\."):
        folder(tmp_path).require_own("my run")


def test_only_expected_files_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    for name in ("a", "sub/b", "sub/.git/config", ".hidden"):
        (tmp_path / name).touch()
    OutputFolder(tmp_path).require_only({tmp_path / "a", tmp_path / "sub" / "b", tmp_path / "c"}, "mine")
    with pytest.raises(VolsegError, match=r"expected mine, got 1 other files such as sub.b\."):
        OutputFolder(tmp_path).require_only({tmp_path / "a"}, "mine")


def test_nothing_outside_is_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep" / "er").mkdir(parents=True)
    (home / "full").mkdir()
    for name in ("outside", "home/a", "home/b", "home/deep/er/c", "home/full/d"):
        (tmp_path / name).touch()
    own = folder(home)
    own.remove(["../outside", str(tmp_path / "outside"), "a", "missing", "deep/er/c"])
    own.remove_empty_folders()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "home",
        "home/b",
        "home/full",
        "home/full/d",
        "outside",
    ]


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc/passwd", "link/outside", "a\0b", "n" * 300, 5, None, ["a"], {}]
)
def test_a_record_names_nothing_outside(tmp_path: Path, name: object) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    (tmp_path / "outside").touch()
    assert inside(home, name) is None
    OutputFolder(home).remove([name])
    assert (tmp_path / "outside").is_file()


def test_what_a_record_names_within(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b.nii") == tmp_path / "a" / "b.nii"
    assert inside(tmp_path, "a/../b") == tmp_path / "a/../b"
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert inside(tmp_path, "here") == tmp_path / "here"


def test_only_own_files_are_overwritten(tmp_path: Path) -> None:
    own, other, new = (tmp_path / name for name in ("own", "other", "new"))
    own.touch()
    other.touch()
    OutputFolder(tmp_path).require_free([own, new], {own}, "an earlier mask")
    with pytest.raises(VolsegError, match=r"other: expected a free place or an earlier mask, got another file\."):
        OutputFolder(tmp_path).require_free([own, other, new], {own}, "an earlier mask")


def test_names_that_a_record_lists(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"source": "a", "files": ["x", 1, "y", null], "other": "x"}')
    assert folder(tmp_path).listed("files") == {"x", "y"}
    assert folder(tmp_path).listed("other") == folder(tmp_path).listed("missing") == set()
