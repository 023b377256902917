"""The plan as a file: YAML that a person can read and edit, with the reason for every choice as a comment."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.core.errors import VolsegError
from pipeline.core.files import write_text
from pipeline.preprocess.plan import Plan

__all__ = ["PLAN_FILE", "read_plan", "write_plan"]

PLAN_FILE = "plan.yaml"
"""Its name in a prepared folder."""

_WIDTH = 110
_HEADER = """\
# How this dataset is prepared and which patches fit it. Patches, batches and class weights may be edited at any time;
# after any other change the cases have to be prepared anew: volseg preprocess DATASET -o FOLDER --plan THIS_FILE.
"""


class _Dumper(yaml.SafeDumper):
    """Sizes and other lists of plain values on one line, all else in blocks."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        """A sequence."""
        nested = any(isinstance(value, (dict, list)) for value in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=not nested)


_Dumper.add_representer(list, _Dumper.represent_list)


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan, its reasons as comments above their keys.

    Args:
        plan: The plan.
        path: The file.

    Raises:
        VolsegError: If it cannot be written.
    """
    parts = [_HEADER]
    for key, value in plan.model_dump(mode="json", exclude={"reasons"}).items():
        reason = plan.reasons.get(key, "")
        comment = "".join(f"# {line}\n" for line in textwrap.wrap(reason, _WIDTH, break_on_hyphens=False))
        parts.append(comment + yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=_WIDTH))
    write_text(path, "\n".join(parts))


def read_plan(path: Path) -> Plan:
    """Read and validate a plan that a person may have edited.

    Args:
        path: The file.

    Raises:
        VolsegError: If it is missing, no YAML or not a plan, naming the first wrong key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise VolsegError(
            f"{path}: expected a plan, got nothing there. Run `volseg preprocess` first, or check the path."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        got = " ".join(str(error).split())
        raise VolsegError(f"{path}: expected a plan in YAML, got {got}. Correct it, or delete it.") from None
    try:
        if not isinstance(content, dict):
            raise VolsegError(f"{path}: expected keys with values, got {type(content).__name__}. Correct it.")
        return Plan.model_validate({**content, "reasons": _reasons(text)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VolsegError(
            f"{path}: {where}: expected a valid plan, got {first['input']!r} ({first['msg']}). "
            "Correct it or run `volseg preprocess` again."
        ) from None


def _reasons(text: str) -> dict[str, str]:
    """Comments that stand right above a key."""
    reasons, comment = {}, list[str]()
    for line in text.splitlines():
        key = re.match(r"(\w+):", line)
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
            continue
        if key and comment:
            reasons[key[1]] = " ".join(comment)
        comment = []
    return reasons
