"""A trained model for programs other than volseg: a MONAI bundle, an ONNX file, a program of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder, own_version, remove_leftovers, write_bytes, write_json
from pipeline.export.monai_bundle import bundle_files, require_bundle
from pipeline.export.network_files import description, onnx_model, require_onnx, torch_program
from pipeline.model.readme import own_card
from pipeline.model.zoo import model_folder
from pipeline.stages.predict import Predictor

KINDS = ("monai-bundle", "onnx", "torch-export")

_RECORD = "exported.json"


def export(
    model: Path | str,
    out: Path | str,
    to: str,
    *,
    folds: Sequence[int] | None = None,
    settings: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Write a model so that it runs without volseg.

    What is written was compared with the networks of the model before.

    Args:
        model: Model folder, or the name of a model that comes with volseg.
        out: Folder to write: new, empty, or one that was exported before.
        to: ``monai-bundle``: everything from an image to its mask. ``onnx``, ``torch-export``: the network alone, the
            mean over its folds, with a description of all else.
        folds: Folds to average; by default all that are trained.
        settings: Overrides (``infer.key=value``) of the model's section ``infer``.

    Returns:
        What was written, relative to ``out``.

    Raises:
        VolsegError: If there is no such model, it is an ensemble, a cascade, has several parts or leaves windows out,
            packages are missing, ``out`` holds something else, or the result is not what the networks give. Nothing is
            written then.
    """
    if to not in KINDS:
        raise VolsegError(sentence("--to", f"one of {', '.join(KINDS)}", to, "Choose one of them"))
    if to == "onnx":
        require_onnx()
    folder = OutputFolder(Path(out), _RECORD)
    folder.require_own("a model that was exported before")
    predictor = Predictor.load(model, folds=folds, device="cpu", settings=settings)
    if predictor.whole is not None:
        got = f"one of {len(predictor.models)} parts"
        raise VolsegError(sentence("model to export", "one model", got, "Export its folders part_… one by one"))
    if len(predictor.models) > 1:
        got = f"an ensemble of {len(predictor.models)}"
        raise VolsegError(sentence("model to export", "one model", got, "Export its members one by one"))
    (trained,) = predictor.models
    if trained.first_stage is not None:
        got, advice = "a cascade", "Export its first stage, the folder low_resolution, or predict with volseg"
        raise VolsegError(sentence("model to export", "one that sees images alone", got, advice))
    licence, card = own_card(model_folder(model))
    about = description(trained, licence)
    if to == "monai-bundle":
        require_bundle(trained)
        files = bundle_files(trained, about, predictor.cleaning, card)
    else:
        name, written = ("model.onnx", onnx_model) if to == "onnx" else ("model.pt2", torch_program)
        files = {"volseg.json": f"{json.dumps(about, indent=2, ensure_ascii=False)}\n".encode()}
        files |= {"model_card.md": card.encode()} if card is not None else {}
        files |= {name: written(trained, about)}
    write_json(folder.record, {"volseg": own_version(), "files": sorted(files)})
    remove_leftovers(folder.path, deep=True)
    # Gone before anything is written: the parts of two models together would be none.
    folder.remove(folder.listed("files") | set(files))
    folder.remove_empty_folders()
    for name, content in files.items():
        write_bytes(folder.path / name, content)
    return tuple(sorted(files))
