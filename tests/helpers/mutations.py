"""Files as damage and strangers make them: values of other types, impossible numbers, cut and changed bytes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import yaml

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2.5, 10**30, -(10**30), 2**63, 1e308, float("inf"), float("nan")),
    *("", "x", "²", "1", "true", "1e400", "9" * 5000, "a" * 5000, "\ud800", "a\0b", "=1+1", "\x1b[31m", "a\nb"),
    *("../../../etc/passwd", "/dev/zero", "C:\\x", "/" + "b" * 300, "c/" * 3000, "2024-13-45", ".inf", "~", "1+2"),
    *([], {}, [[]], {"a": 1}, [None], ["a", 1], {"": ""}, [0] * 1000, {"1": "a", "2": "a"}, [1e30, 1, 1], [1, 2, 3]),
)
_BOMBS = (
    *("&a [*a]", "!!int foo", "!!binary gIGC", "!!python/object:os.system x", "[" * 5000, "1" + ":1" * 5000),
    *("? [a]", "*b", "!!timestamp x", "2024-13-45", "{<<: 1}", "0x" + "f" * 5000, "- " * 2000, '"\\ud800"', "\0", "\t"),
)


def mutated(content: Any, generator: random.Random) -> Any:
    """A copy of JSON or YAML content in which one to three values, or keys, are others."""
    content = copy.deepcopy(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            return generator.choice(HOSTILE)
        holder, key = generator.choice(places)
        kind = generator.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, name = generator.choice(places)
            if isinstance(other, (dict, list)) and (name in other if isinstance(other, dict) else name < len(other)):
                holder[key] = copy.deepcopy(other[name])
        elif kind == 2 and isinstance(holder, dict):
            holder[str(generator.choice(HOSTILE))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(generator.choice(HOSTILE))
    return content


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Bytes some of which are cut out, doubled or others."""
    start = generator.randrange(len(content) + 1)
    stop = min(len(content), start + generator.choice((1, 1, 4, 60, 4000)))
    kind = generator.randrange(5)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[stop:]
    if kind == 2:
        return content[:stop] + content[start:]
    if kind == 3:
        return content[:start] + generator.randbytes(stop - start) + content[stop:]
    return (
        content[:start] + bytes(value ^ (1 << generator.randrange(8)) for value in content[start:stop]) + content[stop:]
    )


def mutated_file(name: str, content: bytes, generator: random.Random) -> bytes:
    """Another content of a file, by its name JSON, YAML or anything."""
    form = name.rpartition(".")[2]
    if form not in ("json", "yaml") or generator.random() < 0.25:
        if form == "yaml" and generator.random() < 0.5:  # what no tree of values has
            lines = content.decode().splitlines()
            number = generator.randrange(len(lines))
            lines[number] = f"{lines[number].partition(':')[0]}: {generator.choice(_BOMBS)}"
            return "\n".join(lines).encode()
        return damaged(content, generator)
    if form == "json":
        return json.dumps(mutated(json.loads(content), generator)).encode()
    return yaml.safe_dump(mutated(yaml.safe_load(content), generator)).encode("utf-8", "surrogatepass")


def mutated_override(word: str, generator: random.Random) -> str:
    """Another ``section.key=value``."""
    key, _, value = word.partition("=")
    kind = generator.randrange(4)
    if kind == 0:
        return f"{key}={generator.choice(_BOMBS)}"
    if kind == 1:
        return f"{key}={json.dumps(generator.choice(HOSTILE))}"
    if kind == 2:
        return damaged(word.encode(), generator).decode("utf-8", "surrogateescape")
    return f"{'.'.join([key, *generator.choices(key.split('.'), k=generator.randrange(20))])}={value}"


def _places(content: Any) -> Any:
    """Every (container, key) of a tree."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from _places(content[key])
