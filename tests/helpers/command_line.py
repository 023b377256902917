"""The command line in this process, as tests call it."""

from __future__ import annotations

import pytest

from pipeline.__main__ import main


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of one command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return int(stop.value.code or 0), out, " ".join(err.split())
