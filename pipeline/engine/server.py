"""What the server of workers imports first: it makes the server end at once.

Tearing down an interpreter that has imported torch takes seconds, for which the command would seem to hang: whoever
reads its output waits until the server has closed it too.
"""

import atexit
import os

atexit.register(os._exit, 0)  # registered first, so it runs after every other; workers end without such functions
