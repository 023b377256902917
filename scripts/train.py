"""``python scripts/train.py …`` is ``volseg train …``: same arguments, same exit codes."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
