"""nnU-Net's ``plans.json`` and ``dataset.json`` as a plan and a network of ours.

What they say must be known here, word for word: what is not is refused by its name, because a network that sees images
otherwise than in its training finds nothing, or the wrong organs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from pipeline.config.settings import Millimetres, Size
from pipeline.core.documents import conform, short
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.labels import LabelTable
from pipeline.data.dataset import channels_in_order
from pipeline.data.label_tables import label_table
from pipeline.model.nnunet import nnunet_options
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.conventions import Axis, Conventions
from pipeline.preprocess.plan_file import LowResolution, Normalization, PatchPlan, Plan

TRAINERS = frozenset(
    (
        *("nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainerNoDeepSupervision", "nnUNetTrainerBN"),
        *("nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_1500ep", "nnUNetTrainer_onlyMirror01_DASegOrd0"),
        *("nnUNetTrainer_onlyMirror01_DA5", "nnUNetTrainer_DASegOrd0", "nnUNetTrainer_DASegOrd0_NoMirroring"),
        *("nnUNetTrainerNoDA", "nnUNetTrainer_noDummy2DDA", "nnUNetTrainerDA5", "nnUNetTrainerDA5ord0"),
        *("nnUNetTrainerDA5Segord0", "nnUNetTrainerDA5_10epochs", "nnUNetTrainer_warmup", "nnUNetTrainerCosAnneal"),
        *("nnUNetTrainerAdam", "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4", "nnUNetTrainerVanillaAdam"),
        *("nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4", "nnUNetTrainerAdan"),
        *("nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdan1en1", "nnUNetTrainerAdanCosAnneal"),
        *("nnUNetTrainerDiceLoss", "nnUNetTrainerDiceCELoss_noSmooth", "nnUNetTrainerTopk10Loss"),
        *("nnUNetTrainerTopk10LossLS01", "nnUNetTrainerDiceTopK10Loss", "nnUNetTrainerCELoss"),
        *("nnUNetTrainerCELoss_5epochs", "nnUNetTrainer_probabilisticOversampling"),
        *("nnUNetTrainer_probabilisticOversampling_033", "nnUNetTrainer_probabilisticOversampling_010"),
        *("nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading", "nnUNet_Trainer_BS8"),
    )
)
"""Trainers of nnU-Net that change nothing but the training, beside those of :data:`_EPOCHS`; of BN also the norm."""

_EPOCHS = re.compile(r"nnUNetTrainer_[0-9]{1,6}epochs?(_NoMirroring)?")
_BATCH_NORM = "nnUNetTrainerBN"
_RESAMPLING = "resample_data_or_seg_to_shape"
_HOME = "dynamic_network_architectures.architectures."
_KINDS = ("PlainConvUNet", "ResidualEncoderUNet")
_MODULES = ("unet", "residual_unet")  # nnU-Net 2.2 names the latter for residual networks
_NETWORK_KEYS = {
    *("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"),
    *("n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs"),
    *("nonlin", "nonlin_kwargs"),
}
_READERS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "NaturalImage2DIO": False,
    "Tiff3DIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIOWithReorient": True,
}
"""nnU-Net's readers → whether they turn volumes to RAS; the others leave them as they lie in the file."""

_SCHEMES: dict[tuple[str, bool], Literal["zscore", "zscore_nonzero", "range", "none"]] = {
    ("ZScoreNormalization", False): "zscore",
    ("ZScoreNormalization", True): "zscore_nonzero",
    ("RescaleTo01Normalization", False): "range",
    ("RescaleTo01Normalization", True): "range",
    ("NoNormalization", False): "none",
    ("NoNormalization", True): "none",
}
_AXES: tuple[Axis, ...] = (0, 1, 2)
_FILE_AXIS: Mapping[Axis, Axis] = {0: 2, 1: 1, 2: 0}  # nnU-Net counts the axes of a file from the last
_LEAST_SD = 1e-8  # nnU-Net divides by no less
_BRIGHTEST = 255.0  # of a picture
_UPDATE = "Plans of nnU-Net 2.0 to 2.8 can be read"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Intensities(_Part):
    """Foreground intensities of a channel in the training data."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Configuration(_Part):
    """One configuration, such as ``3d_fullres``, as far as prediction goes by it."""

    spacing: Annotated[tuple[Millimetres, ...], Field(min_length=2, max_length=3)]
    patch_size: Annotated[tuple[Size, ...], Field(min_length=2, max_length=3)]
    batch_size: Size
    median_image_size_in_voxels: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    preprocessor_name: str
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_seg: str
    resampling_fn_seg_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]
    architecture: dict[str, Any]
    previous_stage: str | None = None

    @property
    def dims(self) -> Literal[2, 3]:
        """Axes that its network sees."""
        return 2 if len(self.patch_size) == 2 else 3


class Plans(_Part):
    """Content of ``plans.json``, as far as prediction goes by it."""

    dataset_name: str
    plans_name: str
    image_reader_writer: str
    label_manager: str = "LabelManager"
    transpose_forward: tuple[Axis, Axis, Axis]
    original_median_spacing_after_transp: tuple[Millimetres, Millimetres, Millimetres]
    original_median_shape_after_transp: tuple[float, float, float]
    foreground_intensity_properties_per_channel: dict[str, Intensities] = Field(
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"
        )
    )
    configurations: dict[str, dict[str, Any]]


class ModelPlans:
    """The plans and the dataset that a model was trained with.

    Args:
        plans: Content of ``plans.json``.
        dataset: Content of ``dataset.json``.
        file: ``plans.json`` in words, for messages.

    Raises:
        VolsegError: If they are none of nnU-Net v2, or say something that is not known here.
    """

    def __init__(self, plans: Mapping[str, Any], dataset: Mapping[str, Any], file: str) -> None:
        self.file = file
        self.plans: Plans = conform(plans, Plans, file, _UPDATE)
        self.labels = self._labels(dataset)
        named = dataset.get("channel_names", dataset.get("modality"))
        try:
            self.channels = tuple(channels_in_order(named) or ())
        except ValueError as error:
            raise self._refusal("channel_names", "names by number", error) from None
        if not self.channels:
            raise self._refusal("channel_names", "names by number", named)
        if self.plans.label_manager != "LabelManager":
            raise self._refusal("label_manager", "LabelManager", self.plans.label_manager)
        if self.plans.image_reader_writer not in _READERS:
            raise self._refusal("image_reader_writer", ", ".join(_READERS), self.plans.image_reader_writer)
        if sorted(self.plans.transpose_forward) != [0, 1, 2]:
            raise self._refusal("transpose_forward", "0, 1 and 2 in some order", self.plans.transpose_forward)

    def _refusal(self, what: str, rule: str, got: object, advice: str = "Others cannot be read") -> VolsegError:
        return VolsegError(sentence(what, rule, short(got), advice, file=self.file))

    def _labels(self, dataset: Mapping[str, Any]) -> LabelTable:
        given = dataset.get("labels")
        listed = isinstance(given, Mapping) and any(isinstance(value, list) for value in given.values())
        if listed and not dataset.get("regions_class_order"):
            raise self._refusal("regions_class_order", "a value for each region", None, "Take it from dataset.json")
        table = label_table(given, f"{self.file}: dataset.json", dataset)
        if not table.regions and table.values != tuple(range(1, len(table.values) + 1)):
            got, advice = f"{short(list(table.values))}", "Its masks would not hold these values either"
            raise self._refusal("labels", "values 1, 2, … without gaps", got, advice)
        return table

    def configuration(self, name: str) -> Configuration:
        """A configuration with what it inherits, checked."""
        content = self._inherited(name, ())
        if "architecture" not in content and "UNet_class_name" in content:
            content["architecture"] = _older_architecture(content)
        found: Configuration = conform(content, Configuration, f"{self.file}: {name}", _UPDATE)
        if found.preprocessor_name != "DefaultPreprocessor":
            raise self._refusal("preprocessor_name", "DefaultPreprocessor", found.preprocessor_name)
        sizes = (found.dims, len(found.spacing), len(found.median_image_size_in_voxels))
        if len(set(sizes)) > 1:
            raise self._refusal(f"{name}: spacing and patch_size", "as many axes", sizes, "Correct them")
        channels = (len(self.channels), len(found.normalization_schemes), len(found.use_mask_for_norm))
        if len(set(channels)) > 1:
            raise self._refusal(f"{name}: normalization", "an entry for each channel", channels, "Correct them")
        return found

    def _inherited(self, name: str, heirs: tuple[str, ...]) -> dict[str, Any]:
        known = self.plans.configurations
        if name not in known or name in heirs:
            raise self._refusal("configuration", f"one of {', '.join(known)}, not its own heir", name, "Correct it")
        parent = known[name].get("inherits_from")
        base = {} if parent is None else self._inherited(str(parent), (*heirs, name))
        return {**base, **known[name]}

    def plan(self, name: str, mirror_axes: tuple[int, ...]) -> Plan:
        """The plan of a configuration, that of a cascade's second stage with the first one's grid.

        Args:
            name: Of the configuration.
            mirror_axes: Axes of the network whose mirror images it was trained with.

        Raises:
            VolsegError: If the configuration has something that is not known here.
        """
        plans, one = self.plans, self.configuration(name)
        first = None if one.previous_stage is None else self.configuration(one.previous_stage)
        if first is not None and 2 in (one.dims, first.dims):
            raise self._refusal(f"{name}: previous_stage", "a cascade of 3D networks", one.previous_stage)
        image, separate = self._resampling(one, "data", orders=(0, 1, 3))
        logits, apart = self._resampling(one, "probabilities", orders=(1,))
        if separate != apart:
            raise self._refusal("force_separate_z", "one for images and probabilities", (separate, apart))
        if first is not None and self._resampling(one, "seg", orders=(1,)) != ((1, 0), separate):
            raise self._refusal("resampling_fn_seg_kwargs", "order 1 and order_z 0", one.resampling_fn_seg_kwargs)
        wrong = [axis for axis in mirror_axes if axis >= one.dims]
        if wrong:
            raise self._refusal("inference_allowed_mirroring_axes", f"axes of {one.dims} dimensions", wrong[0])
        i, j, k = plans.transpose_forward
        file_axes = (_FILE_AXIS[i], _FILE_AXIS[j], _FILE_AXIS[k])
        turned = _READERS[plans.image_reader_writer]
        flat = one.dims == 2
        return Plan(
            dataset=plans.dataset_name,
            channels=self.channels,
            labels=self.labels.to_json(),
            orientation="".join("RAS"[axis] for axis in file_axes),
            crop="nonzero",
            spacing_mm=_along_all(one.spacing, plans.original_median_spacing_after_transp),
            image_order=image[0],
            coarse_axis_order=image[1],
            store_dtype="float32",
            normalization=tuple(self._normalization(one, channel) for channel in range(len(self.channels))),
            median_shape=_voxels(_along_all(one.median_image_size_in_voxels, plans.original_median_shape_after_transp)),
            slice_axis=0,  # nnU-Net puts the axis across slices first
            patch_3d=PatchPlan(
                patch_size=((1, *one.patch_size) if flat else one.patch_size), batch_size=one.batch_size
            ),
            patch_2d=PatchPlan(patch_size=one.patch_size[-2:], batch_size=one.batch_size),
            low_resolution=None if first is None else _low_resolution(first),
            cascade=first is not None,
            conventions=Conventions(
                file_axes=None if turned else file_axes,
                own_slices=flat,
                separate_coarse_axis=separate,
                logit_coarse_order=logits[1],
                mirror_axes=tuple(axis for axis in _AXES if axis - flat in mirror_axes),
            ),
        )

    def _resampling(
        self, one: Configuration, kind: Literal["data", "seg", "probabilities"], orders: tuple[int, ...]
    ) -> tuple[tuple[Any, Any], bool]:
        """Spline orders along all axes and along a coarse one, and whether that is resampled apart."""
        key = f"resampling_fn_{kind}"
        if (function := getattr(one, key)) != _RESAMPLING:
            raise self._refusal(key, _RESAMPLING, function)
        given = dict(getattr(one, f"{key}_kwargs"))
        order, across, separate = given.pop("order", 3), given.pop("order_z", 0), given.pop("force_separate_z", False)
        given.pop("is_seg", None)
        fits = order in orders and across in (*orders, 0) and across <= max(order, 1) and separate in (None, False)
        if not fits or given:
            rule = f"order {', '.join(map(str, orders))}, and force_separate_z null or false"
            raise self._refusal(f"{key}_kwargs", rule, getattr(one, f"{key}_kwargs"))
        return (order, across), separate is None

    def _normalization(self, one: Configuration, channel: int) -> Normalization:
        name, masked = one.normalization_schemes[channel], one.use_mask_for_norm[channel]
        if name == "CTNormalization":
            known = self.plans.foreground_intensity_properties_per_channel.get(str(channel))
            if known is None:
                raise self._refusal("foreground intensities", f"an entry for channel {channel}", "none", "Correct it")
            low, high, sd = known.percentile_00_5, known.percentile_99_5, max(known.std, _LEAST_SD)
            return Normalization(scheme="ct", mean=known.mean, sd=sd, low=low, high=high)
        if name == "RGBTo01Normalization":
            return Normalization(scheme="ct", mean=0.0, sd=_BRIGHTEST)
        scheme = _SCHEMES.get((name, masked))
        if scheme is None:
            known_names = dict.fromkeys(known for known, _ in _SCHEMES)
            rule = f"one of CTNormalization, RGBTo01Normalization, {', '.join(known_names)}"
            raise self._refusal("normalization_schemes", rule, name)
        return Normalization(scheme=scheme)

    def network(self, name: str, plan: Plan, trainer: str) -> NetworkSpec:
        """The network of a configuration.

        Raises:
            VolsegError: If the trainer or the network is not known here.
        """
        if trainer not in TRAINERS and not _EPOCHS.fullmatch(trainer):
            advice = (
                "Trainers that may change the network or its images cannot be read; docs/nnunet.md lists the others"
            )
            raise self._refusal("trainer", "one that changes the training alone", trainer, advice)
        one = self.configuration(name)
        architecture = dict(one.architecture)
        self._require_known(architecture)
        if trainer == _BATCH_NORM:
            norm = {"norm_op": f"torch.nn.BatchNorm{one.dims}d", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
            architecture["arch_kwargs"] = {**architecture["arch_kwargs"], **norm}
        try:
            kind, dims, options = nnunet_options(architecture)
        except (ConfigError, LookupError, TypeError) as error:
            problems = "; ".join(error.problems) if isinstance(error, ConfigError) else short(error)
            raise VolsegError(f"{self.file}: {name}: architecture: {problems}") from None
        if dims != one.dims:
            raise self._refusal("conv_op", f"one of {one.dims} dimensions", dims, "Correct it")
        spec = NetworkSpec(
            name=kind,
            dims=one.dims,
            in_channels=len(self.channels) + plan.stage_classes,
            out_channels=self.labels.outputs,
            options=options,
            patch_size=one.patch_size,
            stage_classes=plan.stage_classes,
        )
        try:
            sizes = spec.sizes()
        except ConfigError as error:
            raise VolsegError(f"{self.file}: {name}: architecture: {'; '.join(error.problems)}") from None
        if sizes.legal_size(one.patch_size) != one.patch_size:
            legal = sizes.legal_size(one.patch_size)
            raise self._refusal(f"{name}: patch_size", f"a size the network takes, such as {legal}", one.patch_size)
        return spec

    def _require_known(self, architecture: Mapping[str, Any]) -> None:
        """Refuse networks, and options of networks, that could not be built as they were trained."""
        known = {f"{_HOME}{module}.{name}" for module in _MODULES for name in _KINDS}
        given, options = architecture.get("network_class_name"), architecture.get("arch_kwargs")
        if given not in known or not isinstance(options, Mapping):
            raise self._refusal("network_class_name", f"one of {', '.join(_KINDS)} of {_HOME[:-1]}", given)
        fixed = {
            "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
            "nonlin_kwargs": ({"inplace": True}, {}, None),
            "dropout_op_kwargs": (None, {}),
        }
        other = next(
            (key for key, value in options.items() if key not in _NETWORK_KEYS and value not in (None, False)), None
        )
        if other is not None:
            raise self._refusal(f"arch_kwargs.{other}", "no such option", options[other])
        for key, legal in fixed.items():
            if options.get(key) not in legal and key in options:
                raise self._refusal(f"arch_kwargs.{key}", str(legal[0]), options[key])


def _older_architecture(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entry ``architecture`` that plans of nnU-Net 2.0 to 2.3 lack; a missing key is left to the checks."""
    kind = str(content.get("UNet_class_name"))
    convs = content.get("n_conv_per_stage_encoder") or ()
    dims = len(content.get("patch_size") or ())
    least, most = content.get("UNet_base_num_features") or 0, content.get("unet_max_num_features") or 0
    options = {
        "n_stages": len(convs),
        "features_per_stage": [min(least * 2**stage, most) for stage in range(len(convs))],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": content.get("conv_kernel_sizes"),
        "strides": content.get("pool_op_kernel_sizes"),
        "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage": convs,
        "n_conv_per_stage_decoder": content.get("n_conv_per_stage_decoder"),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {"network_class_name": f"{_HOME}unet.{kind}" if kind in _KINDS else kind, "arch_kwargs": options}


def _along_all(numbers: tuple[float, ...], every: tuple[float, float, float]) -> tuple[float, float, float]:
    """Numbers along all axes; of 2D networks, which have none across slices, that of ``every`` first."""
    first, second, third = (*every[: 3 - len(numbers)], *numbers)
    return first, second, third


def _voxels(numbers: tuple[float, float, float]) -> tuple[int, int, int]:
    i, j, k = (max(1, round(n)) for n in numbers)
    return i, j, k


def _low_resolution(one: Configuration) -> LowResolution:
    i, j, k = one.spacing
    first, second, third = one.patch_size
    return LowResolution(
        spacing_mm=(i, j, k),
        median_shape=_voxels(_along_all(one.median_image_size_in_voxels, (1.0, 1.0, 1.0))),
        patch_size=(first, second, third),
        batch_size=one.batch_size,
    )
