from __future__ import annotations

import pytest

from pipeline.config import parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("2d", 172_800.0),
        ("1d 2h 3m 4s", 93_784.0),
        ("1.5h", 5400.0),
        (" 5 M ", 300.0),
        ("600", 600.0),
        ("0.5", 0.5),
    ],
)
def test_durations_by_hand(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "m", "0s", "0", "-5m", "10min", "5 days", "nan", "inf", "1h30", "1m2h", "1h-30m", "ten minutes"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration: expected a time such as 90s, 10m or 1h30m, got ") as caught:
        parse_duration_s(text)
    assert repr(text) in str(caught.value)
