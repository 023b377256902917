"""From an image to a label map on its own grid: load a model once, call it many times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.config.settings import InferSettings
from pipeline.core.errors import ConfigError, sentence
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.infer.cleaning import Cleaning, read_cleaning
from pipeline.infer.coarse_to_fine import segment_region
from pipeline.infer.probability_maps import SoftPrediction, SoftWanted
from pipeline.infer.restore import Prepared, segment, segment_softly
from pipeline.infer.roi import SearchRegion
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import choose_devices
from pipeline.model.folder import ModelCard, member_folders
from pipeline.preprocess.prepare_case import prepare_image


class Predictor:
    """A trained model, or an ensemble of several, ready to segment.

    Example:
        >>> predictor = Predictor.load("model")                       # doctest: +SKIP
        >>> label_map = predictor.predict(read_image("scan.nii.gz"))  # doctest: +SKIP

    Args:
        members: At least one, all with the same channels and labels; of several the probabilities are averaged.
        extra: The further MONAI transforms that training data went through, if any.
        learnt: Cleaning of the masks that cross-validation found to help, beside what the settings ask for.
        folder: Where the members were loaded from.

    Raises:
        ConfigError: If the further transforms are not those of training.
    """

    def __init__(
        self,
        members: Sequence[TrainedModel],
        extra: Sequence[Any] = (),
        learnt: Cleaning | None = None,
        folder: Path | None = None,
    ) -> None:
        self.members, self.folder = tuple(members), folder
        self.extra = tuple(extra)
        names = tuple(type(transform).__name__ for transform in extra)
        for member in self.members:
            if names != member.card.plan.extra:
                rule, got = (", ".join(found) or "none" for found in (member.card.plan.extra, names))
                raise ConfigError(
                    [f"further transforms: expected those of training ({rule}), got {got}. Give them as extra=[…]."]
                )
        self.cleaning = learnt or Cleaning()
        for member in self.members:
            self.cleaning = Cleaning.of(member.settings) | self.cleaning

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        folds: Sequence[int] | None = None,
        device: str | None = None,
        settings: InferSettings | None = None,
        extra: Sequence[Any] = (),
        max_memory_gb: float | None = None,
    ) -> Self:
        """Load a model folder, or the folder of an ensemble.

        What cross-validation found to help (``postprocessing.json`` in the folder) is done to every mask, unless
        ``settings.postprocessing`` is off.

        Args:
            folder: What ``volseg train`` or ``volseg choose`` wrote.
            folds: Folds to average; by default all that are trained.
            device: Name of the device; by default the best there is. Over several (``cuda:0,cuda:1`` or ``cuda:all``)
                the folds, and the members of an ensemble, are spread.
            settings: Section ``infer``, of an ensemble for all members; by default each model's own.
            extra: The further MONAI transforms that training data went through, if any.
            max_memory_gb: Memory, in units of 1e9 bytes, that the logits of an image may take; by default what is free.
                An image that needs more is refused before the first window.

        Raises:
            VolsegError: If the folder holds no trained model, or not the folds asked for.
        """
        folder, places = Path(folder), deque(choose_devices(device))
        most = None if max_memory_gb is None else int(max_memory_gb * 1e9)
        members: list[TrainedModel] = []
        for home in member_folders(folder):
            members.append(TrainedModel.load(home, tuple(places), folds, settings, most))
            places.rotate(-len(members[-1].networks))  # the next network goes to the next device
        wanted = all(member.settings.postprocessing for member in members)
        learnt = read_cleaning(folder, members[0].card.plan.label_table) if wanted else None
        return cls(members, extra, learnt, folder)

    @property
    def card(self) -> ModelCard:
        """Description of the model, of an ensemble that of its first member."""
        return self.members[0].card

    @property
    def settings(self) -> InferSettings:
        """Section ``infer``, of an ensemble that of its first member."""
        return self.members[0].settings

    @property
    def networks(self) -> list[nn.Module]:
        """All networks."""
        return [network for member in self.members for network in member.networks]

    @property
    def labels(self) -> LabelTable:
        """Label table of the masks."""
        return self.card.plan.label_table

    def predict(
        self, image: Image, case: str = "image", told: Callable[[SearchRegion], None] | None = None
    ) -> LabelMap:
        """Segment one image.

        Args:
            image: (C, I, J, K) on any grid, channels in the order of the training data.
            case: Name used in error messages.
            told: Where the model looked, if ``infer.roi`` is not none and there is one model: an ensemble looks at
                everything.

        Returns:
            Label values on exactly the image's grid.

        Raises:
            DataError: If the number of channels is wrong or intensities are not finite.
            VolsegError: If the memory is too small, before the first window.
        """
        prepared = self._prepared(image, case)
        if len(self.members) > 1 or self.settings.roi == "none":
            return self._cleaned(segment(self.members, prepared), image.grid)
        index, region = segment_region(self.members[0], *prepared[0])
        if told is not None:
            told(region)
        return self._cleaned(index, image.grid)

    def predict_soft(
        self,
        image: Image,
        organs: Sequence[str] = (),
        *,
        entropy: bool = True,
        case: str = "image",
        scratch: Path | None = None,
    ) -> SoftPrediction:
        """Segment one image and tell how sure the networks are; the label map is that of :meth:`predict`.

        Args:
            image: As for :meth:`predict`.
            organs: Organs or regions whose probabilities are wanted, e.g. ``predictor.labels.targets`` for all.
            entropy: Whether the entropy of all classes is wanted.
            case: Name used in error messages.
            scratch: Folder for temporary files, so that what is wanted need not be held in memory: the arrays are then
                maps of files that vanish with them.

        Raises:
            ConfigError: If ``infer.roi`` is not none.
            DataError: As :meth:`predict`, or if the networks find no such organ or region.
            VolsegError: As :meth:`predict`, or if the disk is full.
        """
        self.require_whole_images()
        wanted = SoftWanted(tuple(organs), entropy, scratch)
        wanted.channels(self.labels)
        index, maps = segment_softly(self.members, self._prepared(image, case), wanted)
        return maps.finished(self._cleaned(index, image.grid))

    def require_whole_images(self) -> None:
        """Make sure that every window is looked at, as probabilities need it: where none was, there are no logits.

        Raises:
            ConfigError: If ``infer.roi`` is not none.
        """
        if self.settings.roi != "none":
            rule = "none with probabilities, entropy or confidence"
            raise ConfigError([sentence("infer.roi", rule, self.settings.roi, "Leave one of them out")])

    def _prepared(self, image: Image, case: str) -> list[Prepared]:
        """The image as every member sees it; members of one recipe share it."""
        plans = {member.card.plan.content_hash: member.card.plan for member in self.members}
        found = {recipe: prepare_image(image, plan, case=case, extra=self.extra) for recipe, plan in plans.items()}
        return [found[member.card.plan.content_hash] for member in self.members]

    def _cleaned(self, index: NDArray[np.integer[Any]], grid: Grid) -> LabelMap:
        """Label values of class indices, cleaned."""
        index = np.asarray(self.cleaning.apply(index, self.labels, grid.voxel_volume_ml), dtype=index.dtype)
        return LabelMap(self.labels.from_index(index), grid)
