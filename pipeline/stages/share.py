"""A model folder for others: what predicting needs, and nothing that names a case, a person, a place or a machine.

Written anew from what was read, key by key: what is not known to be needed is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder, own_version, remove_leftovers, write_json
from pipeline.infer.cleaning import POSTPROCESSING_FILE, read_cleaning
from pipeline.model.folder import (
    ENSEMBLE_FILE,
    PARTS_FILE,
    ModelCard,
    fold_folder,
    load_network,
    member_folders,
    read_card,
    read_parts,
    save_weights,
    trained_folds,
    wanted_folds,
    write_card,
)
from pipeline.model.readme import UNNAMED, write_model_card
from pipeline.preprocess.plan_file import FIRST_STAGE
from pipeline.stages.model_card import describe

_RECORD = "shared.json"
_VERSIONS = ("volseg", "torch", "monai", "python")  # of the provenance; its device and date would tell where and when


def share(
    model: Path | str,
    out: Path | str,
    *,
    half: bool = False,
    scores: Path | str | None = None,
    license: str | None = None,
) -> tuple[str, ...]:
    """Write a model folder that predicts as the original does and names neither cases nor places.

    It has the network, the plan without its reasons and the dataset's name, labels and channels, the settings without
    an MLflow server, the versions of the libraries, the weights of every fold, and the post-processing. Beside them
    are a model card (``README.md``), which is left alone once someone has edited it, and ``manifest.json``, which
    ``volseg model verify`` reads.

    Args:
        model: Model folder, also of an ensemble or of several parts.
        out: Folder to write: new, empty, or one that was shared before.
        half: Write weights in 16 bits instead of 32, which halves the file. Predicting computes as before, with weights
            that are rounded to 11 binary digits.
        scores: Folder that ``volseg evaluate`` wrote, for the model card; by default what the training or a
            cross-validation found.
        license: Of the weights, as SPDX names it, for the model card.

    Returns:
        What was written, relative to ``out``.

    Raises:
        VolsegError: If there is no trained model, ``out`` holds something else, a weight is too large for 16 bits, or
            the scores are of other organs.
    """
    model, out = Path(model), Path(out)
    homes = member_folders(model)
    cards = [read_card(home) for home in homes]
    for home in homes:
        wanted_folds(home)
    folder = OutputFolder(out, _RECORD)
    if out.resolve() == model.resolve():
        folder.refuse("a new folder", "the model itself")
    folder.require_own("a model that was shared before")
    about = describe(model, scores=None if scores is None else Path(scores), license=license)
    # Members of an ensemble are called after folders, which are called as it pleased someone.
    whole = read_parts(model)
    kind, listing = ("part", PARTS_FILE) if whole else ("model", ENSEMBLE_FILE)
    names = [""] if homes == (model,) else [f"{kind}_{number}" for number in range(1, len(homes) + 1)]
    parts = list(zip(names, homes, cards, strict=True))
    for name, home, card in tuple(parts):
        if card.plan.cascade:  # its first stage goes with it, and before it
            first = home / FIRST_STAGE
            wanted_folds(first)
            parts.insert(0, ((Path(name) / FIRST_STAGE).as_posix(), first, read_card(first)))
    written = [
        (Path(name) / file).as_posix()
        for name, home, _ in parts
        for file in (*(f"fold_{fold}/model.safetensors" for fold in trained_folds(home)), "model.json")
    ]
    cleaning = read_cleaning(model, about.labels)
    written += [POSTPROCESSING_FILE] * bool(cleaning) + [listing] * (names != [""])
    write_json(folder.record, {"volseg": own_version(), "files": written})
    remove_leftovers(out, deep=True)
    # What makes the folder usable goes first and comes last.
    folder.remove([ENSEMBLE_FILE, PARTS_FILE, *(name for name in written if name.endswith("model.json"))])
    folder.remove(folder.listed("files") - set(written))
    folder.remove_empty_folders()
    if cleaning:
        write_json(out / POSTPROCESSING_FILE, {"kept": cleaning.to_json()})
    for name, home, card in parts:
        for fold in trained_folds(home):
            # Through the network, so that nothing else than its weights is in the file.
            weights = load_network(home, card, fold).state_dict()
            path = fold_folder(out / name, fold) / "model.safetensors"
            if half:
                weights = _in_16_bits(weights, path)
            save_weights(path, weights)
        write_card(out / name, _bare(card))
    if names != [""]:
        shared = whole and whole.model_copy(update={"parts": tuple(names)}).model_dump(mode="json")
        write_json(out / listing, shared or {"members": names})
    nameless = replace(about, cards=tuple(map(_bare, about.cards)))
    return (*written, *write_model_card(out, nameless, written))


def _in_16_bits(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights as 16-bit floats; whole numbers, which count batches, stay."""
    rounded = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    large = next((key for key, value in rounded.items() if not value.isfinite().all()), None)
    if large is not None:
        got = f"{weights[large].abs().max().item():.4g} in {large}"
        raise VolsegError(sentence("weights", "at most 65504 in 16 bits", got, "Leave out --half", file=path))
    return rounded


def _bare(card: ModelCard) -> ModelCard:
    """A description without what tells where a model is from."""
    labels = card.plan.label_table.to_json()
    plan = card.plan.model_copy(update={"dataset": UNNAMED, "labels": labels, "reasons": {}})
    settings = card.settings.model_copy(update={"train": card.settings.train.model_copy(update={"mlflow": None})})
    versions = {name: card.provenance[name] for name in _VERSIONS if name in card.provenance}
    return ModelCard(network=card.network, plan=plan, settings=settings, provenance=versions)
