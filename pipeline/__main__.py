"""``python -m pipeline`` is ``volseg``."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
