"""From an image to a label map on its own grid: load a model once, call it many times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import InferSettings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.infer.logits import check_window, predict_logits
from pipeline.infer.postprocess import keep_largest
from pipeline.infer.restore import restore_labels
from pipeline.model.device import choose_device, choose_dtype, to_device
from pipeline.model.folder import ModelCard, load_network, read_card, trained_folds
from pipeline.preprocess.prepare import prepare_image
from pipeline.sample.augment import directions

__all__ = ["Predictor", "check_inference"]


class Predictor:
    """A trained model, ready to segment.

    Example:
        >>> predictor = Predictor.load("model")                       # doctest: +SKIP
        >>> label_map = predictor.predict(read_image("scan.nii.gz"))  # doctest: +SKIP

    Args:
        card: Description of the model.
        networks: One per fold; their logits are averaged.
        device: Where to compute.
        settings: Section ``infer``; by default the one the model was trained with.
        extra: The further MONAI transforms that training data went through, if any.

    Raises:
        ConfigError: If the settings do not suit the model (see :func:`check_inference`), or the further transforms are
            not those of training.
    """

    def __init__(
        self,
        card: ModelCard,
        networks: Sequence[nn.Module],
        device: torch.device | None = None,
        settings: InferSettings | None = None,
        extra: Sequence[Any] = (),
    ) -> None:
        self.card = card
        self.device = device or choose_device()
        self.settings = settings or card.settings.infer
        self.extra = tuple(extra)
        self.dtype = choose_dtype(self.device, card.settings.train.precision)
        names = tuple(type(transform).__name__ for transform in extra)
        if names != card.plan.extra:
            rule, got = (", ".join(found) or "none" for found in (card.plan.extra, names))
            raise ConfigError(
                [f"further transforms: expected those of training ({rule}), got {got}. Give them as extra=[…]."]
            )
        check_inference(card, self.settings)
        self.mirror_axes = _mirror_axes(card) if self.settings.mirror else ()
        self.cleaned = tuple(self.labels.without(name) for name in self.settings.keep_largest)
        self.networks = [to_device(network, self.device).eval() for network in networks]

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        folds: Sequence[int] | None = None,
        device: str | None = None,
        settings: InferSettings | None = None,
        extra: Sequence[Any] = (),
    ) -> Predictor:
        """Load a model folder.

        Args:
            folder: What ``volseg train`` wrote.
            folds: Folds to average; by default all that are trained.
            device: Name of the device; by default the best there is.
            settings: Section ``infer``; by default the model's own.
            extra: The further MONAI transforms that training data went through, if any.

        Raises:
            VolsegError: If the folder holds no trained model, or not the folds asked for.
        """
        folder = Path(folder)
        card = read_card(folder)
        trained = trained_folds(folder)
        wanted = tuple(folds) if folds is not None else trained
        missing = sorted(set(wanted) - set(trained))
        if not wanted or missing:
            got = ", ".join(map(str, trained)) or "none"
            asked = f"folds {', '.join(map(str, missing))}" if missing else "a trained fold"
            raise VolsegError(f"{folder}: expected {asked}, got {got}. Let `volseg train` finish, or choose --fold.")
        networks = [load_network(folder, card, fold) for fold in wanted]
        return cls(card, networks, choose_device(device), settings, extra)

    @property
    def labels(self) -> LabelTable:
        """Label table of the masks."""
        return self.card.plan.label_table

    def predict(self, image: Image, case: str = "image") -> LabelMap:
        """Segment one image.

        Args:
            image: (C, I, J, K) on any grid, channels in the order of the training data.
            case: Name used in error messages.

        Returns:
            Label values on exactly the image's grid.

        Raises:
            DataError: If the number of channels is wrong or intensities are not finite.
        """
        card = self.card
        array, trace = prepare_image(image, card.plan, case=case, extra=self.extra)
        prepared = torch.from_numpy(array).to(self.device)
        total: Tensor | None = None
        for network in self.networks:
            logits = predict_logits(
                network, prepared, card.network, card.plan, self.settings, self.dtype, self.mirror_axes
            )
            total = logits if total is None else total.add_(logits)
        if total is None:
            raise ConfigError(["prediction: expected at least one network, got none. Load a trained model."])
        index = restore_labels(total, trace, painting=self.labels.painting())
        if self.cleaned:
            index = np.asarray(keep_largest(index, self.cleaned), dtype=index.dtype)
        return LabelMap(self.labels.from_index(index), image.grid)


def _mirror_axes(card: ModelCard) -> tuple[int, ...]:
    """Volume axes that training mirrored: the network knows no other mirror images."""
    flips = card.settings.augment.flip_axes if card.settings.augment.enabled else ()
    named = directions(card.plan.orientation)
    return tuple(axis for axis in card.plan.axes(card.network.dims) if named[axis] in flips)


def check_inference(card: ModelCard, settings: InferSettings) -> None:
    """Refuse settings of inference that a model cannot follow; training asks before it begins.

    Args:
        card: Description of the model.
        settings: Section ``infer``.

    Raises:
        ConfigError: If mirroring is asked of a network that saw no mirrored patches, an organ to clean is not known, or
            the window is none the network can tile volumes with.
    """
    known = card.plan.label_table.targets
    unknown = [name for name in settings.keep_largest if name not in known]
    if unknown:
        got = ", ".join(unknown)
        raise ConfigError([f"infer.keep_largest: expected some of {', '.join(known)}, got {got}. Correct it."])
    if settings.mirror and not _mirror_axes(card):
        raise ConfigError(["infer.mirror: expected a model trained with flips, got one without. Set it to false."])
    check_window(card.network, settings)
