"""``python scripts/predict.py …`` is ``volseg predict …``: same arguments, same exit codes."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
