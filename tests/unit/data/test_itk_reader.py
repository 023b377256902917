"""SimpleITK reads in a process of its own, which a damaged file may end or keep busy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.data import itk_reader, reader_process
from pipeline.data.itk_reader import _READERS, _answer
from pipeline.data.reader_process import Readers
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_header, read_image


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), str(path))
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let headers that are refused before reach SimpleITK: what it cannot stand, no one knows all of."""
    monkeypatch.setattr("pipeline.data.itk_open.check_header", lambda path, case: None)


def deadly(path: Path) -> Path:
    path.write_text("NRRD0004\ntype: uint8\ndimension: 16\nsizes:" + " 1" * 16 + "\nencoding: raw\n\n1")
    return path


def read(path: Path) -> list[int]:
    return read_image(path).array.ravel().tolist()


EXPECTED = np.arange(24).reshape(2, 3, 4).T.ravel().tolist()


def test_this_process_does_not_load_simpleitk(good: Path) -> None:
    code = (
        "import sys; from pipeline.data.volumes import read_image\n"
        f"print(read_image({str(good)!r}).array.max(), 'SimpleITK' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["23.0", "False"]
    assert done.stderr == ""


@pytest.mark.usefixtures("unchecked")
def test_a_file_that_crashes_simpleitk_costs_one_sentence(tmp_path: Path, good: Path) -> None:
    path = deadly(tmp_path / "bad.nrrd")
    for _ in range(2):
        with pytest.raises(VolumeError) as caught:
            read_image(path, case="p7")
        assert str(caught.value) == (
            f"case p7: {path}: file: expected a readable .nrrd volume, got one that ended the process that read it "
            f"(exit code {-signal.SIGSEGV}). Copy or export the file again."
        )
        assert read(good) == EXPECTED


@pytest.mark.usefixtures("unchecked")
def test_a_file_that_keeps_simpleitk_busy_is_given_up(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loop.tif"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3), np.uint8)), str(path))
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    tags = int.from_bytes(content[first : first + 2], "little")
    content[first + 2 + 12 * tags :][:4] = content[4:8]
    content = content[: first + 2 + 12 * tags] + content[4:8] + content[first + 6 + 12 * tags :]
    path.write_bytes(content)
    read(good)
    monkeypatch.setattr(itk_reader, "_HEADER_S", 1.0)
    began = time.monotonic()
    with pytest.raises(VolumeError, match=r"expected a readable \.tif volume, got one that took more than 1 s\."):
        read_image(path)
    assert time.monotonic() - began < 10
    assert read(good) == EXPECTED


def test_the_process_that_was_killed_is_started_again(good: Path) -> None:
    read(good)
    _READERS.waiting[-1].kill()
    _READERS.waiting[-1].wait()
    assert read(good) == EXPECTED


def test_what_is_stopped_leaves_nothing_in_the_pipe(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = open_header(good)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reader_process, "_promised", stop)
        with pytest.raises(KeyboardInterrupt):
            volume.load()
    assert read(good) == EXPECTED


def test_a_file_that_changed_since_its_header_was_read(good: Path) -> None:
    volume = open_header(good)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 5, 5), np.int16)), str(good))
    with pytest.raises(VolumeError, match="got truncated or damaged voxel data"):
        volume.load()
    assert read(good) == [0] * 125


def test_threads_share_the_process(good: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, [good] * 20)) == [EXPECTED] * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_has_a_process_of_its_own(good: Path) -> None:
    read(good)
    here = [process.pid for process in _READERS.waiting]
    with multiprocessing.get_context("fork").Pool(2) as pool:  # daemonic: they may not start processes of their own
        assert pool.map(read, [good] * 4) == [EXPECTED] * 4
    assert [process.pid for process in _READERS.waiting if process.poll() is None] == here
    assert read(good) == EXPECTED


@pytest.mark.parametrize("program", ["", "/usr/bin/false", "/opt/Slicer/SlicerApp", "/no/such/python3"])
def test_where_no_process_can_be_started_this_one_reads(
    good: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    monkeypatch.setattr(itk_reader, "_READERS", Readers("pipeline.data.itk_reader", _answer))
    assert read(good) == EXPECTED
    assert itk_reader._READERS.waiting == []


def test_a_program_that_is_not_python_is_not_taken_for_it(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python-app"
    program.write_text("#!/bin/sh\necho hello; echo world\nexec sleep 20\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(itk_reader, "_READERS", Readers("pipeline.data.itk_reader", _answer))
    monkeypatch.setattr(reader_process, "_START_S", 1.0)
    assert read(good) == EXPECTED
    assert itk_reader._READERS.waiting == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.usefixtures("unchecked")
def test_a_header_that_asks_for_much_memory_gets_none(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "a.mha"
    head = "NDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\nCompressedData = True\n"
    path.write_text(f"{head}CompressedDataSize = 99999999999\nElementDataFile = LOCAL\nxxxx")
    with pytest.raises(VolumeError, match=r"bad_alloc|bad allocation|ended the process"):
        read_image(path)
    assert read(good) == EXPECTED


def test_the_process_ends_with_the_one_that_asks(good: Path) -> None:
    code = (
        "import os; from pipeline.data.volumes import read_image; from pipeline.data.itk_reader import _READERS\n"
        f"read_image({str(good)!r}); print(_READERS.waiting[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    reader = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(reader, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    state = Path(f"/proc/{reader}/stat").read_text()
    assert state.split()[2] == "Z"  # ended, though nobody has asked how
