"""``volseg`` and ``python -m pipeline``: run the command line, turn errors into sentences and exit codes."""

from __future__ import annotations

import codecs
import io
import os
import re
import signal
import sys
import threading
import warnings
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from pipeline.core.errors import Stopped, VolsegError, visible
from pipeline.core.lean_monai import lean_monai
from pipeline.core.notices import told_to

_USAGE = 1
_INTERRUPTED = 130
_ENDED = "Interrupted. What was finished is kept: the same command goes on from there."
_PLAIN = {"…": "...", "·": "-", "–": "-", "—": "-", "→": "->", "×": "x", "≤": "<=", "≥": ">=", "±": "+-"}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 usage or settings, 2 some cases failed, 3 all failed.

    Args:
        arguments: Words after the program's name; by default those of this process.
    """
    # Waiting threads sleep instead of spinning: 5 to 12 % slower on a quiet machine, 2.6 times as fast on a shared one
    # (benchmarks/wait_policy.py). OpenMP reads it once, so it must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments is None:  # the process is this command, and no program that calls it
        lean_monai()
    _open_streams()
    warnings.formatwarning = _warning_line
    # SIGTERM ends commands as Ctrl-C does, so that temporary files are removed and workers told.
    if threading.current_thread() is not threading.main_thread():
        sys.exit(_run(arguments))
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    try:
        sys.unraisablehook = _stop_again
        signal.signal(signal.SIGTERM, _stop)
        code = _run(arguments)
    except BaseException as error:
        stop = _stop_behind(error)
        if stop is None:
            raise
        code = 128 + stop.signal
        if sys.stderr is not None:
            sys.stderr.write(f"{_ENDED}\n")
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook
        # What was asked again would come when the command has ended.
        if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _stop:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.exit(code)


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """The stop that an error is, or comes of: in an import, Python and libraries make another error of it."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


class _Unread(io.FileIO):
    """Output that somebody may stop reading, as ``| head`` does: the rest is lost, and the work goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _open_streams() -> None:
    """Let standard output and errors take all that is printed, whatever their encoding, and whoever reads them."""
    codecs.register_error("volseg", _in_plain_characters)
    # Without this a file that is opened next would get the number of a closed stream, and what others print.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Others than Python's own, of tests and notebooks, are left alone.
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue
        if os.name == "nt":
            stream.reconfigure(errors="volseg")
            continue
        with suppress(OSError, ValueError):
            raw = io.BufferedWriter(_Unread(stream.fileno(), "w", closefd=False))
            wrapped = io.TextIOWrapper(raw, stream.encoding, "volseg", line_buffering=stream.line_buffering)
            setattr(sys, name, wrapped)


def _in_plain_characters(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that an encoding lacks: a look-alike, else its number."""
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _PLAIN:
        return _PLAIN[error.object[error.start]], error.start + 1
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


def _warning_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as users see it: the sentence, without the place in the code."""
    return f"{message}\n"


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signal.SIGTERM)


def _stop_again(ignored: sys.UnraisableHookArgs) -> None:
    """Ask again where Python had to drop the request, as it does in callbacks of its own."""
    if isinstance(ignored.exc_value, Stopped) and hasattr(signal, "setitimer"):
        # Not at once: raised here, it would be dropped again.
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(ignored)


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
    except (KeyboardInterrupt, typer.Abort):
        typer.secho(_ENDED, err=True)
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
