"""What is said of files that are not there, and which file a name in a list means."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from pipeline.core.documents import read_json
from pipeline.core.errors import DataError, VolsegError
from pipeline.core.paths import absence, composed, entries, is_named, located, real

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 84977953\n"
ANNEX = b"/annex/objects/MD5E-s84977953--4d7a2146.nii.gz\n"
ANNEX_LINK = b"../../.git/annex/objects/4K/9x/MD5E-s849--4d.nii.gz/MD5E-s849--4d.nii.gz"  # on a system without links
NFC, NFD = (unicodedata.normalize(form, "Müller_é") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("content", "got", "advice"),
    [
        (LFS, "a pointer of Git LFS in place of the file", "Fetch the file with git lfs pull"),
        (ANNEX, "a pointer of git-annex in place of the file", "Fetch the file with git annex get or datalad get"),
        (ANNEX_LINK, "a pointer of git-annex in place of the file", "Fetch the file with git annex get or datalad get"),
    ],
)
def test_pointers(tmp_path: Path, content: bytes, got: str, advice: str) -> None:
    file = tmp_path / "a.nii.gz"
    file.write_bytes(content)
    assert absence(file) == (got, advice)
    with pytest.raises(VolsegError) as caught:
        read_json(file)
    assert str(caught.value) == f"{file}: expected a JSON file, got {got}. {advice}."
    file.write_bytes(b"x" * 100 + content)
    assert absence(file) is None


def test_links_to_nowhere(tmp_path: Path) -> None:
    for name, target in (("annex", "../.git/annex/objects/x"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
        assert is_named(tmp_path / name)
    got, advice = absence(tmp_path / "annex") or ("", "")
    assert got == "a link to ../.git/annex/objects/x, which is not there"
    assert advice.startswith("Fetch the file (git annex get, datalad get), mount its disk")
    assert (absence(tmp_path / "loop") or ("",))[0].startswith("a link to loop, which says: Too many levels")
    assert real(tmp_path / "loop") == real(tmp_path) / "loop"
    assert absence(tmp_path / "none") == absence(tmp_path / "none/none") == ("nothing there", "Check the path")
    assert absence(tmp_path / "x\0") == ("an error (embedded null byte)", "Check path and permissions")
    assert absence(tmp_path / ("x" * 300)) == ("an error (File name too long)", "Check path and permissions")
    with pytest.raises(
        VolsegError, match=r"expected a JSON file, got a link to .*, which is not there. Fetch the file"
    ):
        read_json(tmp_path / "annex")


def test_entries(tmp_path: Path) -> None:
    for name in ("b", "._b", "a"):
        (tmp_path / name).touch()
    (tmp_path / "c").symlink_to("nowhere")
    assert [entry.name for entry in entries(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"c: folder: expected a folder that can be listed, got a link to nowhere"):
        entries(tmp_path / "c")


def test_names_as_lists_write_them(tmp_path: Path) -> None:
    home = tmp_path / NFD / "images"
    home.mkdir(parents=True)
    (home / f"{NFD}.nii.gz").touch()
    assert composed(NFD) == NFC
    for name in (f"{NFD}/images/{NFD}.nii.gz", f"{NFC}/images/{NFC}.nii.gz", f"{NFC}\\images\\{NFD}.nii.gz"):
        assert located(tmp_path, name) == home / f"{NFD}.nii.gz"
    assert located(tmp_path, "a\\b.nii") == tmp_path / "a/b.nii"
    assert located(tmp_path, f"{NFC}/none/{NFC}.nii") == tmp_path / NFD / f"none/{NFC}.nii"
    (home / f"{NFC}.nii.gz").touch()  # both forms: each name is its own file
    assert located(home, f"{NFC}.nii.gz").name == f"{NFC}.nii.gz"
    if os.sep == "/":
        (tmp_path / "a\\b.nii").touch()
        assert located(tmp_path, "a\\b.nii") == tmp_path / "a\\b.nii"
