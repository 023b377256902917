"""The models that come with volseg: model folders in ``pipeline/zoo``, each with a model card and an example.

A model card is the folder's ``README.md``, in the form that Hugging Face has for it: a head of YAML, then Markdown. Its
head is read here. What a model finds, and on which grid, is in its ``model.json``, as for every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.documents import conform, cut, parse_yaml, read_json, read_text, short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.paths import is_named
from pipeline.model.network_options import suggestion
from pipeline.preprocess.plan_file import Plan

ZOO = Path(__file__).parents[1] / "zoo"
"""Folder of the models; nothing is ever written there."""

_CARD = "README.md"
_ADVICE = "Install volseg again"


class CardHead(BaseModel):
    """The head of a model card, as far as volseg reads it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    license: str
    """Of the weights and the example, as SPDX names it, in small letters."""
    segments: str
    modality: str
    dice: float = Field(ge=0, le=1)
    """Mean over organs and cases that the model never saw."""
    cases: int = Field(ge=1)
    """Number of these."""


@dataclass(frozen=True)
class ZooModel:
    """A model that comes with volseg.

    Args:
        name: What ``volseg predict`` takes instead of a folder.
        folder: Its model folder.
        head: Head of its model card.
        text: The rest of its model card, Markdown.
        plan: Its plan: labels, channels, spacing.
    """

    name: str
    folder: Path
    head: CardHead
    text: str
    plan: Plan

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def example(self) -> tuple[Path, Path]:
        """A case that the model never saw: image and reference."""
        image = next((self.folder / "images").iterdir())
        return image, self.folder / "labels" / image.name


def zoo_names() -> tuple[str, ...]:
    """Names of the models that come with volseg, sorted."""
    return tuple(sorted(path.parent.name for path in ZOO.glob("*/model.json")))


def zoo_model(name: str) -> ZooModel:
    """One of the models that come with volseg.

    Raises:
        VolsegError: If there is none of this name, or the installation is damaged.
    """
    names = zoo_names()
    if name not in names:
        raise VolsegError(f"model: expected one of {', '.join(names)}, got {short(name)}. {suggestion(name, names)}")
    folder = ZOO / name
    card = folder / _CARD
    parts = read_text(card, "a model card", f"{_ADVICE}.").split("---\n", 2)
    if len(parts) != 3:
        raise VolsegError(sentence("model card", "a head between two lines ---", "none", _ADVICE, file=card))
    head = conform(parse_yaml(parts[1])[0], CardHead, card, _ADVICE)
    plan = conform(read_json(folder / "model.json")["plan"], Plan, folder / "model.json", _ADVICE)
    return ZooModel(name, folder, head, parts[2].strip(), plan)


def model_folder(model: Path | str) -> Path:
    """The model folder that a user means: what is at this path, else the model of this name that comes with volseg.

    Raises:
        VolsegError: If nothing is there and it is no such name; or if something is there that is no model, and has the
            name of one that comes with volseg.
    """
    path, names = Path(model), zoo_names()
    if is_named(path):
        if str(path) in names and not any(
            is_named(path / name) for name in ("model.json", "ensemble.json", "parts.json")
        ):
            advice = "Rename it or go to another folder, and the model of this name that comes with volseg is taken"
            raise VolsegError(sentence(str(path), "a model folder with model.json", "none", advice))
        return path
    if str(path) in names:
        return ZOO / path
    if path.name == str(path):  # a word: of what looks like a path, whoever reads it says what is missing
        rule = f"a model folder, or a model that comes with volseg ({', '.join(names)})"
        close = suggestion(path.name, names)
        advice = close if "?" in close else "Train one with `volseg train`, or see `volseg models`."
        raise VolsegError(f"{cut(str(path))}: expected {rule}, got nothing there. {advice}")
    return path
