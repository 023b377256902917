"""A picture of the patches that a training would see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Settings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import write_bytes
from pipeline.data.volume_file import COLOURS
from pipeline.export.patch_picture import draw_patches
from pipeline.export.patch_scene import PatchRow, PatchScene
from pipeline.export.picture_page import Picture, Table, write_picture_page
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.stages.preview_patches import DrawnPatch, PatchMaker, open_patches
from pipeline.stages.signature import signature

__all__ = ["Preview", "preview"]

_VERSIONS = 4  # augmented versions of every patch, the first as training gets it


@dataclass(frozen=True)
class Preview:
    """What was drawn.

    Args:
        path: The picture.
        texts: The line above each patch: where it lies and what is in it.
        organs: Organs in any of them.
    """

    path: Path
    texts: tuple[str, ...]
    organs: tuple[str, ...]


def preview(
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    fold: int = 0,
    patches: int = 6,
    seed: int | None = None,
    channel: str | None = None,
) -> Preview:
    """Draw patches of the first batches as cut and augmented, and every change alone at its strongest.

    Batches are made by the code that makes those of a training with these settings, so the patches and their first
    augmented version are its own. Of a batch that holds more than are wanted, every few are taken.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: PNG file to write, or an HTML page with it.
        settings: Sections ``sample``, ``augment``, ``model`` and ``train``.
        fold: Whose training cases.
        patches: How many, at least 1.
        seed: Of patches and augmentation, by default ``train.seed``.
        channel: Which channel to show; by default the first, or all three of colour pictures.

    Raises:
        VolsegError: If there is no prepared dataset, fold or channel, the patch does not fit the network, or the
            picture cannot be written.
    """
    if out.suffix.lower() not in (".png", ".html", ".htm"):
        rule, advice = "a file that ends in .png or .html", "Name it for example preview.png"
        raise VolsegError(sentence("out", rule, str(out), advice))
    plan = read_plan(prepared / PLAN_FILE)
    shown = _shown_channel(plan, channel)
    maker = open_patches(prepared, plan, settings, fold, settings.train.seed if seed is None else seed)
    drawn = maker.first(patches)
    scene = _scene(maker, drawn, shown)
    _write(out, scene, tuple(each.text for each in drawn))
    return Preview(out, tuple(each.text for each in drawn), tuple(scene.organs[value - 1] for value in scene.seen()))


def _write(out: Path, scene: PatchScene, texts: Sequence[str]) -> None:
    png = draw_patches(scene)
    if out.suffix.lower() == ".png":
        write_bytes(out, png)
        return
    alt = "Patches as cut and as augmented, and every change alone at its strongest; the table says what is in them."
    lines = scene.heading[1:]
    table = Table("Patches", "Where each lies and what is in it.", ("Patch", "Where and what"), _numbered(texts))
    picture = Picture("Patches and augmentation", png, alt, lines)
    write_picture_page(out, scene.heading[0], numbers=(), pictures=[picture], tables=[table], **signature())


def _numbered(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((str(n), text) for n, text in enumerate(texts, start=1))


def _shown_channel(plan: Plan, name: str | None) -> int | None:
    """Index of the channel to show in grey; None for the colours."""
    if name is None:
        return None if plan.channels == COLOURS else 0
    if name not in plan.channels:
        raise VolsegError(sentence("channel", f"one of {', '.join(plan.channels)}", name, "Take one of these"))
    return plan.channels.index(name)


def _scene(maker: PatchMaker, drawn: Sequence[DrawnPatch], channel: int | None) -> PatchScene:
    plan, on = maker.plan, maker.settings.augment.enabled
    rows = [
        PatchRow(
            patch.text,
            maker.view(patch.image, patch.label),
            tuple(maker.versions(patch, _VERSIONS, maker.seed + 1 + n)) if on else (),
        )
        for n, patch in enumerate(drawn)
    ]
    fullest = max(drawn, key=lambda patch: (len(np.unique(patch.label)), int((patch.label > 0).sum())))
    left, front, below = (int(lost) for lost in maker.ras(maker.source.margin))
    return PatchScene(
        heading=_heading(maker, len(drawn), channel),
        rows=tuple(rows),
        changes=tuple(maker.changes(fullest)) if on else (),
        spacing_mm=maker.ras(plan.spacing_mm),
        axis=maker.ras((0, 1, 2)).index(maker.shown_axis),
        organs=plan.label_table.organs,
        channel=channel,
        margin=(left, front, below),
        pictures=maker.pictures,
    )


def _heading(maker: PatchMaker, count: int, channel: int | None) -> tuple[str, ...]:
    plan, spec = maker.plan, maker.spec
    size, spacing = " x ".join(map(str, spec.patch_size)), " x ".join(f"{value:.3g}" for value in plan.spacing_mm)
    lines = [f"{plan.dataset}: {count} training {'patch' if count == 1 else 'patches'} of {size} voxels, {spec.dims}D"]
    shown = "red, green and blue" if channel is None else f"channel {plan.channels[channel]}"
    facts = [f"prepared grid {plan.orientation}, {spacing} mm", shown, f"seed {maker.seed}"]
    sides = "as the pictures look" if maker.pictures else "L, R: the patient's left and right"
    lines.append("; ".join([*facts, sides, "striped: no label, no loss"]))
    if any(maker.source.margin):
        lines.append("dashed: what the network gives logits for; around it lies context")
    if not maker.settings.augment.enabled:
        lines.append("augmentation is off (augment.enabled: false)")
    return tuple(lines)
