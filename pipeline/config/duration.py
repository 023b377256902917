"""Lengths of time as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_duration_s"]

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")


def parse_duration_s(text: str) -> float:
    """Length of time in seconds.

    Args:
        text: Numbers with units d, h, m, s, e.g. ``90s``, ``10m``, ``1h30m`` or ``2d``; a number alone is seconds.

    Returns:
        Seconds, above 0.

    Raises:
        ValueError: If the text is not a duration above 0.
    """
    plain = "".join(text.lower().split())
    match = _DURATION.fullmatch(f"{plain}s" if re.fullmatch(_NUMBER, plain) else plain)
    parts = match.groups(default="0") if match else ()
    total = sum(float(part) * unit_s for part, unit_s in zip(parts, (86400.0, 3600.0, 60.0, 1.0), strict=False))
    if not total > 0:
        raise ValueError(f"duration: expected a time such as 90s, 10m or 1h30m, got {text!r}. Write number and unit.")
    return total
