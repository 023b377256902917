"""The network of a model as one file that runs without volseg: ONNX, or a program of PyTorch.

Both take patches of prepared images, any number at a time, and return the mean of the logits of all folds. What has to
be done before and after, and what the outputs stand for, is written in the file. A file that does not give the logits
of the networks is not handed out.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import own_version
from pipeline.core.notices import unheard
from pipeline.infer.trained_model import TrainedModel

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest one, or of 1 where that is less."""

INPUT, OUTPUT = "image", "logits"
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_BATCHES = (1, 3)  # that a file is checked with; it is made with another


class MeanLogits(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, L, *S') of (B, C, *S)."""
        first, *others = (network(image) for network in self.networks)
        for logits in others:
            first = first + logits
        mean: Tensor = first / len(self.networks)
        return mean


def description(model: TrainedModel, licence: str | None) -> dict[str, Any]:
    """What a file says of itself: what the network sees, and what its outputs stand for.

    Args:
        model: The model.
        licence: Of its weights, as SPDX names it; None where that is not known.
    """
    plan, spec, labels = model.card.plan, model.card.network, model.labels
    sizes = spec.sizes()
    outputs = list(labels.regions) if labels.regions else ["background", *labels.organs]
    content: dict[str, Any] = {
        "volseg": own_version(),
        "network": {"name": spec.name, "dims": spec.dims, "folds": len(model.networks)},
        "input": {
            "name": INPUT,
            "channels": list(plan.channels),
            "patch": list(spec.patch_size),
            "axes": list(plan.axes(spec.dims)),
        },
        "output": {
            "name": OUTPUT,
            "channels": outputs,
            "activation": "sigmoid" if labels.regions else "softmax",
            "margin": list(sizes.margin),
        },
        "labels": labels.to_json(),
        "orientation": plan.orientation,
        "crop": plan.crop,
        "normalization": [entry.model_dump(mode="json") for entry in plan.normalization],
        "spacing_mm": list(plan.spacing_mm),
        "shape": plan.shape and list(plan.shape),
        "spline_order": {"image": plan.image_order, "coarse_axis": plan.coarse_axis_order},
        "windows": {
            "overlap": model.overlap,
            "blend": model.settings.blend,
            "mirror_axes": list(model.mirror_axes),
        },
    }
    if plan.conventions is not None:
        content["conventions"] = plan.conventions.model_dump(mode="json")
    return content | ({} if licence is None else {"licence": licence})


def torch_program(model: TrainedModel, about: Mapping[str, Any]) -> bytes:
    """A program for ``torch.export.load``, with ``volseg.json`` among its extra files.

    Raises:
        VolsegError: If it does not give the logits of the networks.
    """
    network = MeanLogits(model.networks).eval()
    content = io.BytesIO()
    torch.export.save(_exported(network, model), content, extra_files={"volseg.json": json.dumps(about, indent=2)})
    loaded = torch.export.load(io.BytesIO(content.getvalue())).module()
    _require_same(network, loaded, model, "PyTorch's program")
    return content.getvalue()


def require_onnx() -> None:
    """Refuse where the packages for ONNX are not installed."""
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        advice = "Run pip install 'volseg[onnx]'"
        raise VolsegError(sentence("export to onnx", ", ".join(lacking), "none", advice))


def onnx_model(model: TrainedModel, about: Mapping[str, Any]) -> bytes:
    """A model for ONNX Runtime and others, each key of the description among its ``metadata_props``.

    Raises:
        VolsegError: If the packages are not installed, or it does not give the logits of the networks.
    """
    require_onnx()
    import onnx  # here, because the extra of these packages is installed by few
    import onnxruntime

    network = MeanLogits(model.networks).eval()
    # The exporter tells what it is made of, and that there is no torchvision, which no network of ours needs.
    with unheard("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _exported(network, model), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
        )
    assert program is not None  # None is for another exporter
    proto = program.model_proto
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])

    _require_same(network, run, model, "ONNX Runtime")
    return content


def _exported(network: nn.Module, model: TrainedModel) -> torch.export.ExportedProgram:
    """The graph of a network for patches, any number of them."""
    shapes = ({0: torch.export.Dim("batch", min=1, max=2**15)},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(network, (_images(model, 2),), dynamic_shapes=shapes, strict=False)


def _images(model: TrainedModel, count: int) -> Tensor:
    spec = model.card.network
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, len(model.card.plan.channels), *spec.patch_size, generator=generator)


def _require_same(network: nn.Module, other: Callable[[Tensor], Tensor], model: TrainedModel, what: str) -> None:
    for count in _BATCHES:
        images = _images(model, count)
        with torch.no_grad():
            require_same(network(images), other(images), what)


def require_same(expected: Tensor, found: Tensor, what: str) -> None:
    """Refuse logits that are not those of the networks.

    Raises:
        VolsegError: If the largest difference exceeds :data:`TOLERANCE`, or the shapes are not the same.
    """
    largest = max(1.0, float(expected.abs().max()))
    same = expected.shape == found.shape
    difference = float((expected - found).abs().max()) if same else float("inf")
    if not difference <= TOLERANCE * largest:  # NaN, too, is no agreement
        got = f"a difference of {difference:.3g}" if same else f"another shape, {tuple(found.shape)}"
        advice = "Nothing was written. Report it with the model's description, model.json"
        raise VolsegError(sentence(f"logits of {what}", f"the network's within {TOLERANCE * largest:.1g}", got, advice))
