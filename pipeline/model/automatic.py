"""What ``auto`` means: keys of the settings that a plan decides, each with its reason.

They are decided once, when a training begins. ``model.json`` keeps what was decided and never the word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.settings import Settings
from pipeline.model.registry import NETWORKS
from pipeline.preprocess.plan_file import Plan


@dataclass(frozen=True)
class Choice:
    """What was decided for a key.

    Args:
        key: ``section.key``.
        value: Its value.
        reason: Why, in a few words that may stand behind a colon.
    """

    key: str
    value: Any
    reason: str


def decide(plan: Plan, settings: Settings) -> tuple[Settings, tuple[Choice, ...]]:
    """Put what follows from a plan in place of every ``auto``.

    Args:
        plan: Plan of the dataset.
        settings: As the user gave them.

    Returns:
        The same settings without ``auto``, and what was chosen. Settings that have been decided stay as they are.
    """
    choices = []
    if settings.model.dims == "auto":
        choices.append(Choice("model.dims", *_dims(plan, settings)))
    return _with(settings, choices), tuple(choices)


def choice_lines(choices: Iterable[Choice]) -> list[str]:
    """Lines for the user: choices of one reason stand in one line."""
    together: dict[str, list[str]] = {}
    for choice in choices:
        together.setdefault(choice.reason, []).append(f"{choice.key} {choice.value}")
    return [f"auto: {', '.join(values)}: {reason}" for reason, values in together.items()]


def _dims(plan: Plan, settings: Settings) -> tuple[Literal[2, 3], str]:
    entry = NETWORKS.get(settings.model.name)
    if entry is not None and len(entry.dims) == 1:
        return (2 if entry.dims == (2,) else 3), f"{settings.model.name} has no other"
    if settings.sample.patch_size is not None:
        return (2 if len(settings.sample.patch_size) == 2 else 3), "as sample.patch_size has them"
    if plan.single_slices:
        return 2, "the cases are single slices"
    return 3, "the cases are volumes"


def _with(settings: Settings, choices: Iterable[Choice]) -> Settings:
    """Settings with the values chosen for some keys."""
    changed: dict[str, dict[str, Any]] = {}
    for choice in choices:
        section, key = choice.key.split(".")
        changed.setdefault(section, {})[key] = choice.value
    sections = {name: getattr(settings, name).model_copy(update=keys) for name, keys in changed.items()}
    return settings.model_copy(update=sections)
