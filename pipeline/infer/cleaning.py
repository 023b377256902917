"""Which organs of a label map are cleaned how, as one value: from the settings, or learnt by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import InferSettings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json
from pipeline.core.labels import LabelTable
from pipeline.core.regions import joined_with
from pipeline.infer.postprocess import fill_holes, keep_largest, remove_small

__all__ = ["POSTPROCESSING_FILE", "Cleaning", "classes_with", "read_cleaning"]

POSTPROCESSING_FILE = "postprocessing.json"
"""In a model folder: what cross-validation found to help."""

_ROUNDING = 1e-6  # voxels: 0.3 ml of voxels of 0.1 ml are 3 voxels, not 3.0000000000000004


@dataclass(frozen=True)
class Cleaning:
    """What is done to a label map, in this order; regions count as organs.

    Args:
        keep_largest: Organs of which only the largest connected component is kept.
        remove_small_ml: Organ → volume in mL that a connected component must have to stay.
        fill_holes: Organs whose enclosed holes are filled.
    """

    keep_largest: tuple[str, ...] = ()
    remove_small_ml: Mapping[str, float] = field(default_factory=dict)
    fill_holes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: InferSettings) -> Cleaning:
        """What the settings ask for."""
        return cls(settings.keep_largest, settings.remove_small_ml, settings.fill_holes)

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return bool(self.keep_largest or self.remove_small_ml or self.fill_holes)

    def __or__(self, other: Cleaning) -> Cleaning:
        """What either does; of two smallest volumes the larger."""
        volumes = dict(self.remove_small_ml)
        for name, volume in other.remove_small_ml.items():
            volumes[name] = max(volume, volumes.get(name, 0.0))
        return Cleaning(_both(self.keep_largest, other.keep_largest), volumes, _both(self.fill_holes, other.fill_holes))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            "keep_largest": list(self.keep_largest),
            "remove_small_ml": dict(self.remove_small_ml),
            "fill_holes": list(self.fill_holes),
        }

    def names(self) -> tuple[str, ...]:
        """Every organ that is cleaned, each once."""
        return tuple(dict.fromkeys((*self.keep_largest, *self.remove_small_ml, *self.fill_holes)))

    def apply(self, index: NDArray[np.integer[Any]], labels: LabelTable, voxel_ml: float) -> NDArray[np.integer[Any]]:
        """Clean a label map.

        Args:
            index: (I, J, K) class indices.
            labels: Label table whose classes these are.
            voxel_ml: Volume of a voxel in mL.

        Returns:
            The same shape and type; a new array if anything is done.

        Raises:
            KeyError: If an organ is not in the label table.
        """
        if self.keep_largest:
            index = keep_largest(index, [labels.without(name) for name in self.keep_largest])
        if self.remove_small_ml:
            fewest = {name: volume / voxel_ml - _ROUNDING for name, volume in self.remove_small_ml.items()}
            index = remove_small(index, [(labels.without(name), count) for name, count in fewest.items()])
        if self.fill_holes:
            index = fill_holes(index, [(labels.without(name), classes_with(labels, name)) for name in self.fill_holes])
        return index


def classes_with(labels: LabelTable, target: str) -> tuple[int, ...]:
    """What becomes of each class, background first, where a target is added: a class index.

    The background becomes the organ, other organs stay. Of regions, a class becomes the one that lies in this region
    as well; where there is none, it stays.

    Args:
        labels: The label table.
        target: Name of an organ or region.

    Raises:
        KeyError: If there is no such organ.
    """
    table = labels.indexed()
    joined = joined_with(target, table.regions, table.painted) if table.regions else {0: table.value_of(target)}
    return tuple(joined.get(n, n) for n in range(table.classes))


def read_cleaning(folder: Path, labels: LabelTable) -> Cleaning:
    """What cross-validation found to help a model; nothing if the folder has no such file.

    Args:
        folder: Model folder.
        labels: Its label table.

    Raises:
        VolsegError: If the file is damaged, or of another model.
    """
    path = folder / POSTPROCESSING_FILE
    if not path.is_file():
        return Cleaning()
    try:
        kept = read_json(path)["kept"]
        volumes = {str(name): float(volume) for name, volume in kept["remove_small_ml"].items()}
        found = Cleaning(tuple(kept["keep_largest"]), volumes, tuple(kept["fill_holes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        advice = "Write it again with `volseg cross-validate`, or delete it"
        raise VolsegError(
            sentence("post-processing", "the one of a cross-validation", repr(error), advice, file=path)
        ) from None
    unknown = [name for name in found.names() if name not in labels.targets]
    if unknown:
        rule, advice = f"organs of the model ({', '.join(labels.targets)})", "Delete it: it is of another model"
        raise VolsegError(sentence("post-processing", rule, ", ".join(map(str, unknown)), advice, file=path))
    return found


def _both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))
