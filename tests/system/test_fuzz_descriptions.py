"""Descriptions of datasets with something wrong in them: one sentence comes out, whatever it is.

Every mutation follows from its number alone, so a failure can be repeated: ``mutated(Random(number), …)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from effort import tries

from pipeline.core.errors import VolsegError
from pipeline.data.dataset import Dataset
from pipeline.data.layouts import open_dataset
from pipeline.data.prediction_inputs import find_inputs
from pipeline.sample.folds import read_splits

COUNT = tries(20, 1000)  # of every description
IDS = ("a", "b", "c")
TABLE = {"names": {"1": "liver", "2": "11"}, "ignore_label": 3, "channels": ["T1"]}
ENTRIES = [
    {"image": f"imagesTr/{n}_0000.nii.gz", "label": f"labelsTr/{n}.nii.gz", "fold": k % 2, "group": k, "id": n}
    for k, n in enumerate(IDS)
]
NNUNET = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "whole": [1, 2], "edge": [1], "core": 2, "ignore": 3},
    "regions_class_order": [1, 1, 2],
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
LISTED = {n: {"images": [f"imagesTr/{n}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in IDS}

# File → content: JSON, or a text. The first one is what is mutated.
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "decathlon": {
        "dataset.json": {
            "name": "N",
            "modality": {"0": "MR"},
            "labels": {"0": "background", "1": "liver", "2": "12"},
            "training": ENTRIES,
            "test": ["imagesTs/t.nii.gz", {"image": ["imagesTs/u.nii.gz"]}],
            "numTraining": 3,
        }
    },
    "monai": {
        "dataset.json": {
            "labels": {"liver": 1},
            "training": [{key: value for key, value in row.items() if key != "fold"} for row in ENTRIES[:2]],
            "validation": [{"image": "imagesTr/c_0000.nii.gz", "label": "labelsTr/c.nii.gz"}],
        }
    },
    "nnunet": {"dataset.json": NNUNET},
    "nnunet dataset": {"dataset.json": {**NNUNET, "dataset": LISTED}},
    "datalist": {
        "datalist.json": {
            "cases": [
                {"case": n, "image_1": f"imagesTr/{n}_0000.nii.gz", "label": f"labelsTr/{n}.nii.gz", "split": part}
                for n, part in zip(IDS, ("train", "val", "test"), strict=True)
            ],
            "labels": TABLE,
            "regions": {"all": [1, 2], "part": [2]},
            "groups": {"a": "p", "b": 7},
        }
    },
    "list": {"list.json": ENTRIES, "labels.json": TABLE},
    "csv": {
        "datalist.csv": "case,image_1,image_2,label,group,split,fold\n"
        "a,imagesTr/a_0000.nii.gz,x.nii,labelsTr/a.nii.gz,p,,0\nb,b.nii,y.nii,l.nii,q,,1\nt,t.nii,z.nii,,,test,\n",
        "labels.json": TABLE,
    },
    "labels": {"labels.json": {**TABLE, "regions": {"all": [1, 2], "1": [2]}, "regions_class_order": [1, 2]}},
    "flat labels": {"labels.json": {"1": "liver", "spleen": 2, "ignore": 4, "Regions": {"a": [1, 2], "b": 2}}},
    "groups": {"groups.csv": "case,group\na,p\nb,p\nc,q\n", "labels.json": TABLE},
    "splits": {"splits_final.json": [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "validation": ["a"]}]},
}

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**70, -(2**70), 1.5, 1e308, float("inf"), float("nan")),
    *(
        "",
        " ",
        "²",
        "１",
        "-1",
        "1",
        "0",
        "9" * 400,
        "x" * 300,
        "x/" * 3000,
        "a\0b",
        "\x1b[31m",
        "../..",
        ".",
        "/",
        "#",
    ),
    *(
        "imagesTr/a_0000.nii.gz#channel=2of9",
        "a.nii#label=99999999999999999999",
        "$HOME",
        "[",
        "*",
        "background",
        "ü" * 99,
    ),
    *([], {}, [[]], [[[]]], [{}], {"": None}, {"0": {"0": {"0": 0}}}, [None], ["", ""], [1, 2], {"a": 1, "1": "a"}),
    *({"²": "x"}, {"1": 1}, {"background": [0]}, [0] * 50, ["imagesTr/a_0000.nii.gz"] * 3, {"image": 5}),
)
KEYS = (
    *("labels", "names", "channels", "channel_names", "modality", "training", "validation", "test", "cases", "dataset"),
    *("image", "image_1", "image_99999", "label", "fold", "split", "group", "groups", "case", "id", "file_ending"),
    *(
        "regions",
        "Regions",
        "regions_class_order",
        "ignore_label",
        "numTraining",
        "numTest",
        "name",
        "²",
        "",
        "0",
        "ignore",
    ),
)
TEXTS = (
    "\ud800".encode("utf-8", "surrogatepass"),
    b"\\ud800",
    b"\x00",
    b"\xff",
    b"[" * 3000,
    b'"',
    b"{",
    b",",
    b"\n",
    b"9" * 5000,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a JSON value."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [(content, key) for key in keys] + [place for key in keys for place in places(content[key])]


def mutated(random: Random, content: Any) -> bytes:
    """A description with one to three mistakes, as bytes of its file."""
    if not isinstance(content, str):
        tree = json.loads(json.dumps({"": content}))
        for _ in range(random.choice((1, 1, 2, 3))):
            container, key = random.choice(places(tree))
            act, junk = random.randrange(5), json.loads(json.dumps(random.choice(JUNK)))
            if act == 0 and key != "":
                del container[key]
            elif act == 1 and isinstance(container, dict) and key != "":
                container[random.choice(KEYS)] = container.pop(key)
            elif act == 2 and isinstance(container[key], dict):
                container[key][random.choice(KEYS)] = junk
            elif act == 3 and isinstance(container, list):
                container.insert(random.randrange(len(container) + 1), junk)
            else:
                container[key] = junk
        content = json.dumps(tree[""], ensure_ascii=random.random() < 0.5)
    data = bytearray(content.encode("utf-8", "surrogatepass"))
    if random.random() < (0.2 if content[:1] in "{[" else 0.9):
        for _ in range(random.choice((1, 2))):
            at = random.randrange(len(data) + 1)
            data[at : at + random.choice((0, 1, 8, 10**6))] = random.choice(TEXTS)
    return bytes(data)


def outcome(action: Callable[[], Any]) -> str:
    """What came out, or the sentence; anything else than our own errors ends the test."""
    try:
        result = action()
    except VolsegError as error:
        message = str(error)
        assert "object at 0x" not in message
        assert all(len(line) < 3000 for line in message.splitlines()), message
        return message
    return f"{type(result).__name__}"


@pytest.mark.long
@pytest.mark.parametrize("kind", list(DESCRIPTIONS))
def test_mutated_descriptions_end_in_one_sentence(kind: str, tmp_path: Path) -> None:
    for folder, names in {"imagesTr": [f"{n}_0000" for n in IDS], "labelsTr": IDS, "imagesTs": ["t_0000"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.nii.gz").write_bytes(b"x")
    (first, content), *others = DESCRIPTIONS[kind].items()
    for name, other in others:
        (tmp_path / name).write_text(json.dumps(other))
    path = tmp_path / first
    listing = path if first.startswith(("datalist", "list")) else tmp_path
    refused = 0
    for number in range(COUNT):
        path.write_bytes(mutated(Random(f"{kind} {number}"), content))
        if kind == "splits":
            found = [outcome(lambda: read_splits(path, IDS, groups=dict.fromkeys(IDS)))]
        else:
            found = [outcome(lambda: open_dataset(listing)), outcome(partial(find_inputs, [path], 1 + number % 3))]
        refused += found[0] != Dataset.__name__
        assert all(found)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert kind == "splits" or isinstance(open_dataset(listing), Dataset)  # as it was, it is right
    assert refused > 0
