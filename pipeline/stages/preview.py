"""A picture of the patches that a training would see.

:func:`strongest_changes` makes every augmentation alone and as strong as the settings allow, so that a person can judge
the settings. :class:`PatchMaker` cuts the patches of a training's first batches and augments them as training does.
:func:`preview` draws both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config.settings import AugmentSettings, Settings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import signature, write_bytes
from pipeline.core.grid import orientation_change, reorient_array
from pipeline.core.planes import ORDER
from pipeline.data.prepared_cases import read_info
from pipeline.data.volume_file import RGB, is_picture
from pipeline.model.automatic import decide
from pipeline.model.folder import ModelCard
from pipeline.model.spec import NetworkSpec, design_network
from pipeline.preprocess.plan_file import PLAN_FILE, Plan, read_plan
from pipeline.report.overlay import SEEN
from pipeline.report.page import Picture, Table, write_picture_page
from pipeline.report.patch_picture import PatchRow, PatchScene, PatchView, draw_patches
from pipeline.sample import spatial
from pipeline.sample.augment import PatchGeometry, augment, draw_moves
from pipeline.sample.patches import Patch
from pipeline.sample.randomness import BatchRandom
from pipeline.sample.spatial import Move, coarse_axis
from pipeline.stages.model_files import PreparedFolds
from pipeline.stages.train import patch_geometry, patch_source
from pipeline.train.loader import Pair, PatchSource

# What augmentation draws: name, key of its probability, key of its range.
_STEPS: tuple[tuple[str, str, str], ...] = (
    ("zoom", "scale_p", "scale"),
    ("noise, variance", "noise_p", "noise_variance"),
    ("noise, SD", "noise_p", "noise_sd"),
    ("blur, SD", "blur_p", "blur_sigma_voxels"),
    ("brightness", "brightness_p", "brightness"),
    ("contrast", "contrast_p", "contrast"),
    ("low resolution", "low_resolution_p", "low_resolution"),
    ("gamma", "gamma_p", "gamma"),
    ("inverted gamma", "gamma_invert_p", "gamma"),
)
_LARGEST = ("noise_variance", "noise_sd", "blur_sigma_voxels")  # of these ranges only one end is strong
_SMALLEST = ("low_resolution",)
_NAMED = 6  # organs named in the line above a patch
_VERSIONS = 4  # augmented versions of every patch, the first as training gets it
_OFF = {name: 0.0 for name in AugmentSettings.model_fields if name.endswith("_p")}


@dataclass(frozen=True, eq=False)
class Strongest:
    """One change alone: what and how much (``zoom 0.7``), with which probability, and image (C, *S) and label (*S)."""

    name: str
    probability: float
    image: Tensor
    label: Tensor


def strongest_changes(
    cut: Callable[[Mapping[int, Move]], Pair],
    settings: AugmentSettings,
    seed: int,
    *,
    axis: int,
    geometry: PatchGeometry,
) -> Iterator[Strongest]:
    """Make every change alone, at each end of its range; also those of probability 0.

    Args:
        cut: Cuts the patch as a batch of one, as it is or moved: images (1, C, *S) and class indices (1, *S).
        settings: Probabilities and ranges.
        seed: Of noise and elastic deformation.
        axis: Axis of S to rotate about; in 2D it has no say.
        geometry: The axes of S.

    Yields:
        Rotation, elastic deformation, the changes of intensity, mirroring.
    """
    (image,), (label,) = cut({})
    size, directions = label.shape, geometry.directions
    degrees = spatial.largest_rotation(settings.rotate_degrees, size, geometry.spacing_mm)
    (turned,), (turned_label,) = cut({0: _rotation(size, degrees, axis, geometry.spacing_mm)})
    yield Strongest(f"rotation {degrees:g}°", settings.rotate_p, turned, turned_label)
    for name, probability, limits in _drawn_changes(settings):
        one = {"flip_axes": (), "enabled": True, "channel_share": 1.0, probability: 1.0}
        alone = settings.model_copy(update={**_OFF, **limits, **one})
        random = BatchRandom(seed, 0, [0])
        images, labels = cut(draw_moves(alone, random, size, geometry))
        (changed,), (moved,) = augment(images, labels, alone, random, geometry, moved=True)
        yield Strongest(name, getattr(settings, probability), changed, moved)
    for place, direction in enumerate(directions):
        if direction in settings.flip_axes:
            swapped = spatial.swap_sides(label.flip(place), geometry.side_pairs if direction == "LR" else ())
            across = ", across slices" if len(directions) == 3 and place == axis else ""
            yield Strongest(f"mirror {direction}{across}", 0.5, image.flip(place + 1), swapped)


def _drawn_changes(settings: AugmentSettings) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Name, key of the probability and range of a single value of what :func:`augment` draws."""
    yield f"elastic, SD {settings.elastic_sigma_voxels:g}, grid {settings.elastic_grid_voxels:g}", "elastic_p", {}
    unused = "noise_sd" if settings.noise_sd is None else "noise_variance"
    for name, probability, limits in _STEPS:
        if limits == unused:
            continue
        for end in _strong_ends(limits, getattr(settings, limits)):
            yield f"{name} {end:g}", probability, {limits: (end, end)}


def _strong_ends(name: str, limits: tuple[float, float]) -> tuple[float, ...]:
    low, high = limits
    if name in _LARGEST:
        return (high,)
    return (low,) if name in _SMALLEST or low == high else (low, high)


def _rotation(size: Sequence[int], degrees: float, axis: int, spacing_mm: Sequence[float]) -> Move:
    """A turn about one axis by the largest angle, as :func:`augment` turns."""
    dims = len(spacing_mm)
    angles = torch.zeros((1, 3 if dims == 3 else 1))
    angles[0, axis if dims == 3 else 0] = math.radians(degrees)
    fixed = spatial.coarse_axis(size, spacing_mm)
    return Move(spatial.affine_matrices(angles, torch.ones(1), spacing_mm, fixed)[0])


@dataclass(frozen=True, eq=False)
class DrawnPatch:
    """A patch of a batch: where it lies and what is in it; image (C, *S) and label (*S) as cut, and as trained on."""

    text: str
    patch: Patch
    image: Tensor
    label: Tensor
    augmented: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PatchMaker:
    """What makes the batches of a training."""

    plan: Plan
    spec: NetworkSpec
    settings: Settings
    source: PatchSource
    geometry: PatchGeometry
    seed: int
    pictures: bool = False

    def first(self, wanted: int) -> list[DrawnPatch]:
        """Some patches of the first batches; of batches that hold more than are wanted, every few."""
        drawn: list[DrawnPatch] = []
        for number in range(self.source.batches_per_epoch(self.settings.train.iterations_per_epoch)):
            batch = self.source.patches(number)
            images, labels, places = self.source.batch(number)
            changed, moved = self.source.augmented(number, 0, self.settings.augment, self.geometry)
            for n in _spread(len(places), wanted - len(drawn)):
                text = f"batch {number + 1}, patch {places[n] + 1} of {len(batch)}"
                text = f"{text} · {self._described(batch[places[n]], labels[n])}"
                drawn.append(DrawnPatch(text, batch[places[n]], images[n], labels[n], (changed[n], moved[n])))
            if len(drawn) >= wanted:
                break
        return drawn

    def versions(self, drawn: DrawnPatch, count: int, seed: int) -> Iterator[PatchView]:
        """A patch augmented: as training gets it, then as it might."""
        yield self.view(*drawn.augmented)
        for number in range(count - 1):
            random = BatchRandom(seed, number, [0])
            images, labels = self.source.changed([drawn.patch], self.settings.augment, random, self.geometry)
            yield self.view(images[0], labels[0])

    def changes(self, drawn: DrawnPatch) -> Iterator[tuple[str, PatchView]]:
        """A patch as cut, then after every change alone, each with a caption of two lines."""
        yield f"as cut\n{drawn.patch.case}", self.view(drawn.image, drawn.label)
        axes = self.plan.axes(self.spec.dims)
        for change in strongest_changes(
            partial(self.source.cut, [drawn.patch]),
            self.settings.augment,
            self.seed,
            axis=axes.index(self.shown_axis) if self.spec.dims == 3 else 0,
            geometry=self.geometry,
        ):
            often = f"in {change.probability:.0%} of patches" if change.probability > 0 else "off (probability 0)"
            yield f"{change.name}\n{often}", self.view(change.image, change.label)

    @property
    def shown_axis(self) -> int:
        """Axis of the volume that shown slices cut: the slices' own, else the one left alone, else up the body."""
        fixed = coarse_axis(self.spec.patch_size, self.geometry.spacing_mm)
        if self.spec.dims == 2:
            return self.plan.slice_axis
        return self.geometry.directions.index("SI") if fixed is None else fixed

    def view(self, image: Tensor, label: Tensor) -> PatchView:
        """A patch in RAS order, that of a picture as it is seen."""
        if self.spec.dims == 2:
            image, label = image.unsqueeze(self.plan.slice_axis + 1), label.unsqueeze(self.plan.slice_axis)
        turned = (
            reorient_array(part.numpy(), self.plan.orientation, SEEN if self.pictures else ORDER)
            for part in (image, label)
        )
        return PatchView(*turned)

    def ras(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Values along the axes of the volume, in RAS order."""
        first, second, third = (values[axis] for axis in orientation_change(self.plan.orientation, ORDER)[0])
        return first, second, third

    def _described(self, patch: Patch, label: Tensor) -> str:
        """Case, position and what is in a patch."""
        spans = (f"{start} to {start + n - 1}" for start, n in zip(patch.start, self.source.target_size, strict=True))
        where = ", ".join(f"{axis} {span}" for axis, span in zip("ijk", spans, strict=True))
        values, counts = np.unique(label.numpy(), return_counts=True)
        share = dict(zip(values.tolist(), (counts / label.numel()).tolist(), strict=True))
        held = sorted((value for value in share if value > 0), key=lambda value: -share[value])
        organs = [f"{self.plan.label_table.organs[value - 1]} {share[value]:.1%}" for value in held[:_NAMED]]
        if len(held) > _NAMED:
            organs.append(f"{len(held) - _NAMED} more")
        unknown = f" · {share[-1]:.0%} without a label" if share.get(-1, 0.0) >= 0.005 else ""
        return f"{patch.case} · {where} · {', '.join(organs) or 'no organ'}{unknown}"


def open_patches(prepared: Path, plan: Plan, settings: Settings, fold: int, seed: int) -> PatchMaker:
    """What makes the batches of a training with these settings, on the CPU and without reading whole cases.

    Raises:
        VolsegError: If there is no such fold, the patch does not fit the network, or a case is damaged.
    """
    # Without a cache, cases are read patch by patch: the same patches, without the time that whole cases take.
    sample = settings.sample.model_copy(update={"cache_mb": 0})
    seeded = settings.train.model_copy(update={"seed": seed})
    settings, _ = decide(plan, settings.model_copy(update={"sample": sample, "train": seeded}))
    spec = design_network(plan, settings.model, sample)
    split = PreparedFolds.read(prepared).fold(fold, plan)
    card = ModelCard(network=spec, plan=plan, settings=settings, provenance={})
    source = patch_source(prepared, split, card, spec.sizes().margin, torch.device("cpu"))
    files = read_info(prepared, split.train[0]).get("images", ())  # those of one case tell of all
    pictures = bool(files) and all(map(is_picture, files))
    return PatchMaker(plan, spec, settings, source, patch_geometry(spec, plan), seed, pictures)


def _spread(count: int, wanted: int) -> list[int]:
    """Places in a batch, evenly spread: the patches forced onto foreground are its last."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


@dataclass(frozen=True)
class Preview:
    """The picture that was drawn, the line above each patch, and the organs in any of them."""

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
    neurological: bool = False,
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
        neurological: Show the patient's left on the left; otherwise on the right, as radiologists do.

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
    scene = replace(_scene(maker, drawn, shown), neurological=neurological)
    _write(out, scene, tuple(each.text for each in drawn))
    return Preview(out, tuple(each.text for each in drawn), tuple(scene.organs[value - 1] for value in scene.seen()))


def _write(out: Path, scene: PatchScene, texts: Sequence[str]) -> None:
    png = draw_patches(scene)
    if out.suffix.lower() == ".png":
        write_bytes(out, png)
        return
    alt = "Patches as cut and as augmented, and every change alone at its strongest; the table says what is in them."
    lines, numbered = scene.heading[1:], tuple((str(n), text) for n, text in enumerate(texts, start=1))
    table = Table("Patches", "Where each lies and what is in it.", ("Patch", "Where and what"), numbered)
    picture = Picture("Patches and augmentation", png, alt, lines)
    write_picture_page(out, scene.heading[0], numbers=(), pictures=[picture], tables=[table], **signature())


def _shown_channel(plan: Plan, name: str | None) -> int | None:
    """Index of the channel to show in grey; None for the colours."""
    if name is None:
        return None if plan.channels == RGB else 0
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
