"""What the server of workers imports first: it makes the server start sooner and end at once.

On Linux, ``multiprocessing`` can fork workers from a server process that has done nothing but import libraries. So
torch and MONAI are imported once for all workers, beside the start of the command itself: on two busy processors, two
workers that need them began to work after 4 s. When each imports for itself, it took 17 s.
"""

import atexit
import gc
import os
import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Stay silent if the process that asked for a worker has ended meanwhile; print all other tracebacks."""
    if not issubclass(kind, (FileNotFoundError, EOFError)):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
# Looking for garbage takes a quarter of the time of these imports (3.8 s instead of 2.8 s) and finds none. Workers
# enable it again.
gc.disable()
# MONAI would import matplotlib for notebooks, which takes another tenth. Workers find it again.
sys.modules["matplotlib"] = None  # type: ignore[assignment]
# Tearing down an interpreter that has imported torch takes seconds, in which the command would seem to hang: whoever
# reads its output waits until the server has closed it too. Registered first, this runs after every other function.
atexit.register(os._exit, 0)
