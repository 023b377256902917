"""A trained model as it takes part in a prediction: from prepared images to logits, from logits to class indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import InferSettings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.files import file_hash
from pipeline.infer.augmented import augmentation_problems, mirror_axes, rotation_of
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.logits import CaseInference
from pipeline.infer.passes import spread
from pipeline.infer.roi import Box
from pipeline.infer.room import device_with_room
from pipeline.infer.window_size import check_window
from pipeline.model.device import choose_dtype, to_device
from pipeline.model.folder import ModelCard, fold_folder, load_network, read_card, trained_folds

__all__ = ["Member", "check_inference"]


class Member:
    """A trained model: one network per fold, whose logits are averaged.

    Args:
        card: Description of the model.
        networks: One per fold, at least one.
        device: Where to compute, or several devices over which the networks are spread; sums are on the first.
        settings: Section ``infer``; by default the one the model was trained with.
        most_bytes: Memory that the sums over windows may take on the CPU; by default all that is free.
        sources: Content hashes of the files it was loaded from.

    Raises:
        ConfigError: If there is no network, or the settings do not suit the model (see :func:`check_inference`).
    """

    def __init__(
        self,
        card: ModelCard,
        networks: Sequence[nn.Module],
        device: torch.device | Sequence[torch.device],
        settings: InferSettings | None = None,
        most_bytes: int | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        if not networks:
            raise ConfigError(["prediction: expected at least one network, got none. Load a trained model."])
        self.card, self.most_bytes, self.sources = card, most_bytes, tuple(sources)
        self.devices = spread(len(networks), [device] if isinstance(device, torch.device) else device)
        self.device = self.devices[0]
        self.settings = settings or card.settings.infer
        self.dtype = choose_dtype(self.device, card.settings.train.precision)
        check_inference(card, self.settings)
        self.mirror_axes = mirror_axes(card.plan, card.network.dims, card.settings) if self.settings.mirror else ()
        self.rotation = rotation_of(card.plan, card.network) if self.settings.rotate else None
        pairs = zip(networks, self.devices, strict=True)
        self.networks = [to_device(network, place).eval() for network, place in pairs]
        self.inference = CaseInference(
            self.networks, card.network, card.plan, self.settings, self.dtype, self.mirror_axes, self.rotation
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device | Sequence[torch.device],
        folds: Sequence[int] | None = None,
        settings: InferSettings | None = None,
        most_bytes: int | None = None,
    ) -> Member:
        """Load a model folder.

        Args:
            folder: What ``volseg train`` wrote.
            device: As for the class.
            folds: Folds to average; by default all that are trained.
            settings: Section ``infer``; by default the model's own.
            most_bytes: As for the class.

        Raises:
            VolsegError: If the folder holds no trained model, or not the folds asked for.
        """
        card = read_card(folder)
        trained = trained_folds(folder)
        wanted = tuple(folds) if folds is not None else trained
        missing = sorted(set(wanted) - set(trained))
        if not wanted or missing:
            got = ", ".join(map(str, trained)) or "none"
            asked = f"folds {', '.join(map(str, missing))}" if missing else "a trained fold"
            raise VolsegError(f"{folder}: expected {asked}, got {got}. Let `volseg train` finish, or choose --fold.")
        files = (folder / "model.json", *(fold_folder(folder, fold) / "model.safetensors" for fold in wanted))
        networks = [load_network(folder, card, fold) for fold in wanted]
        return cls(card, networks, device, settings, most_bytes, [file_hash(file) for file in files])

    def labels(
        self, prepared: NDArray[np.floating[Any]], target: Sequence[int], part: Tensor | Box | None = None
    ) -> tuple[int, Iterator[tuple[int, Tensor]]]:
        """Class indices of a prepared image, see :meth:`~pipeline.infer.logits.CaseInference.labels`.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the labels.
            part: What to look at; None for everything.
        """
        return self.inference.labels(self._image(prepared), target, part)

    def labelled_rows(
        self, prepared: NDArray[np.floating[Any]], target: Sequence[int]
    ) -> tuple[int, Iterator[tuple[int, Tensor, Tensor]]]:
        """Class indices and logits, see :meth:`~pipeline.infer.logits.CaseInference.labelled_rows`.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the labels.
        """
        return self.inference.labelled_rows(self._image(prepared), target)

    def logit_rows(
        self, prepared: NDArray[np.floating[Any]], target: Sequence[int], axis: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Resampled logits of a prepared image, see :meth:`~pipeline.infer.logits.CaseInference.logit_rows`.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the result.
            axis: Along which they come.
        """
        yield from self.inference.logit_rows(self._image(prepared), target, axis)

    def _image(self, prepared: NDArray[np.floating[Any]]) -> Tensor:
        """The image where the sums over its windows have room."""
        place = device_with_room(*self.inference.needed_bytes(prepared.shape[1:]), self.device, self.most_bytes)
        return torch.from_numpy(np.ascontiguousarray(prepared, dtype=np.float32)).to(place)


def check_inference(card: ModelCard, settings: InferSettings) -> None:
    """Refuse settings of inference that a model cannot follow; training asks before it begins.

    Args:
        card: Description of the model.
        settings: Section ``infer``.

    Raises:
        ConfigError: If mirroring or rotation is asked of a network that saw no such patches, an organ to clean is not
            known, or the window is none the network can tile volumes with.
    """
    known = card.plan.label_table.targets
    for key, names in Cleaning.of(settings).to_json().items():
        unknown = [name for name in names if name not in known]
        if unknown:
            got = ", ".join(unknown)
            raise ConfigError([f"infer.{key}: expected some of {', '.join(known)}, got {got}. Correct it."])
    problems = augmentation_problems(card.plan, card.network, card.settings, settings)
    if problems:
        raise ConfigError(problems)
    check_window(card.network, settings)
