"""Settings files: reading, writing, overriding, and errors that name every wrong key at once.

Problems are collected, not raised one by one: keys given twice, wrong ``--set`` texts, and all that pydantic finds.
Each is one sentence led by its YAML path; pydantic's own words are put into that form.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.settings import Settings
from pipeline.core.documents import YAML_MB, cut, parse_yaml, read_text, rule_of, short
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.files import write_text

# What pydantic adds to the path of a value that may be a word or something else.
_FORMS = ("literal[", "tuple[", "constrained-float", "bool")
_MOST = 50  # problems that are told
_DEEPEST = 10  # keys within keys of --set
_Kind = TypeVar("_Kind", bound=BaseModel)


def load_settings(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file and apply ``section.key=value`` overrides.

    Args:
        path: YAML file; None for the defaults.
        overrides: Assignments as on the command line; the value is YAML, e.g. ``sample.patch_size=[96, 96, 64]``.

    Returns:
        The validated settings.

    Raises:
        ConfigError: If the file cannot be read or any key or value is wrong; all problems at once.
    """
    return load_as(Settings, path, overrides)


def load_as(kind: type[_Kind], path: Path | str | None = None, overrides: Sequence[str] = ()) -> _Kind:
    """Read settings of another kind, in sections too, as :func:`load_settings` does."""
    source = str(path) if path is not None else "settings"
    content, problems = _read_yaml(Path(path)) if path is not None else ({}, [])
    problems += [problem for text in overrides if (problem := _apply_override(content, text))]
    try:
        settings = kind.model_validate(content)
    except ValidationError as error:
        # Not all of them: a file may have as many as it has values, and each is compared with all keys there are.
        problems += [_problem(details, kind) for details in _in_one_form(error.errors()[:_MOST])]
    if len(problems) > _MOST:
        problems = [*problems[:_MOST], "… and more. Correct these first."]
    if problems:
        raise ConfigError(problems, source)
    return settings


def save_settings(settings: Settings, path: Path | str | None = None) -> str:
    """The settings as YAML text that :func:`load_settings` reads back; written to ``path`` if given."""
    content = settings.model_dump(mode="json")
    root = yaml.representer.SafeRepresenter(sort_keys=False, default_flow_style=True).represent_data(content)
    # One line per key of a section; lists and options stay on the line of their key.
    for node in (root, *(section for _, section in root.value)):
        node.flow_style = False
    text = yaml.serialize(root, Dumper=yaml.SafeDumper, width=120, allow_unicode=True)
    if path is not None:
        write_text(path, text)
    return text


def json_schema() -> str:
    """JSON schema of the settings file, for completion and checks in editors."""
    return json.dumps(Settings.model_json_schema(), indent=2)


def _read_yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The sections of a file, empty ones as {}, and a problem for every key that is given twice."""
    try:
        content, repeated = parse_yaml(read_text(path, "a YAML file", most_mb=YAML_MB))
    except ValueError as error:
        raise ConfigError([f"expected YAML, got {error}. Correct the file."], str(path)) from None
    except VolsegError as error:
        raise ConfigError([str(error).removeprefix(f"{path}: ")], str(path)) from None
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        raise ConfigError([f"expected sections with keys, got {type(content).__name__}. See configs/."], str(path))
    return {key: {} if value is None else value for key, value in content.items()}, repeated


def _apply_override(content: dict[str, Any], text: str) -> str:
    """Set one key in place; returns a problem or an empty string."""
    key, equals, value = text.partition("=")
    keys, text = key.strip().split("."), cut(text)
    if not equals or not all(keys) or len(keys) > _DEEPEST:
        return f"--set {text}: expected section.key=value, got {text!r}. For example train.learning_rate=3e-4."
    try:
        parsed = _yaml_value(value)
    except ValueError:
        return f"--set {text}: expected a YAML value after =, got {short(value)}. Quote it."
    section: Any = content
    for name in keys[:-1]:
        inner = section.get(name, {}) if isinstance(section, dict) else None
        if inner is None:
            return f"--set {text}: expected a section at {cut(name)}, got a value. Check the key."
        if isinstance(inner, dict):  # a copy: with aliases, one dictionary of a file may stand in two places
            inner = section[name] = dict(inner)
        section = inner
    if not isinstance(section, dict):
        return f"--set {text}: expected a section before {cut(keys[-1])}, got a value. Check the key."
    section[keys[-1]] = parsed
    return ""


def _yaml_value(text: str) -> Any:
    """YAML value; 3e-4, which YAML 1.1 takes for text, is a number as people expect."""
    value, _ = parse_yaml(text)
    if isinstance(value, str) and value == text.strip():  # not in quotes
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _in_one_form(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Of a value that may be a word or not, only the errors of the form that was given: pydantic reports both."""
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


def _problem(details: ErrorDetails, root: type[BaseModel]) -> str:
    """One sentence for one of pydantic's findings, led by its YAML path."""
    path = ".".join(cut(str(part)) for part in details["loc"])
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        known = _keys_at(details["loc"][:-1], root)
        key = str(details["loc"][-1])
        hint = _elsewhere(key, root) or _closest(key, known) or f"Known keys: {', '.join(known)}."
        return f"{path}: unknown key. {hint}"
    if kind == "value_error":
        return f"{path}: {details['msg'].removeprefix('Value error, ')}"
    rule = rule_of(details)
    hint = _closest(str(given), re.findall(r"'(.*?)'", rule)) if kind == "literal_error" else ""
    return f"{path}: expected {rule}, got {short(given)}. {hint or 'Correct the value.'}"


def _elsewhere(key: str, root: type[BaseModel]) -> str:
    """Where a key belongs that stands in the wrong section, or in none."""
    homes = [f"{section}.{key}" for section in root.model_fields if key in _keys_at([section], root)]
    return f"Did you mean {' or '.join(homes)}?" if homes else ""


def _closest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]}?" if close else ""


def _keys_at(location: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    model = root
    for name in location:
        field = model.model_fields.get(str(name))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
