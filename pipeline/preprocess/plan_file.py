"""The plan: how a dataset is prepared and which patches fit it.

Its file is YAML that a person can read and edit, with the reason for every choice as a comment above its key.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.config.settings import Millimetres, Size
from pipeline.core.documents import YAML_MB, conform, cut, parse_yaml, read_text, short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import text_hash, write_text
from pipeline.core.grid import Grid, check_orientation
from pipeline.core.labels import LabelTable
from pipeline.core.regions import PaintingStep
from pipeline.preprocess.conventions import Conventions

_PASSIVE = {
    "cascade",
    "class_weights",
    "dataset",
    "low_resolution",
    "median_shape",
    "patch_2d",
    "patch_3d",
    "reasons",
    "slice_axis",
}
"""Keys that prepared cases do not depend on."""

_LABEL_KEYS = {"names", "ignore_label", "regions", "regions_class_order"}


Intensity = Annotated[float, Field(ge=-1e30, le=1e30)]  # of 32-bit floats


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Normalization(_Value):
    """How one channel's intensities are normalized.

    ``ct``: clip to [low, high], then (x - mean) / sd, all from the dataset's foreground. ``zscore``: mean and SD of
    the image itself. ``zscore_nonzero``: those of the voxels in which some channel is not 0 and of holes in between;
    the others stay 0. ``range``: the image's own range to 0 and 1. ``none``.
    """

    scheme: Literal["ct", "zscore", "zscore_nonzero", "range", "none"]
    mean: Intensity = 0.0
    sd: Annotated[float, Field(ge=1e-20, le=1e30)] = 1.0
    low: Intensity | None = None
    high: Intensity | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low or 0.0) > (self.high or 0.0):
            got, advice = f"{self.low} and {self.high}", "Swap or correct them, or leave both out"
            raise ValueError(sentence("low, high", "low <= high, or none", got, advice))
        return self


class PatchPlan(_Value):
    """Patch and batch of one kind of network; sizes along the axes the network sees."""

    patch_size: tuple[Size, ...]
    batch_size: Size


class LowResolution(_Value):
    """A coarser grid on which a 3D patch sees a quarter of the median case; ``preprocess.resolution: low`` takes it.

    ``cascade`` prepares both.
    """

    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    median_shape: tuple[Size, Size, Size]
    patch_size: tuple[Size, Size, Size]
    batch_size: Size


class Plan(_Value):
    """Everything preprocessing, training and prediction must agree on.

    Args:
        dataset: Name of the dataset.
        channels: Channel names in order.
        labels: ``LabelTable.to_json()`` of the dataset.
        orientation: Axis codes of the prepared data.
        crop: ``nonzero`` or ``none``.
        spacing_mm: Target spacing along the axes of the orientation; with a target shape, its median.
        shape: Voxels that every case is resized to instead, or None.
        image_order: Spline order of image resampling.
        coarse_axis_order: Its order along an axis more than 3 times coarser than the finest.
        store_dtype: Type of stored intensities; int16 counts steps so small that the error stays below 0.001.
        normalization: One entry per channel.
        median_shape: Median shape of the cropped cases at the target spacing.
        slice_axis: Axis across which 2D networks see slices: that of pictures, else the coarsest, the last where they
            tie.
        patch_3d: Patch of 3D networks.
        patch_2d: Patch of 2D networks, along the two other axes.
        low_resolution: A coarser grid for large organs and context, or None where a patch sees enough.
        cascade: Whether 3D networks also see what a first stage, trained on the low resolution, found.
        class_weights: Organ → weight in loss and sampling, for those who ask for them; organs left out weigh 1. None
            where none are proposed.
        conventions: How the network sees images where another tool trained it; None for ours.
        extra: Class names of the user's further MONAI transforms, which must be given again to predict.
        reasons: Why, for each key that was chosen and not copied.
    """

    format_version: Literal[1] = 1
    dataset: str
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: dict[str, Any]
    orientation: Annotated[str, AfterValidator(check_orientation)]
    crop: Literal["nonzero", "none"]
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    shape: tuple[Size, Size, Size] | None = None
    image_order: Literal[0, 1, 3]
    coarse_axis_order: Literal[0, 1, 3] = 0
    store_dtype: Literal["int16", "float32"]
    normalization: tuple[Normalization, ...]
    median_shape: tuple[Size, Size, Size]
    slice_axis: Literal[0, 1, 2]
    patch_3d: PatchPlan
    patch_2d: PatchPlan
    low_resolution: LowResolution | None = None
    cascade: bool = False
    class_weights: Mapping[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] | None = None
    conventions: Conventions | None = None
    extra: tuple[str, ...] = ()
    reasons: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("labels")
    @classmethod
    def _label_table(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value.keys() <= _LABEL_KEYS:
            raise ValueError(
                sentence("keys", f"some of {', '.join(sorted(_LABEL_KEYS))}", short(list(value)), "Correct")
            )
        LabelTable.from_json(value)  # called for its refusals
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        numbers = {
            "normalization": (len(self.normalization), len(self.channels)),
            "patch_3d.patch_size": (len(self.patch_3d.patch_size), 3),
            "patch_2d.patch_size": (len(self.patch_2d.patch_size), 2),
        }
        for key, (there, wanted) in numbers.items():
            if there != wanted:
                raise ValueError(sentence(key, f"{wanted} entries", there, "Correct it"))
        if self.cascade and self.low_resolution is None:
            raise ValueError(sentence("cascade", "false without low_resolution", "true", "Correct one of them"))
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out where there is none: such plans, and the trainings that note them, stay as they were before the keys.
        content: dict[str, Any] = handler(self)
        for key in ("cascade", "conventions"):
            if not getattr(self, key):
                content.pop(key, None)
        return content

    @field_validator("class_weights")
    @classmethod
    def _known_organs(cls, value: Mapping[str, float] | None, info: ValidationInfo) -> Mapping[str, float] | None:
        names = info.data.get("labels", {}).get("names")
        known = names.values() if isinstance(names, Mapping) else ()
        unknown = [name for name in value or {} if name not in known]
        if unknown:
            raise ValueError(sentence("organs", "names of the labels", cut(", ".join(unknown)), "Correct them"))
        return value

    @property
    def label_table(self) -> LabelTable:
        """The labels as a table."""
        return LabelTable.from_json(self.labels)

    @property
    def content_hash(self) -> str:
        """Hash of what prepared cases depend on: everything but name, patches, batches, weights and reasons."""
        return text_hash(json.dumps(self.model_dump(mode="json", exclude=_PASSIVE)))

    @property
    def stage_classes(self) -> int:
        """Foreground classes of the first stage of a cascade, each of which is a channel of the second; else 0."""
        return len(self.label_table.organs) if self.cascade else 0

    def first_stage(self) -> Plan:
        """The plan of a cascade's first stage: the same on the low resolution.

        Raises:
            ValueError: If there is no low resolution.
        """
        low = self.low_resolution
        if low is None:
            raise ValueError("plan: expected a low resolution, got none. Plan with preprocess.resolution=cascade.")
        update = {
            "spacing_mm": low.spacing_mm,
            "median_shape": low.median_shape,
            "patch_3d": PatchPlan(patch_size=low.patch_size, batch_size=low.batch_size),
            "low_resolution": None,
            "cascade": False,
            "reasons": {"spacing_mm": "The low resolution of the plan one folder above: the first stage of a cascade."},
        }
        return self.model_copy(update=update)

    def orientation_of(self, grid: Grid) -> str:
        """Axis codes that a volume on a grid is turned to."""
        return self.orientation if self.conventions is None else self.conventions.orientation(grid, self.orientation)

    def resampling_of(self, grid: Grid) -> tuple[tuple[float, ...], int | None]:
        """Spacing in mm that another tool resamples a volume on a turned grid to, and the axis that it keeps apart.

        The axis is told by this spacing, not by what whole voxels make of it.
        """
        assert self.conventions is not None  # else the spacing is the plan's, and whole voxels decide
        spacing = self.conventions.spacing(self.spacing_mm, self.slice_axis, grid)
        return spacing, self.conventions.coarse_axis(grid.spacing_mm, spacing)

    def logit_orders(self, grid: Grid) -> tuple[Literal[0, 1], ...]:
        """Spline order, along each axis, of logits that are brought back to a turned and cropped grid."""
        if self.conventions is None:
            return (1, 1, 1)
        coarse = self.conventions.coarse_axis(self.resampling_of(grid)[0], grid.spacing_mm)
        return tuple(self.conventions.logit_coarse_order if axis == coarse else 1 for axis in range(3))

    def painting(self) -> tuple[PaintingStep, ...]:
        """How regions become class indices, see :meth:`~pipeline.core.labels.LabelTable.painting`."""
        table = self.label_table
        if self.conventions is None:
            return table.painting()
        # The other tool knows no crossings: every region is painted with its value, wherever others are.
        return tuple(((number,), value) for number, value in enumerate(table.indexed().painted))

    @property
    def single_slices(self) -> bool:
        """Whether the median case is one slice, as pictures are."""
        return self.median_shape[self.slice_axis] == 1

    def axes(self, dims: Literal[2, 3]) -> tuple[int, ...]:
        """Volume axes that a network of so many dimensions sees."""
        return (0, 1, 2) if dims == 3 else tuple(axis for axis in range(3) if axis != self.slice_axis)


PLAN_FILE = "plan.yaml"
"""Its name in a prepared folder."""

FIRST_STAGE = "low_resolution"
"""Folder of a cascade's first stage, in a prepared folder and in a model folder; each is one in its own right."""

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
    """Write the plan, its reasons as comments above their keys."""
    # Key by key, because YAML libraries write no comments.
    parts = [_HEADER]
    for key, value in plan.model_dump(mode="json", exclude={"reasons"}).items():
        reason = plan.reasons.get(key, "")
        comment = "".join(f"# {line}\n" for line in textwrap.wrap(reason, _WIDTH, break_on_hyphens=False))
        parts.append(comment + yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=_WIDTH))
    write_text(path, "\n".join(parts))


def read_plan(path: Path) -> Plan:
    """Read and validate a plan that a person may have edited.

    Raises:
        VolsegError: If it is missing, no YAML, holds a key twice or is not a plan, naming the first wrong key.
    """
    text = read_text(path, "a plan", "Run `volseg preprocess` first, or check the path.", YAML_MB)
    try:
        content, repeated = parse_yaml(text)
    except ValueError as error:
        raise VolsegError(f"{path}: expected a plan in YAML, got {error}. Correct it, or delete it.") from None
    if repeated:
        raise VolsegError(f"{path}: {repeated[0]}")
    if not isinstance(content, dict):
        raise VolsegError(f"{path}: expected keys with values, got {type(content).__name__}. Correct it.")
    advice = "Correct it or run `volseg preprocess` again"
    plan: Plan = conform({**content, "reasons": _reasons(text)}, Plan, path, advice)
    return plan


def _reasons(text: str) -> dict[str, str]:
    """Comments that stand right above a key."""
    reasons, comment = {}, list[str]()
    for line in text.splitlines():
        key = re.match(r"(\w+):", line)
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
            continue
        if key and comment:
            # A comment that does not stand right above a key is a person's own and no reason.
            reasons[key[1]] = " ".join(comment)
        comment = []
    return reasons
