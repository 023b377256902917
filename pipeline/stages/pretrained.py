"""The weights of another model that a training begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import VolsegError
from pipeline.model.base import SegmentationNetwork
from pipeline.model.folder import ModelCard, fold_folder, load_weights, read_card, trained_folds
from pipeline.model.transfer import transfer_weights
from pipeline.preprocess.plan import Plan

__all__ = ["GivenWeights", "begin_with", "given_weights"]

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class GivenWeights:
    """A trained fold.

    Args:
        path: Its weights.
        card: Description of its model.
    """

    path: Path
    card: ModelCard


def given_weights(start: Path, fold: int) -> GivenWeights:
    """Find the weights to begin with.

    Args:
        start: Model folder, or the folder of one of its folds.
        fold: The fold that is trained: that of the model is taken if there is one, else its first.

    Raises:
        VolsegError: If there is no trained model.
    """
    if (start / _WEIGHTS).is_file():
        return GivenWeights(start / _WEIGHTS, read_card(start.parent))
    card, folds = read_card(start), trained_folds(start)
    if not folds:
        raise VolsegError(f"{start}: expected a trained fold, got none. Train it to its end, or give another model.")
    return GivenWeights(fold_folder(start, fold if fold in folds else folds[0]) / _WEIGHTS, card)


def begin_with(network: SegmentationNetwork, given: GivenWeights, plan: Plan) -> list[str]:
    """Take over the weights that fit.

    Args:
        network: Changed in place.
        given: The trained fold.
        plan: How the new training's cases were prepared.

    Returns:
        What the user should know of it, line by line.

    Raises:
        VolsegError: If nothing fits.
    """
    result = transfer_weights(network, load_weights(given.path))
    if not result.kernels:
        rule, advice = "weights that fit the network", "Train the same network, or another model with its options"
        raise VolsegError(f"{given.path}: expected {rule}, got those of {given.card.network.name}. {advice}.")
    lines = [f"{given.path}: {line}." for line in result.lines()]
    other = given.card.plan
    if other.spacing_mm != plan.spacing_mm:
        here, there = (" x ".join(f"{mm:g}" for mm in spacing) for spacing in (plan.spacing_mm, other.spacing_mm))
        lines.append(
            f"Cases were prepared with {here} mm, those of the other model with {there} mm: shapes look unlike."
        )
    if [entry.scheme for entry in other.normalization] != [entry.scheme for entry in plan.normalization]:
        lines.append("Cases were normalized otherwise than those of the other model: intensities look unlike.")
    return lines
