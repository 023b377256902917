"""A trained model as a MONAI bundle: a folder that ``python -m monai.bundle run`` gives volseg's masks from.

The network, with all folds and mirror images, is a TorchScript file. What MONAI's own transforms would do otherwise
than volseg (normalization, resampling and the way back, where windows lie) is in ``volseg_parts``: the modules of
volseg that do it, as they are.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import own_version
from pipeline.export.network_files import require_same
from pipeline.infer.cleaning import Cleaning, classes_with
from pipeline.infer.trained_model import TrainedModel
from pipeline.infer.tta import Pass, Passes
from pipeline.infer.windows import in_volume

PARTS = "volseg_parts"
"""Package of a bundle that holds modules of volseg; not `scripts`, of which a folder with other bundles has many."""

_MODULES = (
    "pipeline.core.errors",
    "pipeline.export.bundle_parts",
    "pipeline.infer.labelling",
    "pipeline.infer.windows",
    "pipeline.model.sizes",
    "pipeline.preprocess.interpolation",
    "pipeline.preprocess.normalization",
    "pipeline.preprocess.spacing",
)
_PACKAGES = ("nibabel", "scipy")  # that MONAI does not bring itself
_ENGINE = {"pytorch-ignite": "0.5", "fire": "0.5"}  # of `monai.bundle run`; volseg itself needs neither


class EveryPass(nn.Module):
    """The mean of the logits of all networks and mirror images, as the inferer of volseg averages them."""

    def __init__(self, passes: list[Pass], networks: Sequence[Any]) -> None:
        super().__init__()
        self.passes, self.networks = passes, nn.ModuleList(networks)

    def forward(self, windows: Tensor) -> Tensor:
        """Logits (B, L, *tile) of windows (B, C, *window)."""
        total: Tensor | None = None
        for each in self.passes:
            (logits,) = each(windows)
            back, flips = each.view.back(logits)
            back = torch.flip(back, [axis + 2 for axis in flips]) if flips else back
            order = list(range(back.shape[1]))
            for left, right in each.swapped:
                order[left], order[right] = right, left
            back = back[:, order] if each.swapped else back
            total = back if total is None else total + back
        assert total is not None  # there is a pass
        return total / len(self.passes)


def require_bundle(model: TrainedModel) -> None:
    """Refuse a model whose masks a bundle would not give.

    Raises:
        VolsegError: If its settings leave windows out, or it sees images as TotalSegmentator's do.
    """
    roi, rules = model.settings.roi, model.card.plan.conventions
    if roi != "none":
        raise VolsegError(sentence("infer.roi", "none for a bundle", roi, "Set it: --set infer.roi=none"))
    if rules is not None and rules.whole_numbers:
        rule, got = "one that normalizes images before it resamples them, for a bundle", "one of TotalSegmentator"
        advice = "Predict with volseg, or export the network alone: --to onnx or torch-export"
        raise VolsegError(sentence("model to export", rule, got, advice))


def bundle_files(
    model: TrainedModel, about: Mapping[str, Any], cleaning: Cleaning, card: str | None
) -> dict[str, bytes]:
    """All files of a bundle.

    Args:
        model: That :func:`require_bundle` accepts.
        about: Its description, for people and programs.
        cleaning: What is done to its masks.
        card: Its model card, Markdown; None if it has none.

    Returns:
        Path in the folder, with ``/``, → content.

    Raises:
        VolsegError: If the TorchScript does not give the logits of the networks.
    """
    metadata, inference = _metadata(model, about), _inference(model, cleaning)
    texts = {
        f"{PARTS}/__init__.py": f'"""Modules of volseg {own_version()}, as they are there; Apache-2.0."""\n',
        **{f"{PARTS}/{name.rpartition('.')[2]}.py": _source(name) for name in _MODULES},
        "docs/README.md": _readme(model, about),
        "configs/metadata.json": json.dumps(metadata, indent=2, ensure_ascii=False) + "\n",
        "configs/inference.json": json.dumps(inference, indent=2, ensure_ascii=False) + "\n",
    }
    if card is not None:
        texts["docs/model_card.md"] = card
    configs = {Path(name).name: text for name, text in texts.items() if name.startswith("configs/")}
    files = {name: text.encode() for name, text in texts.items()}
    return {"models/model.ts": _torchscript(model, configs), **files}


def _source(name: str) -> str:
    """A module as it lies in a bundle: what it imports of volseg lies beside it."""
    text = Path(import_module(name).__file__ or "").read_text(encoding="utf-8")
    return re.sub(r"^from pipeline\.[a-z_.]*?([a-z_]+) import", r"from .\1 import", text, flags=re.MULTILINE)


def _torchscript(model: TrainedModel, configs: Mapping[str, str]) -> bytes:
    plan, known, window = model.card.plan, model.passes, _patch(model)
    passes = Passes(known.networks, None, known.axes, known.sides, known.side_pairs, known.rotation, known.stage_pairs)
    tile = tuple(n - 2 * lost for n, lost in zip(window, model.margin, strict=True))
    network = EveryPass(passes.each(window, tile), known.networks).eval()
    generator = torch.Generator().manual_seed(0)

    def images(size: tuple[int, ...], count: int) -> Tensor:
        return torch.randn(count, len(plan.channels), *size, generator=generator)

    with warnings.catch_warnings(), torch.no_grad():  # of PyTorch, on values that become constants: they are checked
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(network, images(window, 2), check_trace=False)  # type: ignore[no-untyped-call]
    content = io.BytesIO()
    torch.jit.save(traced, content, _extra_files=dict(configs))
    loaded: Any = torch.jit.load(io.BytesIO(content.getvalue()))  # type: ignore[no-untyped-call]
    sizes = [(window, 1), (window, 3)]
    if _choice(model) != "patch":  # then windows of other sizes come, too
        larger = model.first.legal_size([n + (n > 1) for n in window])
        sizes.append((tuple(larger), 1))
    for size, count in sizes:
        with torch.no_grad():
            batch = images(size, count)
            require_same(network(batch), loaded(batch), "TorchScript")
    return content.getvalue()


def _patch(model: TrainedModel) -> tuple[int, ...]:
    """The window of the settings, else the patch of the training, along i, j, k."""
    size, spec = model.settings.window_size, model.card.network
    return in_volume(size if isinstance(size, tuple) else spec.patch_size, model.card.plan, spec)


def _choice(model: TrainedModel) -> str:
    """Which windows are taken, as ``bundle_parts.Windows`` names it."""
    if isinstance(model.settings.window_size, tuple):
        return "patch"
    if any(model.margin):
        return "margin"
    return "fit" if model.settings.window_size == "fit" and model.passes.rotation is None else "patch"


def _metadata(model: TrainedModel, about: Mapping[str, Any]) -> dict[str, Any]:
    """Content of ``metadata.json``, by MONAI's schema, with what volseg says of the model under ``volseg``."""
    spec, plan, labels = model.card.network, model.card.plan, model.labels
    window = [n if n > 1 else "*" for n in _patch(model)]
    tile = [n if n == "*" else int(n) - 2 * lost for n, lost in zip(window, model.margin, strict=True)]
    outputs = about["output"]["channels"]
    common = {"dtype": "float32", "is_patch_data": True, "value_range": []}
    organs = ", ".join(labels.targets)
    licence = about.get("licence")
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by volseg {own_version()}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {**{name: version(name) for name in _PACKAGES}, **_ENGINE},
        "optional_packages_version": {},
        "task": f"Segmentation of {organs}",
        "description": f"{spec.name} in {spec.dims}D, trained with volseg: {organs}",
        "authors": "not stated",
        "copyright": "not stated" if licence is None else f"licence of the weights: {licence}",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(plan.channels),
                    "num_channels": len(plan.channels),
                    "spatial_shape": window,
                    **common,
                    "channel_def": {str(n): name for n, name in enumerate(plan.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(outputs),
                    "spatial_shape": tile,
                    **common,
                    "channel_def": {str(n): name for n, name in enumerate(outputs)},
                }
            },
        },
        "volseg": dict(about),
    }


def _inference(model: TrainedModel, cleaning: Cleaning) -> dict[str, Any]:
    """Content of ``inference.json``."""
    largest_value = max(model.labels.values, default=0)
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "data": {"_target_": f"{PARTS}.bundle_parts.cases", "folder": "@dataset_dir"}
        | {"channels": len(model.card.plan.channels)},
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(model)},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(model),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{PARTS}.bundle_parts.Decided", "keys": "pred", "painting": model.painting},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
                {
                    "_target_": f"{PARTS}.bundle_parts.Finished",
                    "keys": "pred",
                    "values": [0, *model.labels.values],
                    **_cleaned(model, cleaning),
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": ".nii.gz",
                    "output_dtype": "$np.uint8" if largest_value < 256 else "$np.uint16",
                    "output_postfix": "",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(model: TrainedModel) -> list[dict[str, Any]]:
    plan = model.card.plan
    rules = plan.conventions
    # Which axis of the image is an axis of the plan; they differ where another tool lists the axes of files otherwise.
    axes = _axes(model)
    spacing = [mm for _, mm in sorted(zip(axes, plan.spacing_mm, strict=True))]
    shape = None if plan.shape is None else [n for _, n in sorted(zip(axes, plan.shape, strict=True))]
    chain: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
    ]
    if rules is None or rules.file_axes is None:
        sides = [["L", "R"], ["P", "A"], ["I", "S"]]
        chain.append({"_target_": "Orientationd", "keys": "image", "axcodes": plan.orientation, "labels": sides})
    if plan.crop == "nonzero":
        # Of an image of zeros nothing is cropped.
        select = "$lambda x: (x != 0) | (x == 0).all()"
        crop = {"keys": "image", "source_key": "image", "select_fn": select, "allow_smaller": True}
        chain.append({"_target_": "CropForegroundd", **crop})
    resampling: dict[str, Any] = {
        "spacing_mm": spacing,
        "shape": shape,
        "order": plan.image_order,
        "coarse_order": plan.coarse_axis_order,
    }
    if rules is not None:
        resampling |= {
            "separate": rules.separate_coarse_axis,
            "told_by": "spacing_mm",
            "own_axis": axes[plan.slice_axis] if rules.own_slices else None,
            "logit_coarse_order": rules.logit_coarse_order,
        }
    channels = [entry.model_dump(mode="json", exclude_defaults=True) for entry in plan.normalization]
    return [
        *chain,
        {"_target_": f"{PARTS}.bundle_parts.Normalized", "keys": "image", "channels": channels},
        {"_target_": f"{PARTS}.bundle_parts.Resampled", "keys": "image", **resampling},
    ]


def _inferer(model: TrainedModel) -> dict[str, Any]:
    spec, plan, settings = model.card.network, model.card.plan, model.settings
    rule = spec.sizes()
    sizes = {"step": rule.step, "smallest": rule.smallest, "lone_cell": rule.lone_cell, "border": rule.border}
    return {
        "_target_": f"{PARTS}.bundle_parts.Windows",
        "patch": _patch(model),
        "sizes": sizes,
        "choice": _choice(model),
        "overlap": model.overlap,
        "blend": settings.blend,
        "placement": "nnunet" if settings.blend == "nnunet" else "even",
        "batch": settings.batch_size,
        "slice_axis": plan.slice_axis if spec.dims == 2 else None,
        "axes": _axes(model),
    }


def _axes(model: TrainedModel) -> tuple[int, ...]:
    """Axes of the image in the order of the plan's."""
    rules = model.card.plan.conventions
    return (0, 1, 2) if rules is None or rules.file_axes is None else rules.file_axes


def _cleaned(model: TrainedModel, cleaning: Cleaning) -> dict[str, Any]:
    """Arguments of ``bundle_parts.Finished`` that clean masks."""
    labels = model.labels
    steps: dict[str, Any] = {
        "keep_largest": [labels.without(name) for name in cleaning.keep_largest],
        "remove_small": [(labels.without(name), volume) for name, volume in cleaning.remove_small_ml.items()],
        "fill_holes": [(labels.without(name), classes_with(labels, name)) for name in cleaning.fill_holes],
    }
    return {name: step for name, step in steps.items() if step}


def _readme(model: TrainedModel, about: Mapping[str, Any]) -> str:
    """``docs/README.md``: how to run the bundle."""
    labels, plan = model.labels, model.card.plan
    values = "\n".join(f"| {value} | {labels.names[value]} |" for value in labels.values)
    files = (
        "NIfTI files in `images`, one per case"
        if len(plan.channels) == 1
        else f"for each case {len(plan.channels)} NIfTI files, `CASE_0000.nii.gz` and so on "
        f"({', '.join(plan.channels)}), in `images`"
    )
    licence = about.get("licence")
    return f"""# {", ".join(labels.targets)}

A MONAI bundle of a model that was trained with volseg, written by volseg {own_version()}. It needs no volseg.

    pip install torch 'monai[fire,ignite,nibabel]' scipy
    cd THIS_FOLDER
    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json

Put {files}, or name another folder: `--dataset_dir FOLDER --output_dir MASKS`. Masks lie on the grid of their image.

| value | organ |
|---|---|
{values}

`models/model.ts` is the network; `{PARTS}` are modules of volseg (Apache-2.0) that prepare images, place windows and
bring labels back to the grid of the image. Licence of the weights: {licence or "not stated"}.
"""
