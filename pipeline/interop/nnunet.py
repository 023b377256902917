"""nnU-Net's trained models as model folders of ours, which then predict as nnU-Net does.

Everything is read and checked before anything is written. No code of a model runs: weights come through PyTorch's
reader for untrusted files (:mod:`~pipeline.interop.checkpoint`), all else is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config.settings import InferSettings, ModelSettings, Settings
from pipeline.core.errors import VolsegError, listed, sentence
from pipeline.core.files import OutputFolder, own_version, write_json
from pipeline.interop.checkpoint import Checkpoint, read_checkpoint
from pipeline.interop.nnunet_plans import ModelPlans
from pipeline.interop.results_files import DATASET, PLANS, ResultsFiles
from pipeline.model.folder import (
    PARTS_FILE,
    ModelCard,
    ModelParts,
    fold_folder,
    require_numbers,
    save_weights,
    write_card,
)
from pipeline.model.nnunet import nnunet_weights
from pipeline.model.readme import Described, write_model_card
from pipeline.preprocess.plan_file import FIRST_STAGE

_RECORD = "imported.json"
_PICKLES = ("postprocessing.pkl", "crossval_results_folds_0_1_2_3_4/postprocessing.pkl")

_KINDS = ("final", "best")  # of checkpoints


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Args:
        files: What was written, relative to the model folder.
        network: Name of the network and its dimensions.
        folds: Folds of nnU-Net → their numbers here; all of one stage.
        notes: What was seen and is not read, in sentences.
    """

    files: tuple[str, ...]
    network: str
    folds: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A model that is to be imported, read and checked.

    Args:
        model: Its folder in the results.
        folds: Folds of nnU-Net → their numbers here.
        card: Its description.
    """

    model: str
    folds: Mapping[str, int]
    card: ModelCard


def import_nnunet(
    source: Path | str,
    out: Path | str,
    *,
    configuration: str | None = None,
    folds: Sequence[str] = (),
    checkpoint: str = "final",
    license: str | None = None,
) -> Imported:
    """Write a trained nnU-Net model as a model folder.

    A cascade's first stage, which lies beside its second one, goes with it.

    Args:
        source: A results folder of nnU-Net v2, of one model or of a dataset, or a zip archive that
            ``nnUNetv2_export_model_to_zip`` wrote.
        out: Folder to write: new, empty, or one that was imported before.
        configuration: Which model, such as ``3d_fullres``, where there are several.
        folds: Folds to take, numbers or ``all``; by default all that have a number, or ``all`` where none has.
        checkpoint: ``final``: weights of the end of the training; ``best``: those that were best by its own measure.
        license: Of the weights, as SPDX names it, for the model card.

    Returns:
        What was imported.

    Raises:
        VolsegError: If something in the model is unknown, damaged or not what it should be, or ``out`` holds other
            files. Nothing is written then.
    """
    if checkpoint not in _KINDS:
        raise VolsegError(sentence("checkpoint", " or ".join(_KINDS), checkpoint, "Correct it"))
    files, folder = ResultsFiles(Path(source)), OutputFolder(Path(out), _RECORD)
    folder.require_own("a model that was imported before")
    model = _chosen(files, configuration)
    stages = {"": read_stage(files, model, folds, checkpoint)}
    if stages[""].card.plan.cascade:
        stages[FIRST_STAGE] = _first_stage(files, model, folds, checkpoint)
    names = write_stages(files, stages, folder, checkpoint)
    card = stages[""].card
    about = Described((card,), card.plan.label_table, networks=len(stages[""].folds), license=license)
    written = (*names, *write_model_card(folder.path, about, names))
    spec = card.network
    network = f"{spec.name} in {spec.dims}D" + " after a first stage" * (len(stages) > 1)
    return Imported(written, network, stages[""].folds, _notes(files, [stage.model for stage in stages.values()]))


def write_stages(
    files: ResultsFiles,
    stages: Mapping[str, Stage],
    folder: OutputFolder,
    checkpoint: str = "final",
    parts: ModelParts | None = None,
) -> tuple[str, ...]:
    """Write models that were read and checked.

    Args:
        files: Where they are from.
        stages: Folder below the output folder, empty for itself, → model; the last one is written first.
        folder: Output folder.
        checkpoint: Which weights.
        parts: If the models are parts of one, which.

    Returns:
        The files that predicting needs, relative to the output folder.
    """
    names = [
        (Path(home) / name).as_posix()
        for home, stage in stages.items()
        for name in (*(f"fold_{fold}/model.safetensors" for fold in stage.folds.values()), "model.json")
    ] + [PARTS_FILE] * (parts is not None)
    write_json(folder.record, {"volseg": own_version(), "files": names})
    # What makes the folder usable goes first and comes last.
    folder.remove(sorted((folder.listed("files") | set(names)), reverse=True))
    folder.remove_empty_folders()
    for home, stage in reversed(tuple(stages.items())):
        for name, fold in stage.folds.items():
            found, file = _checkpoint(files, stage.model, name, checkpoint)
            save_weights(fold_folder(folder.path / home, fold) / "model.safetensors", _weights(found, stage.card, file))
        write_card(folder.path / home, stage.card)
    if parts is not None:
        write_json(folder.path / PARTS_FILE, parts.model_dump(mode="json"))
    return tuple(names)


def _chosen(files: ResultsFiles, configuration: str | None) -> str:
    """The folder of the model that is wanted."""
    there = {model: model.rpartition("__")[2] for model in files.models if files.checkpoints(model)}
    wanted = [model for model, name in there.items() if configuration in (None, name)]
    if configuration is None and len(wanted) > 1:
        # A cascade needs its first stage, which is none of its own then.
        firsts = {files.beside(model, _previous(files, model)) for model in wanted if _previous(files, model)}
        wanted = [model for model in wanted if model not in firsts] or wanted
    if len(wanted) != 1:
        rule = "one trained model" if configuration is None else f"one trained model of {configuration}"
        got = listed(there) if there else "none with fold_*/checkpoint_final.pth"
        advice = "Choose with --configuration, or name the folder of the model"
        raise VolsegError(sentence("nnU-Net model", rule, got, advice, file=files.path))
    return wanted[0]


def _previous(files: ResultsFiles, model: str) -> str:
    """The configuration of a model's first stage; empty if it has none."""
    configurations = files.read_json(f"{model}/{PLANS}").get("configurations")
    own = configurations.get(model.rpartition("__")[2]) if isinstance(configurations, dict) else None
    return str(own.get("previous_stage") or "") if isinstance(own, dict) else ""


def _first_stage(files: ResultsFiles, model: str, folds: Sequence[str], checkpoint: str) -> Stage:
    """The first stage of a cascade, which lies beside the second."""
    previous = files.beside(model, _previous(files, model))
    if not files.has(f"{previous}/{PLANS}"):
        advice = "Put its results folder beside that of the second stage, or export both"
        raise VolsegError(sentence("first stage", previous, "none", advice, file=files.path))
    return read_stage(files, previous, folds, checkpoint)


def read_stage(files: ResultsFiles, model: str, folds: Sequence[str], checkpoint: str = "final") -> Stage:
    """A model, whose every checkpoint was read and fits its network.

    Raises:
        VolsegError: If not.
    """
    numbers = _numbered(files, model, folds, checkpoint)
    file = files.where(f"{model}/{PLANS}")
    plans = ModelPlans(files.read_json(f"{model}/{PLANS}"), files.read_json(f"{model}/{DATASET}"), file)
    card: ModelCard | None = None
    first: Checkpoint | None = None
    for fold in numbers:
        found, where = _checkpoint(files, model, fold, checkpoint)
        if card is None or first is None:
            first, card = found, _card(plans, found, model, numbers, checkpoint)
        same = (first.trainer, first.configuration, first.mirror_axes)
        if same != (found.trainer, found.configuration, found.mirror_axes):
            got = f"{found.trainer}, {found.configuration}, {found.mirror_axes}"
            rule, advice = f"trainer, configuration and mirror axes of the other folds, {same}", "Choose with --fold"
            raise VolsegError(sentence("checkpoint", rule, got, advice, file=where))
        _weights(found, card, where)
    assert card is not None  # there is a fold
    return Stage(model, numbers, card)


def _numbered(files: ResultsFiles, model: str, folds: Sequence[str], checkpoint: str) -> dict[str, int]:
    """Folds of nnU-Net → their numbers here; ``all`` comes after the others."""
    there = {fold: kinds for fold, kinds in files.checkpoints(model).items() if checkpoint in kinds}
    numbered = sorted((fold for fold in there if fold != "all"), key=int)
    wanted = list(dict.fromkeys(folds)) or numbered or list(there)
    missing = [fold for fold in wanted if fold not in there]
    if missing or not wanted:
        rule = f"fold {', '.join(missing)} with checkpoint_{checkpoint}.pth" if missing else "a trained fold"
        got = ", ".join((*numbered, *(["all"] if "all" in there else []))) or "none"
        raise VolsegError(sentence("folds", rule, got, "Choose with --fold and --checkpoint", file=files.where(model)))
    found = {fold: int(fold) for fold in wanted if fold != "all"}
    return found | ({"all": max(found.values(), default=-1) + 1} if "all" in wanted else {})


def _checkpoint(files: ResultsFiles, model: str, fold: str, kind: str) -> tuple[Checkpoint, str]:
    content, file = files.read_checkpoint(model, fold, kind)
    return read_checkpoint(content, file), file


def _card(plans: ModelPlans, found: Checkpoint, model: str, folds: Mapping[str, int], checkpoint: str) -> ModelCard:
    """Description of a model, of which one checkpoint is known."""
    plan = plans.plan(found.configuration, found.mirror_axes)
    spec = plans.network(found.configuration, plan, found.trainer)
    settings = Settings(
        model=ModelSettings(name=spec.name, dims=spec.dims, options=spec.options),
        infer=InferSettings(blend="nnunet", mirror=bool(found.mirror_axes)),
    )
    origin = {
        "volseg": own_version(),
        "nnU-Net model": model.rpartition("/")[2],
        "nnU-Net trainer": found.trainer,
        "nnU-Net checkpoints": f"checkpoint_{checkpoint}.pth of fold {', '.join(folds)}",
    }
    return ModelCard(network=spec, plan=plan, settings=settings, provenance=origin)


def _weights(found: Checkpoint, card: ModelCard, file: str) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint under our network's names, in 32 bits.

    Raises:
        VolsegError: If they are not those of the network, or no numbers.
    """
    wanted = {name: tuple(value.shape) for name, value in card.network.structure().state_dict().items()}
    weights = nnunet_weights(found.weights)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes != wanted:
        other = sorted(name for name in {*wanted, *shapes} if wanted.get(name) != shapes.get(name))
        got = f"{len(other)} tensors that are missing, surplus or of another shape, such as {other[0]}"
        advice = "Plans and weights are of different models"
        raise VolsegError(sentence("weights", f"those of {card.network.name} by {PLANS}", got, advice, file=file))
    require_numbers(weights, Path(file))
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _notes(files: ResultsFiles, models: Sequence[str]) -> tuple[str, ...]:
    """What was seen and is not read."""
    pickles = [name for model in models for name in (f"{model}/{pickle}" for pickle in _PICKLES) if files.has(name)]
    return tuple(
        f"{files.where(name)} is a pickle and was not executed: masks are not post-processed." for name in pickles
    )
