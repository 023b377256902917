"""What the server of workers imports first: it makes the server start sooner and end at once.

Looking for garbage takes a quarter of the time of importing torch and MONAI, and finds none; matplotlib, which MONAI
takes along, takes an eighth. Tearing down an interpreter that has imported them takes seconds, for which the command
would seem to hang: whoever reads its output waits until the server has closed it too.
"""

import atexit
import gc
import os
import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As ever, except of a worker that was asked for by a process that has ended since: it finds nothing any more."""
    if not issubclass(kind, (FileNotFoundError, EOFError)):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
gc.disable()  # workers enable it again
sys.modules["matplotlib"] = None  # type: ignore[assignment]  # MONAI would import it for notebooks; workers find it again
atexit.register(os._exit, 0)  # registered first, so it runs after every other; workers end without such functions
