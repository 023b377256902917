"""``volseg`` and ``python -m pipeline``: run the command line, turn errors into sentences and exit codes."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from pipeline.core.errors import Stopped, VolsegError, visible
from pipeline.core.notices import told_to

_USAGE = 1
_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 usage or settings, 2 some cases failed, 3 all failed.

    Args:
        arguments: Words after the program's name; by default those of this process.
    """
    # Waiting threads sleep instead of spinning: 5 to 12 % slower on a quiet machine, 2.6 times as fast on a shared one
    # (benchmarks/wait_policy.py). OpenMP reads it once, so it must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    # Here, because worker processes import this module too and need no command line.
    import typer

    from pipeline.cli.app import app

    usage_error: Any = typer.BadParameter.__base__  # typer carries its own copy of click in newer versions
    # An unset variable of a shell leaves an empty word, and an empty path would be the folder one is in.
    words = sys.argv[1:] if arguments is None else arguments
    empty = next((n for n, word in enumerate(words) if not word.strip() or re.fullmatch(r"--?[\w-]+=", word)), None)
    if empty is not None:
        name = words[empty].strip() or " ".join(words[:empty][-1:])
        advice = "expected a value, got an empty one. Give one, or leave it out."
        typer.secho(f"Error: {visible(name)}: {advice}", fg="red", err=True)
        return _USAGE
    try:
        with told_to(lambda text: typer.secho(f"Note: {text}", fg="yellow", err=True)):
            code = app(args=arguments, standalone_mode=False)
        if code == _INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
            raise KeyboardInterrupt
    except usage_error as error:
        error.show()
        return _USAGE
    except VolsegError as error:
        typer.secho(f"Error: {visible(str(error))}", fg="red", err=True)
        return _USAGE
    except (KeyboardInterrupt, Stopped, typer.Abort) as error:
        typer.secho("Interrupted. What was finished is kept: the same command goes on from there.", err=True)
        return 128 + error.signal if isinstance(error, Stopped) else _INTERRUPTED
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
