"""Types that the sections of the settings share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

__all__ = ["Positive", "PositiveRange", "Probability", "Range", "Section", "Size", "in_one_form", "rule_of"]

_RULES = {  # pydantic's kinds of error whose own words do not fit behind "expected"
    "dict_type": "keys with values",
    "invalid_key": "a key made of letters",
    "missing": "one more value",
    "model_type": "a section with keys",
}
_SHORTENED = (
    (r"^(Input should be|Tuple should have) |, (unable|got|not) .*$| after validation", ""),
    (r"^greater than or equal to ", "at least "),
    (r"^less than or equal to ", "at most "),
    (r"^greater than ", "more than "),
)

_FORMS = ("literal[", "tuple[")  # what pydantic adds to the path of a value that may be a word or a list


def rule_of(details: ErrorDetails) -> str:
    """What pydantic expected, in words that fit behind "expected"."""
    rule = _RULES.get(details["type"], details["msg"])
    for pattern, words in _SHORTENED:
        rule = re.sub(pattern, words, rule)
    return rule


def in_one_form(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Errors of a value that may be a word or a list, as those of the form that was given: pydantic tells of both."""
    found = []
    for details in errors:
        forms = [n for n, part in enumerate(details["loc"]) if str(part).startswith(_FORMS)]
        if forms:
            whole = details["loc"][: forms[0]]
            words = any(one["loc"] == (*whole, str(one["loc"][-1])) and isinstance(one["input"], str) for one in errors)
            if str(details["loc"][forms[0]]).startswith("literal[") != words:
                continue
            rest = details["loc"][forms[0] + 1 :]
            details = {**details, "loc": (*whole, *rest)}
        found.append(details)
    return found


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError(f"expected 0 <= low <= high, got {list(value)}. Swap or correct them.")
    return value


def _above_zero(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"expected 0 < low <= high, got {list(value)}. Swap or correct them.")
    return value


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Size = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[float, float], AfterValidator(_above_zero)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
