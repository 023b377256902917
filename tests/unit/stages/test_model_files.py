from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.stages.model_files import LOCK_FILE, alone_in
from pipeline.train.distributed import Processes

FIRST, SECOND = Processes(0, 2), Processes(1, 2)


def test_what_the_first_process_finds_holds_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, str] = {}
    monkeypatch.setattr(Processes, "gathered", lambda self, mine: told | dict(mine))
    with alone_in(tmp_path):
        for process in (FIRST, SECOND):
            with (
                pytest.raises(VolsegError, match="the only one in its folder, got another"),
                alone_in(tmp_path, process),
            ):
                pytest.fail("two trainings in one folder")
            told["0"] = f"{tmp_path}: training: expected to be the only one in its folder, got another."
    told["0"] = ""
    with alone_in(tmp_path, FIRST), alone_in(tmp_path, SECOND):
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home, rule = tmp_path / "file" / "fold_0", r"file/fold_0: model folder: expected one that can be written, got"
    with pytest.raises(VolsegError, match=rule), alone_in(home):
        pytest.fail("no folder")
    assert not (tmp_path / "file" / LOCK_FILE).exists()


def test_the_lock_outlives_a_training(tmp_path: Path) -> None:
    """Versions of filelock from 3.20.4 to 3.29.4 remove it, which can let in two trainings at once."""
    with alone_in(tmp_path):
        before = (tmp_path / LOCK_FILE).stat().st_ino
    assert (tmp_path / LOCK_FILE).stat().st_ino == before
