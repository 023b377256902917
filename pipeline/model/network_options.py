"""Options of networks: typed, validated, and refused with the legal ones named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeGuard, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from pipeline.core.documents import cut, rule_of, short
from pipeline.core.errors import ConfigError, sentence

Norm = Literal["batch", "instance", "group", "none"]
Activation = Literal["relu", "leaky_relu", "prelu", "elu", "gelu", "silu"]
# Bounds far above what anyone wants: building what a file asks for must end.
Size = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=1, le=100)]
"""How many of something there are in each stage."""
_MOST_STAGES, _LARGEST, _LARGEST_BLOCK = 32, 1024, 8
PerAxis = int | tuple[int, ...]
"""One number for all spatial axes, or one per axis."""


def _counts(value: object) -> int | tuple[int, ...]:
    if _is_count(value):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_STAGES and all(_is_count(n) for n in value):
        return tuple(value)
    raise ValueError(f"expected a number of at least 1 or one per stage, got {short(value)}. Write e.g. [1, 3].")


def _block(value: object) -> int | tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else value
    if all(_is_count(n) and n <= _LARGEST_BLOCK for n in (numbers if isinstance(numbers, tuple) else (numbers,))):
        return numbers  # type: ignore[return-value]
    raise ValueError(f"expected a number from 1 to {_LARGEST_BLOCK} or one per axis, got {short(value)}. Write e.g. 2.")


PerStage = Annotated[int | tuple[int, ...], BeforeValidator(_counts)]
"""One number of at least 1 for all stages, or one per stage."""
Block = Annotated[int | tuple[int, ...], BeforeValidator(_block)]
"""Voxels of a block: one number for all spatial axes, or one per axis."""


class NetworkOptions(BaseModel):
    """Base of all networks' options: frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Stage:
    """One resolution level of an encoder, level 0 being the input's.

    Args:
        features: Channels.
        kernel: Kernel size of its convolutions, per axis.
        stride: Step down from the level above, per axis.
    """

    features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]


def spread(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """One number for each of ``count`` stages or axes: a tuple as it is, a single number repeated."""
    return value if isinstance(value, tuple) else (value,) * count


def per_axis(name: str, value: PerAxis, dims: int) -> tuple[int, ...]:
    """One number for each axis of an option.

    Raises:
        ConfigError: If it has another number of axes.
    """
    numbers = spread(value, dims)
    if len(numbers) != dims:
        got, advice = f"{len(numbers)}: {numbers}", f"The network has {dims} spatial axes"
        raise ConfigError([sentence(name, f"one number or {dims}", got, advice)], "network options")
    return numbers


class LevelOptions(NetworkOptions):
    """Options that U-shaped networks share. Per-axis numbers follow the axes of the input."""

    per_stage: ClassVar[tuple[str, ...]] = ("kernel_sizes", "strides")
    """Options that may be a tuple, of one entry per stage then."""

    features: tuple[Size, ...] = Field(default=(64, 128, 256, 512, 1024), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    kernel_sizes: int | tuple[PerAxis, ...] = 3
    """Odd kernel sizes: one number, or one entry per stage, each a number or one number per axis."""
    strides: int | tuple[PerAxis, ...] = 2
    """Step from the stage above: one number, or one entry per stage, the first of which is 1."""
    norm: Norm = "batch"
    """Normalization; group makes 8 groups, or as many as divide both 8 and the channels."""
    activation: Activation = "relu"
    """Activation of every convolution unit."""
    bias: bool = False
    """Whether the convolutions of units have a bias; up-convolutions and heads always have one."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability of zeroing a value behind each convolution unit."""
    deep_supervision: bool = False
    """Whether training returns several heads."""

    @field_validator("kernel_sizes", "strides", mode="before")
    @classmethod
    def _entries(cls, value: object) -> int | tuple[PerAxis, ...]:
        if _is_count(value):
            return value
        if isinstance(value, (list, tuple)):
            entries = [tuple(entry) if isinstance(entry, (list, tuple)) else entry for entry in value]
            numbers = [n for entry in entries for n in (entry if isinstance(entry, tuple) else (entry,))]
            few = len(entries) <= _MOST_STAGES
            if few and all(_is_count(n) for n in numbers) and all(entry != () for entry in entries):
                return tuple(entries)
        raise ValueError(
            f"expected a number of at least 1 or one entry per stage, got {short(value)}. Write e.g. [1, 3]."
        )

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if len(self.features) > _MOST_STAGES:
            raise ValueError(sentence("features", f"at most {_MOST_STAGES}", len(self.features), "Shorten the list"))
        for name in self.per_stage:
            entries = getattr(self, name)
            if isinstance(entries, tuple) and len(entries) != len(self.features):
                expected = f"one entry for each of the {len(self.features)} stages in features"
                raise ValueError(sentence(name, expected, len(entries), "Give as many"))
        kernels, strides = _flat(self.kernel_sizes), self.strides
        # An even kernel has no middle: its output would lie half a voxel beside the input.
        if any(n % 2 == 0 for n in kernels):
            advice = "Even kernels shift the output"
            raise ValueError(sentence("kernel_sizes", "odd numbers", self.kernel_sizes, advice))
        if isinstance(strides, tuple) and set(_flat(strides[:1])) != {1}:
            advice = "Start with the input's resolution"
            raise ValueError(sentence("strides", "1 at the first stage", strides[0], advice))
        return self

    def stages(self, dims: int) -> tuple[Stage, ...]:
        """The resolution levels for a number of spatial axes, full resolution first.

        Raises:
            ConfigError: If an entry of ``kernel_sizes`` or ``strides`` has another number of axes.
        """
        count = len(self.features)
        kernels = self.kernel_sizes if isinstance(self.kernel_sizes, tuple) else (self.kernel_sizes,) * count
        strides = self.strides if isinstance(self.strides, tuple) else (1,) + (self.strides,) * (count - 1)
        problems = [
            sentence(f"{name}.{level}", f"one number or {dims}", entry, f"The network has {dims} spatial axes")
            for name, entries in (("kernel_sizes", kernels), ("strides", strides))
            for level, entry in enumerate(entries)
            if isinstance(entry, tuple) and len(entry) != dims
        ]
        if problems:
            raise ConfigError(problems, "network options")
        return tuple(
            Stage(features, spread(kernel, dims), spread(stride, dims))
            for features, kernel, stride in zip(self.features, kernels, strides, strict=True)
        )


class StageOptions(LevelOptions):
    """Options that U-Nets with a fixed number of plain convolution units per stage share."""

    convs_per_stage: Count = 2
    """Convolution units of each stage, in the encoder as in the decoder."""
    down: Literal["pool", "stride"] = "pool"
    """Max-pooling before a stage, or strides in its first convolution."""
    up: Literal["transposed", "nearest", "linear"] = "transposed"
    """Transposed convolution, or interpolation followed by a convolution unit."""


Options = TypeVar("Options", bound=NetworkOptions)


def parse_options(model: type[Options], options: Mapping[str, Any], *, network: str) -> Options:
    """Validate the options of a network.

    Raises:
        ConfigError: All wrong names and values at once, each with the legal ones.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        problems = [_problem(details, tuple(model.model_fields)) for details in error.errors()]
        raise ConfigError(problems, f"options of network {network}") from None


def suggestion(name: object, known: Iterable[str]) -> str:
    """Advice for a misspelt name: the closest known one, or to choose one of them."""
    close = difflib.get_close_matches(str(name)[:_LARGEST], list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else "Choose one of them."


def _problem(details: ErrorDetails, known: tuple[str, ...]) -> str:
    path, value = ".".join(cut(str(part)) for part in details["loc"]), details["input"]
    message = details["msg"].removeprefix("Value error, ")
    # YAML takes norm:batch without a blank for one key.
    if details["type"] == "extra_forbidden" and ":" in path:
        return f"{path}: expected a name and a value, got one word. Write a blank after the colon."
    if details["type"] == "extra_forbidden":
        return f"{path}: expected one of {', '.join(known)}, got an unknown option. {suggestion(path, known)}"
    if details["type"] == "literal_error":
        legal = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{path}: expected one of {', '.join(legal)}, got {short(value)}. {suggestion(value, legal)}"
    if details["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: expected {rule_of(details)}, got {short(value)}. Correct the value."


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _flat(entries: int | tuple[PerAxis, ...]) -> tuple[int, ...]:
    listed = entries if isinstance(entries, tuple) else (entries,)
    return tuple(n for entry in listed for n in (entry if isinstance(entry, tuple) else (entry,)))
