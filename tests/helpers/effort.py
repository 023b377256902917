"""How much a test tries: little in every run of the suite, much where ``make test-long`` asks for it."""

from __future__ import annotations

import os


def tries(short: int, long: int) -> int:
    """Number of inputs or moments that a test marked ``long`` tries."""
    return long if os.environ.get("VOLSEG_LONG") else short
