"""``python scripts/preprocess.py …`` is ``volseg preprocess …``: same arguments, same exit codes."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    main(["preprocess", *sys.argv[1:]])
