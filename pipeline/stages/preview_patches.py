"""The patches of a training's first batches, and what its augmentation makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Settings
from pipeline.core.orientation import reorient_array, steps
from pipeline.data.store import read_info
from pipeline.data.volume_file import is_picture
from pipeline.export.patch_scene import PatchView
from pipeline.export.scene import SEEN
from pipeline.model.spec import NetworkSpec, design_network
from pipeline.preprocess.plan import Plan
from pipeline.sample.augment import augment
from pipeline.sample.patches import Patch
from pipeline.sample.randomness import BatchRandom
from pipeline.sample.spatial import coarse_axis
from pipeline.sample.strongest import strongest_changes
from pipeline.stages.training_data import axes_frame, patch_source, training_split
from pipeline.train.source import PatchSource
from pipeline.train.values import Frame

__all__ = ["DrawnPatch", "PatchMaker", "open_patches"]

_NAMED = 6  # organs named in the line above a patch


@dataclass(frozen=True, eq=False)
class DrawnPatch:
    """A patch of a batch.

    Args:
        text: Where it lies and what is in it.
        patch: Its position.
        image: (C, *S) as cut.
        label: (*S) as cut.
        augmented: Image and label as training gets them.
    """

    text: str
    patch: Patch
    image: Tensor
    label: Tensor
    augmented: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PatchMaker:
    """What makes the batches of a training.

    Args:
        plan: The dataset's plan.
        spec: The network's description.
        settings: All settings.
        source: Patches.
        frame: Axes and left/right pairs.
        seed: Of patches and augmentation.
        pictures: Whether the cases are pictures, which are shown as they look.
    """

    plan: Plan
    spec: NetworkSpec
    settings: Settings
    source: PatchSource
    frame: Frame
    seed: int
    pictures: bool = False

    def first(self, wanted: int) -> list[DrawnPatch]:
        """Some patches of the first batches; of batches that hold more than are wanted, every few."""
        drawn: list[DrawnPatch] = []
        for number in range(self.source.batches_per_epoch(self.settings.train.iterations_per_epoch)):
            batch = self.source.patches(number)
            images, labels, places = self.source.batch(number)
            changed, moved = self._augmented(images, labels, BatchRandom(self.seed, number, places))
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
            images, labels = self._augmented(drawn.image[None], drawn.label[None], random)
            yield self.view(images[0], labels[0])

    def changes(self, drawn: DrawnPatch) -> Iterator[tuple[str, PatchView]]:
        """A patch as cut, then after every change alone, each with a caption of two lines."""
        yield f"as cut\n{drawn.patch.case}", self.view(drawn.image, drawn.label)
        axes = self.plan.axes(self.spec.dims)
        for change in strongest_changes(
            drawn.image,
            drawn.label,
            self.settings.augment,
            self.seed,
            axis=axes.index(self.shown_axis) if self.spec.dims == 3 else 0,
            directions=self.frame.directions,
            side_pairs=self.frame.side_pairs,
            spacing_mm=self.frame.spacing_mm,
        ):
            often = f"in {change.probability:.0%} of patches" if change.probability > 0 else "off (probability 0)"
            yield f"{change.name}\n{often}", self.view(change.image, change.label)

    @property
    def shown_axis(self) -> int:
        """Axis of the volume that shown slices cut: the slices' own, else the one left alone, else up the body."""
        fixed = coarse_axis(self.spec.patch_size, self.frame.spacing_mm)
        if self.spec.dims == 2:
            return self.plan.slice_axis
        return self.frame.directions.index("SI") if fixed is None else fixed

    def view(self, image: Tensor, label: Tensor) -> PatchView:
        """A patch in RAS order, that of a picture as it is seen."""
        if self.spec.dims == 2:
            image, label = image.unsqueeze(self.plan.slice_axis + 1), label.unsqueeze(self.plan.slice_axis)
        turned = (
            reorient_array(part.numpy(), self.plan.orientation, SEEN if self.pictures else "RAS")
            for part in (image, label)
        )
        return PatchView(*turned)

    def ras(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Values along the axes of the volume, in RAS order."""
        first, second, third = (values[axis] for axis in steps(self.plan.orientation, "RAS")[0])
        return first, second, third

    def _augmented(self, images: Tensor, labels: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        frame = self.frame
        return augment(
            images,
            labels,
            self.settings.augment,
            random,
            directions=frame.directions,
            side_pairs=frame.side_pairs,
            spacing_mm=frame.spacing_mm,
        )

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
    sample = settings.sample.model_copy(update={"cache_mb": 0})  # read patch by patch, which gives the same ones
    seeded = settings.train.model_copy(update={"seed": seed})
    spec = design_network(plan, settings.model, sample)
    settings = settings.model_copy(update={"sample": sample, "train": seeded})
    split = training_split(prepared, fold, plan)
    source = patch_source(prepared, split, spec, plan, settings, torch.device("cpu"))
    files = read_info(prepared, split.train[0]).get("images", ())  # those of one case tell of all
    pictures = bool(files) and all(map(is_picture, files))
    return PatchMaker(plan, spec, settings, source, axes_frame(spec, plan), seed, pictures)


def _spread(count: int, wanted: int) -> list[int]:
    """Places in a batch, evenly spread: the patches forced onto foreground are its last."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))
