"""Files from elsewhere: read within bounds, checked at the door, refused with one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from pipeline.core import documents
from pipeline.core.documents import conform, read_json, read_text, short
from pipeline.core.errors import VolsegError


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    count: int = 0


def refused(path: Path, content: str | bytes, kind: object = None) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VolsegError) as caught:
        read_json(path, kind=kind)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_json_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert "the key 'a' twice" in refused(path, '{"a": 1, "b": {"a": 2}, "a": 3}')
    assert "too many levels" in refused(path, "[" * 100_000 + "]" * 100_000)
    assert "Exceeds the limit" in refused(path, "9" * 5000)
    assert "surrogates not allowed" in refused(path, '{"a": "\\ud800"}')
    assert "in UTF-8" in refused(path, b'{"a": "\xff"}')
    assert "expected JSON" in refused(path, "")
    path.write_text('\ufeff{"a": "\\ud83d\\ude00"}')  # a mark that Windows puts first; a pair of halves is a character
    assert read_json(path) == {"a": "😀"}


def test_content_is_checked_by_a_model(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rule = refused(path, '{"name": "a", "count": "2"}', Entry)
    assert rule == "count: expected a valid integer, got '2'. Correct or write the file again."
    assert refused(path, "[1, 2]", Entry).startswith("content: expected")
    assert refused(path, '{"count": 2}', Entry).startswith("name: expected one more value, got nothing.")
    assert refused(path, '{"a": {"b": "c"}}', dict[str, dict[str, int]]).startswith("a.b: expected a valid integer")
    path.write_text('{"name": "a"}')
    assert read_json(path, kind=Entry) == Entry(name="a")
    assert conform({"a": 1}, dict[str, int], path) == {"a": 1}


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(VolsegError, match="expected a regular file, got a pipe or a device"):
            read_json(path)


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VolsegError, match=r"expected a JSON file, got nothing there\. Look elsewhere\."):
        read_json(tmp_path / "none.json", "Look elsewhere.")
    with pytest.raises(VolsegError, match="expected a readable file, got"):
        read_text(tmp_path / "a\0b")
    with pytest.raises(VolsegError, match="expected a readable file, got 'Is a directory'"):
        read_text(tmp_path)
    with pytest.raises(VolsegError, match="File name too long"):
        read_text(tmp_path / ("a" * 300))
    monkeypatch.setattr(documents, "_MOST_BYTES", 3)
    (tmp_path / "a.txt").write_text("four")
    with pytest.raises(VolsegError, match="of at most 256 MB, got more"):
        read_text(tmp_path / "a.txt")


def test_values_are_quoted_short() -> None:
    assert short("a") == "'a'"
    assert short("a" * 100) == f"'{'a' * 59} …"
    assert short(10**5000) == "a int"
