"""Commands one after the other in one process, so that it imports PyTorch once; ``test_several_processes.py`` has
torchrun start two of it.

    python trainings.py '[["train", …], ["train", …]]'
"""

from __future__ import annotations

import json
import sys

from pipeline.__main__ import main

for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise
