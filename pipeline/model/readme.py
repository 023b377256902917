"""The model card, ``README.md`` in a model folder: what a model finds, how well, and what it must not be used for.

In the form that Hugging Face has for it: a head of YAML, then Markdown. All in it follows from the model and its
scores, and nothing names a case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.core.documents import parse_yaml, read_text
from pipeline.core.errors import listed
from pipeline.core.files import write_text
from pipeline.core.labels import LabelTable
from pipeline.core.paths import is_named
from pipeline.core.tables import score_cell, text_table
from pipeline.model.manifest import MANIFEST, is_edited, write_manifest
from pipeline.preprocess.plan_file import Normalization, Plan

if TYPE_CHECKING:
    from pipeline.model.folder import ModelCard  # which imports torch; reading a card needs none

README = "README.md"
UNNAMED = "dataset"
"""Name of the dataset in a plan that must not tell where it is from."""

PAINTED = "{} parts, which run one after the other; later ones are painted over earlier ones."
"""What a model of several parts is made of, in words."""

_NAMED = 4  # targets up to which the heading names them all
_INTENSITIES = {
    "zscore": "each image to mean 0 and SD 1",
    "zscore_nonzero": "what is not 0 to mean 0 and SD 1",
    "range": "each image's own range to 0 and 1",
    "none": "as they are",
}


@dataclass(frozen=True)
class KnownScores:
    """Dice of a model on cases.

    Args:
        about: Which cases, in sentences.
        cases: How many.
        mean: Mean over organs of each organ's mean over cases; None if nothing could be scored.
        interval: Its 95 % interval.
        organs: Organ or region → mean over cases and its interval.
    """

    about: str
    cases: int
    mean: float | None
    interval: Sequence[float] | None
    organs: Mapping[str, tuple[float | None, Sequence[float] | None]]


@dataclass(frozen=True)
class Described:
    """What a model card is about.

    Args:
        cards: The description of the model; of an ensemble, or a model of several parts, one each.
        labels: What the model finds.
        made_of: How the descriptions make up the model, in words; empty for a single one.
        networks: How many networks predict together.
        scores: What is known of them.
        license: Of the weights, as SPDX names it; None if it is not known.
    """

    cards: tuple[ModelCard, ...]
    labels: LabelTable
    made_of: str = ""
    networks: int = 1
    scores: KnownScores | None = None
    license: str | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the first description."""
        return self.cards[0].plan


def write_model_card(folder: Path, about: Described, files: Iterable[str]) -> tuple[str, ...]:
    """Write the model card, unless it is not volseg's or someone has edited it, and the manifest.

    Args:
        folder: Model folder, which holds all ``files``.
        about: What the card says.
        files: What predicting with the model reads, relative to the folder.

    Returns:
        Names of the two.
    """
    path = folder / README
    if is_edited(path):
        write_manifest(folder, files)
        return README, MANIFEST
    # In this order, so that a card of a run that was killed is never taken for one that someone edited.
    path.unlink(missing_ok=True)
    text = model_card(about)
    write_manifest(folder, files, text)
    write_text(path, text)
    return README, MANIFEST


def written_card(folder: Path) -> str | None:
    """The model card of a folder, without its head; None if it has none."""
    path = folder / README
    return body_of(read_text(path, "a model card")) if is_named(path) else None


def own_card(folder: Path) -> tuple[str | None, str | None]:
    """Licence and text of the model card of a folder, head included; None for what it has not."""
    path = folder / README
    if not is_named(path):
        return None, None
    text = read_text(path, "a model card")
    try:
        head = parse_yaml(text.split("---\n", 2)[1])[0] if text.startswith("---\n") else {}
    except (IndexError, ValueError):  # notes of someone, which may begin as they like
        head = {}
    licence = head.get("license") if isinstance(head, dict) else None
    return (licence if isinstance(licence, str) else None), text


def body_of(text: str) -> str:
    """A model card without its head, if it has one."""
    parts = text.split("---\n", 2)
    return (parts[2] if len(parts) == 3 and not parts[0] else text).strip()


def model_card(about: Described) -> str:
    """The text of a model card, with its head."""
    head = yaml.safe_dump(_head(about), sort_keys=False, allow_unicode=True, width=10_000)
    sections = (_opening(about), _finds(about), _sees(about), _network(about), _scores(about), _data(about))
    parts = [*sections, _limits(about), _licence(about), _files()]
    return f"---\n{head}---\n" + "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _head(about: Described) -> dict[str, Any]:
    scores = about.scores
    head: dict[str, Any] = {"license": about.license} if about.license else {}
    head |= {"library_name": "volseg", "segments": _title(about.labels), "modality": ", ".join(about.plan.channels)}
    if scores is not None and scores.mean is not None:
        head |= {"dice": round(scores.mean, 4), "cases": scores.cases}
    return head


def _title(labels: LabelTable) -> str:
    kind = "regions" if labels.regions else "organs"
    return ", ".join(labels.targets) if len(labels.targets) <= _NAMED else f"{len(labels.targets)} {kind}"


def _opening(about: Described) -> Iterator[str]:
    yield f"# {_title(about.labels)} in {', '.join(about.plan.channels)}"
    yield ""
    channels = len(about.plan.channels)
    images = "An image has one channel" if channels == 1 else f"An image has {channels} channels, in this order"
    yield f"{images}: {', '.join(about.plan.channels)}. Masks come back on the grid of the image."
    yield ""
    yield "    volseg predict MODEL scan.nii.gz -o masks"


def _finds(about: Described) -> Iterator[str]:
    yield "## What it finds"
    yield ""
    held = about.labels.target_values
    header = ("region", "label values") if about.labels.regions else ("organ", "label value")
    yield from text_table(header, [(name, ", ".join(map(str, values))) for name, values in held.items()])


def _sees(about: Described) -> Iterator[str]:
    plan = about.plan
    grid = f"{_times(plan.shape)} voxels" if plan.shape else f"{_times(plan.spacing_mm)} mm"
    extent = _times([n * mm for n, mm in zip(plan.median_shape, plan.spacing_mm, strict=True)])
    crop = "cropped to what is not 0, " if plan.crop == "nonzero" else ""
    yield "## What it sees"
    yield ""
    yield f"- Grid: turned to {plan.orientation}, {crop}resampled to {grid}."
    for channel, entry in zip(plan.channels, plan.normalization, strict=True):
        yield f"- Intensities of {channel}: {_intensities(entry)}."
    yield f"- A median training case measures {extent} mm."


def _intensities(entry: Normalization) -> str:
    if entry.scheme != "ct":
        return _INTENSITIES[entry.scheme]
    clipped = f"clipped to {entry.low:g} to {entry.high:g}, then " if entry.low is not None else ""
    return f"{clipped}minus {entry.mean:g}, divided by {entry.sd:g}"


def _network(about: Described) -> Iterator[str]:
    yield "## Network"
    yield ""
    for card in about.cards:
        spec, infer = card.network, card.settings.infer
        numbers = sum(parameter.numel() for parameter in spec.structure().parameters())
        first = ", which also sees what a first stage found" if card.plan.cascade else ""
        windows = f"windows of {_times(spec.patch_size)} voxels overlap by {infer.overlap:g}"
        mirrored = ", mirror images are averaged" if infer.mirror else ""
        yield f"- {spec.name} in {spec.dims}D, {numbers:,} parameters{first}; {windows}{mirrored}."
    if about.made_of:
        yield f"- {about.made_of}"
    if about.networks > len(about.cards):
        yield f"- {about.networks} networks in all: those of several folds are averaged."


def _scores(about: Described) -> Iterator[str]:
    yield "## Scores"
    yield ""
    if about.scores is None:
        yield "None are known. `volseg evaluate` gives them, on cases of yours that the model never saw."
        return
    scores = about.scores
    rows = [(name, score_cell(mean), _interval(interval)) for name, (mean, interval) in scores.organs.items()]
    yield scores.about
    yield ""
    yield from text_table(("organ", "Dice", "95 % interval"), rows)
    yield ""
    yield f"Mean over organs {score_cell(scores.mean, 4)} ({_interval(scores.interval)}), {scores.cases} cases."


def _data(about: Described) -> Iterator[str]:
    yield "## Data and origin"
    yield ""
    names = dict.fromkeys(card.plan.dataset for card in about.cards if card.plan.dataset != UNNAMED)
    yield f"- Training data: {', '.join(names) or 'not named'}."
    told = dict.fromkeys(f"- {key}: {value}" for card in about.cards for key, value in card.provenance.items())
    yield from told


def _limits(about: Described) -> Iterator[str]:
    plan = about.plan
    extent = _times([n * mm for n, mm in zip(plan.median_shape, plan.spacing_mm, strict=True)])
    yield "## Limits"
    yield ""
    yield f"- It knows {', '.join(plan.channels)}, as its training data show it. Other scanners, protocols, ages and"
    yield "  diseases may give worse masks, without a word."
    yield f"- It expects to see about {extent} mm. Elsewhere in the body it may find organs where there are none."
    one_sided = about.labels.one_sided()
    if one_sided:
        yield f"- On one side only: {listed(one_sided)}. Check left and right."
    yield "- Scores are means; single cases are worse. Look at every mask."
    yield "- It is for research, and no medical device."


def _licence(about: Described) -> Iterator[str]:
    yield "## Licence"
    yield ""
    unknown = "Not stated. Ask whoever trained the model before you use it or hand it on."
    yield f"The weights are under {about.license}." if about.license else unknown


def _files() -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "`volseg model verify MODEL` compares the files with `manifest.json`, and the weights with the network."


def _interval(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-"


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.0f}" if number >= 100 else f"{number:.3g}" for number in numbers)
