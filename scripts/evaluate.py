"""``python scripts/evaluate.py …`` is ``volseg evaluate …``: same arguments, same exit codes."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
