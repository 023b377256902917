"""A network as a value: what ``model.json`` keeps and what is needed to build it again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.config.settings import ModelSettings, SampleSettings, Size, decided
from pipeline.core.errors import ConfigError, sentence
from pipeline.model.base import SegmentationNetwork
from pipeline.model.network_options import parse_options, per_axis
from pipeline.model.registry import NETWORKS, new_network
from pipeline.model.sizes import SizeRule
from pipeline.preprocess.nnunet_rules import feature_widths, topology
from pipeline.preprocess.plan_file import Plan


class NetworkSpec(BaseModel):
    """Name, shape and options of a network and the patch it was designed for.

    Args:
        name: Name in the registry.
        dims: 2 or 3.
        in_channels: Channels that the network sees: of the image and, in a cascade, of the first stage.
        out_channels: Classes, background included, or regions.
        options: Options of the network.
        patch_size: Training patch as the network sees it, its margin included; along the axes the network sees.
        stage_classes: In a cascade's second stage, the foreground classes of the first: the last of its channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dims: Literal[2, 3]
    in_channels: Size
    out_channels: Size
    options: dict[str, Any]
    patch_size: Annotated[tuple[Size, ...], Field(min_length=2, max_length=3)]
    stage_classes: Annotated[int, Field(ge=0)] = 0

    @model_serializer(mode="wrap")
    def _without_stage(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out where there is none, so that descriptions of other networks stay as they were before the key.
        content: dict[str, Any] = handler(self)
        if not self.stage_classes:
            content.pop("stage_classes", None)
        return content

    def build(self, seed: int | None = None, initialization: Literal["he", "pytorch"] = "he") -> SegmentationNetwork:
        """The network with freshly drawn weights; arguments as for :func:`build_network`."""
        shape = (self.name, self.dims, self.in_channels, self.out_channels)
        network = new_network(*shape, seed=seed, initialization=initialization, **self.options)
        network.stage_classes = self.stage_classes
        return network

    def structure(self) -> SegmentationNetwork:
        """The network without memory for its weights: their names and shapes."""
        # Here He's initialization would import torch's compiler, which takes a second and 70 MB.
        with torch.device("meta"):
            return self.build(initialization="pytorch")

    def sizes(self) -> SizeRule:
        """Spatial sizes the network takes and its margin."""
        return self.structure().sizes


def build_network(
    name: str,
    dims: Literal[2, 3] | None = None,
    in_channels: int | None = None,
    out_channels: int | None = None,
    *,
    plan: Plan | None = None,
    seed: int | None = None,
    initialization: Literal["he", "pytorch"] = "he",
    **options: Any,
) -> SegmentationNetwork:
    """Build and initialize a network, as ``volseg train`` does for a plan, or of given size.

    Args:
        name: One of those that ``volseg networks`` lists.
        dims: Number of spatial axes, 2 or 3; by default 3, with a plan of single slices 2.
        in_channels: Channels of the image; with a plan they are its channels.
        out_channels: Channels of the logits: the classes, background included, or the regions; with a plan its own.
        plan: Plan of a dataset. Options that are not given follow from it: stages, strides, kernels, features.
        seed: Makes the initial weights reproducible and leaves torch's global RNG alone; None draws them from the
            global RNG (on the CPU).
        initialization: ``he``: :func:`pipeline.model.base.initialize`. ``pytorch``: what PyTorch's layers begin with.
        options: Options of the network, such as ``features=(16, 32, 64)``.

    Returns:
        The network in training mode, on the current default device. See :class:`SegmentationNetwork` for what it takes
        and returns.

    Raises:
        ConfigError: If a name, number, option or value is wrong; all problems of the arguments or of the options.

    Example:
        >>> build_network("unet", 3, 1, 4, features=(16, 32, 64), norm="instance").divisor
        (4, 4, 4)
    """
    if plan is None:
        if in_channels is None or out_channels is None:
            rule, advice = "in_channels and out_channels, or a plan", "Give them, or plan=make_plan(dataset)"
            got = "neither" if in_channels is out_channels else "one of the two numbers"
            raise ConfigError([sentence("network", rule, got, advice)], "build_network")
        dims = 3 if dims is None else dims
        return new_network(name, dims, in_channels, out_channels, seed=seed, initialization=initialization, **options)
    own = (len(plan.channels), plan.label_table.outputs)
    given = (own[0] if in_channels is None else in_channels, own[1] if out_channels is None else out_channels)
    if given != own:
        rule, advice = f"{own[0]} and {own[1]} channels as in the plan", "Leave in_channels and out_channels out"
        raise ConfigError([sentence("network", rule, f"{given[0]} and {given[1]}", advice)], "build_network")
    if dims is None:
        dims = 2 if plan.single_slices else 3
    if dims not in (2, 3):
        raise ConfigError([sentence("dims", "2 or 3", dims, "Correct it")], "build_network")
    deep_supervision = options.pop("deep_supervision", ModelSettings().deep_supervision)
    model = ModelSettings(name=name, dims=dims, deep_supervision=deep_supervision, options=options)
    return design_network(plan, model, SampleSettings()).build(seed, initialization)


def design_network(plan: Plan, model: ModelSettings, sample: SampleSettings) -> NetworkSpec:
    """Options and patch from the plan where the settings leave them open.

    Networks that are not planned keep the stages of their paper. A planned patch is enlarged to the next size the
    network takes; where its logits are smaller than its input, so far that they cover the planned patch.

    Args:
        plan: The dataset's plan.
        model: Section ``model``, :func:`decided <pipeline.model.automatic.decide>`.
        sample: Section ``sample``; its patch size overrides the plan's.

    Returns:
        A network whose legal sizes include the patch.

    Raises:
        ConfigError: If the network or an option is not known, or the given patch has the wrong number of axes or a size
            the network cannot take.
    """
    dims: Literal[2, 3] = decided(model.dims)
    patch = sample.patch_size or (plan.patch_3d if dims == 3 else plan.patch_2d).patch_size
    if len(patch) != dims:
        rule = f"expected {dims} numbers for model.dims {dims}"
        raise ConfigError([f"sample.patch_size: {rule}, got {patch}."])
    if plan.cascade and dims != 3:
        advice = "Train it on a dataset prepared with preprocess.resolution=full"
        raise ConfigError([sentence("model.dims", "3 for a cascade", dims, advice)])
    spec = NetworkSpec(
        name=model.name,
        dims=dims,
        in_channels=len(plan.channels) + plan.stage_classes,
        stage_classes=plan.stage_classes,
        out_channels=plan.label_table.outputs,
        options=_options(plan, model, patch),
        patch_size=tuple(patch),
    )
    sizes = spec.sizes()
    if sample.patch_size is None:
        return spec.model_copy(update={"patch_size": _planned_patch(model.name, sizes, patch)})
    legal = sizes.legal_size(patch)
    if legal != tuple(patch):
        advice = f"The next legal one is {legal}."
        raise ConfigError([f"sample.patch_size: expected a size {model.name} can take, got {tuple(patch)}. {advice}"])
    return spec


def patches_per_batch(plan: Plan, spec: NetworkSpec, sample: SampleSettings) -> int:
    """Patches per iteration: as set, else as planned; of a patch that had to be enlarged as many as have its voxels."""
    planned = plan.patch_3d if spec.dims == 3 else plan.patch_2d
    if sample.batch_size is not None or sample.patch_size is not None or not any(spec.sizes().margin):
        return sample.batch_size or planned.batch_size
    return max(1, round(planned.batch_size * math.prod(planned.patch_size) / math.prod(spec.patch_size)))


def _planned_patch(name: str, sizes: SizeRule, planned: Sequence[int]) -> tuple[int, ...]:
    """The patch of a network for a planned one, or the one it was made for."""
    # A pixel classifier sees one window, whatever the dataset is like.
    own = NETWORKS[name].patch_size
    if own is not None:
        return own
    # At least one step of logits, so that windows of this size can tile a volume.
    wanted = zip(planned, sizes.step, sizes.margin, strict=True)
    return sizes.legal_size([max(n, step) + 2 * lost for n, step, lost in wanted])


def _options(plan: Plan, model: ModelSettings, patch: Sequence[int]) -> dict[str, Any]:
    """The settings' options, completed by what the network knows and the dataset or another setting decides."""
    entry = NETWORKS.get(model.name)
    if entry is None:  # building it says so
        return dict(model.options)
    known = entry.options.model_fields
    spacing = [plan.spacing_mm[axis] for axis in plan.axes(decided(model.dims))]
    options = _with_topology(model, patch, spacing) if entry.planned else dict(model.options)
    if "deep_supervision" in known:
        options.setdefault("deep_supervision", model.deep_supervision)
    if "probabilities" in known and plan.label_table.regions:
        options["probabilities"] = "sigmoid"  # each region has its own, there is nothing to choose
    return options


def _with_topology(model: ModelSettings, patch: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, Any]:
    """The settings' options, completed by the plan's features, strides and kernels where none are given."""
    options = dict(model.options)
    given = [len(options[name]) for name in ("features", "strides") if isinstance(options.get(name), list | tuple)]
    # A network that takes blocks of voxels as one steps down from these.
    block = _block(model)
    inner = [n / step for n, step in zip(patch, block, strict=True)]
    coarse = [mm * step for mm, step in zip(spacing_mm, block, strict=True)]
    shape = topology(inner, coarse, given[0] if given else None)
    stages = given[0] if given else len(shape.strides)
    if stages > len(shape.strides) and "strides" not in options:
        rule = f"at most {len(shape.strides)} stages for patch {tuple(patch)}"
        advice = "Shorten the list or enlarge the patch"
        raise ConfigError([sentence("model.options.features", rule, stages, advice)])
    options.setdefault("features", list(feature_widths(stages, len(patch))))
    if "strides" not in options:  # kernels belong to strides: whoever sets those gets the network's default kernels
        options["strides"] = [list(stride) for stride in shape.strides]
        options.setdefault("kernel_sizes", [list(kernel) for kernel in shape.kernel_sizes])
    return options


def _block(model: ModelSettings) -> tuple[int, ...]:
    """Voxels along each axis that the network takes as one."""
    if "block" not in model.options:
        return (1,) * decided(model.dims)
    parsed = parse_options(NETWORKS[model.name].options, {"block": model.options["block"]}, network=model.name)
    return per_axis("block", parsed.model_dump()["block"], decided(model.dims))
