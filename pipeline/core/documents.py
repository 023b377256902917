"""Texts, JSON, YAML and tables from elsewhere: read within bounds, and checked by a model at the door.

Whatever such a file holds, the reader gets a value of the type it asked for, or one sentence that names the file.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.paths import ABSENT, absence, pointer

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails
    from yaml import Node

_MOST_BYTES = 256 << 20  # 20,000 cases with all their entries take some 30 MB
YAML_MB = 1
"""Most megabytes of a YAML file: a plan of a thousand organs has a tenth of it, and reading takes 10 s per MB."""
_MOST_VALUES = 100_000  # of YAML, aliases written out
_MOST_LEVELS = 50
_TAG = "tag:yaml.org,2002:"
_NOT_JSON = {f"{_TAG}{name}" for name in ("binary", "set", "omap", "pairs")}
_LONGEST_NUMBER = 1000  # characters; Python refuses numbers of 4300, and sexagesimal ones take quadratic time
_SHOWN = 60  # characters of a wrong value that a message quotes
_LONGEST_REASON = 300

# Kinds of pydantic's errors whose own words do not fit behind "expected".
_RULES = {
    "int_parsing_size": "a smaller number",
    "dict_type": "keys with values",
    "invalid_key": "a key made of letters",
    "missing": "one more value",
    "model_type": "a section with keys",
}
# What is cut off pydantic's words, or said shorter, so that they fit there.
_SHORTENED = (
    (r"^(Input should be|Tuple should have) |, (unable|got|not) .*$| after validation", ""),
    (r"^greater than or equal to ", "at least "),
    (r"^less than or equal to ", "at most "),
    (r"^greater than ", "more than "),
)


def require_regular(path: Path) -> None:
    """Refuse pipes, devices and sockets: reading one may never end. A path that does not exist passes.

    Raises:
        VolsegError: If something else than a file or a folder is there.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it says why
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise VolsegError(
            sentence("file", "a regular file", "a pipe or a device", "Copy its content into a file", file=path)
        )


def read_text(path: Path | str, kind: str = "a text file", missing: str = "Check the path.", most_mb: int = 256) -> str:
    """Read UTF-8 text of bounded size; ``kind`` and ``missing``, the advice if nothing is there, are for messages.

    Raises:
        VolsegError: If the file is missing, cannot be read, is not UTF-8, larger, or a pipe or device.
    """
    path, most_bytes = Path(path), min(_MOST_BYTES, most_mb << 20)
    require_regular(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise VolsegError(f"{path}: expected {kind} of at most {most_mb} MB, got more. Check the path.")
        if kept := pointer(content):
            raise VolsegError(f"{path}: expected {kind}, got {kept[0]}. {kept[1]}.")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        got, advice = absence(path) or (ABSENT, "")
        raise VolsegError(f"{path}: expected {kind}, got {got}. {missing if got == ABSENT else f'{advice}.'}") from None
    except UnicodeDecodeError as error:
        raise VolsegError(f"{path}: expected {kind} in UTF-8, got {error}. Repair or write the file again.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        detail = getattr(error, "strerror", None) or str(error)
        raise VolsegError(f"{path}: expected a readable file, got {detail!r}. Check path and permissions.") from None


def read_json(path: Path | str, missing: str = "Check the path.", *, kind: Any = None) -> Any:
    """Read JSON; ``missing`` is the advice if the file is not there, a full sentence.

    Args:
        path: The file.
        missing: The advice.
        kind: The type that the content must have: a pydantic model, or anything that pydantic can check, such as
            ``dict[str, int]``. None returns the content as JSON has it.

    Raises:
        VolsegError: If the file is missing, cannot be read, is not JSON, holds a key twice, or is of another type.
    """
    path = Path(path)
    text = read_text(path, "a JSON file", missing)
    try:
        content = json.loads(text, object_pairs_hook=_unrepeated)
        if "\\u" in text:  # half a character; those of file names that are not UTF-8 are none
            json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError:
        raise VolsegError(f"{path}: expected JSON, got too many levels. Write the file again.") from None
    except ValueError as error:  # also of numbers with thousands of digits
        raise VolsegError(f"{path}: expected JSON, got {error}. Repair or write the file again.") from None
    return content if kind is None else conform(content, kind, path)


def compose_yaml(text: str) -> Node | None:
    """The nodes of YAML text, which know their lines; None for an empty one.

    Raises:
        ValueError: With the reason on one line, if it is no YAML, or holds more than 50 levels, 100,000 values (aliases
            written out, so none may lead back to itself), a number of more than 1000 characters or half a character.
    """
    import yaml  # here: most commands read none

    try:
        root = yaml.SafeLoader(text).get_single_node()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:_LONGEST_REASON]) from None
    except RecursionError:
        raise ValueError("too many levels") from None
    if root is not None:
        values, levels = _measured(root, {})
        if values > _MOST_VALUES or levels > _MOST_LEVELS:
            many = f"more than {_MOST_VALUES:,} values, or aliases that lead back to themselves"
            raise ValueError(many if values > _MOST_VALUES else "too many levels")
    return root


def parse_yaml(text: str) -> tuple[Any, list[str]]:
    """Content of YAML text, and one sentence for every key that it gives twice.

    Raises:
        ValueError: As :func:`compose_yaml`, or if a value is not of the type that it seems or claims to be.
    """
    import yaml

    root = compose_yaml(text)
    try:
        content = yaml.SafeLoader("").construct_document(root) if root is not None else None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:_LONGEST_REASON]) from None
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):  # !!int foo, !!bool foo
        raise ValueError("a value that is not of the type it names") from None
    return content, _repeated_keys(root)


def _measured(node: Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values in a node, aliases written out, and its levels; ``known`` are the nodes that were measured before."""
    found = known.get(id(node))
    if found is None:
        known[id(node)] = _MOST_VALUES + 1, 0  # what an alias finds that leads back to here
        children = node.value if isinstance(node.value, list) else ()
        flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        inner = [_measured(child, known) for child in flat]
        if node.tag == f"{_TAG}timestamp":
            node.tag = f"{_TAG}str"  # no key is a date, and a name may look like one
        if node.tag in _NOT_JSON:
            raise ValueError(f"the type !!{node.tag.removeprefix(_TAG)}")
        if isinstance(node.value, str):
            node.value.encode("utf-8")  # half a character, which no file can be written with
            if len(node.value) > _LONGEST_NUMBER and node.tag != f"{_TAG}str":
                raise ValueError(f"a number of {len(node.value)} characters")
        found = known[id(node)] = 1 + sum(n for n, _ in inner), 1 + max((n for _, n in inner), default=0)
    return found


def _repeated_keys(node: Node | None, prefix: str = "") -> list[str]:
    """One problem for every key that a mapping holds twice."""
    problems: list[str] = []
    first: dict[str, int] = {}
    entries = node.value if node is not None and isinstance(node.value, list) else ()
    for key, value in (entry for entry in entries if isinstance(entry, tuple)):  # of a mapping; lists have none
        name, line = f"{prefix}{cut(str(key.value))}", key.start_mark.line + 1
        if name in first:
            problems.append(f"{name}: expected the key once, got it on lines {first[name]} and {line}. Keep one.")
        first.setdefault(name, line)
        problems += _repeated_keys(value, f"{name}.")
    return problems


def conform(content: Any, kind: Any, path: Path | str, advice: str = "Correct or write the file again") -> Any:
    """Content of a file as a value of a type.

    Args:
        content: What JSON, YAML or a table gave.
        kind: A pydantic model, or any type that pydantic can check.
        path: The file, for the message.
        advice: What to do, for the message.

    Raises:
        VolsegError: If it is of another type; the first wrong key is named.
    """
    from pydantic import ValidationError  # here: a tenth of the start of commands that read no such file

    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(cut(str(part)) for part in first["loc"]) or "content"
        if first["type"] == "value_error":
            place = f"{where}: " if first["loc"] else ""  # else the sentence itself says which keys
            raise VolsegError(f"{path}: {place}{first['msg'].removeprefix('Value error, ')}") from None
        got = short(first["input"]) if first["type"] != "missing" else "nothing"
        raise VolsegError(sentence(where, rule_of(first), got, advice, file=path)) from None
    except RecursionError:
        raise VolsegError(sentence("content", "a few levels", "too many", advice, file=path)) from None


def rule_of(details: ErrorDetails) -> str:
    """What pydantic expected, in words that fit behind "expected"."""
    rule = _RULES.get(details["type"], details["msg"])
    for pattern, words in _SHORTENED:
        rule = re.sub(pattern, words, rule)
    return rule


def short(value: object) -> str:
    """A value for a message: its ``repr`` on one line, cut to 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return cut(text)


def cut(text: str) -> str:
    """A text for a message, cut to 60 characters."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _unrepeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is given twice JSON keeps the last value without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} twice")
    return found
