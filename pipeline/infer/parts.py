"""A model of several parts, each of which finds some of its organs: what one part needs to know, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import InferSettings
from pipeline.core.errors import ConfigError, sentence
from pipeline.core.labels import LabelTable
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.segment import SearchRegion


def require_known_organs(settings: InferSettings, whole: LabelTable) -> None:
    """Refuse to clean organs that no part finds; of each part only its own are asked.

    Raises:
        ConfigError: If there is one.
    """
    problems = [
        sentence(f"infer.{key}", f"some of {', '.join(whole.targets)}", name, "Correct it")
        for key, names in Cleaning.of(settings).to_json().items()
        for name in names
        if name not in whole.targets
    ]
    if problems:
        raise ConfigError(problems)


def settings_of_part(settings: InferSettings, labels: LabelTable) -> InferSettings:
    """Settings of the whole model as one part takes them: without the organs of others."""
    known = labels.targets
    return settings.model_copy(
        update={
            "keep_largest": tuple(name for name in settings.keep_largest if name in known),
            "remove_small_ml": {name: ml for name, ml in settings.remove_small_ml.items() if name in known},
            "fill_holes": tuple(name for name in settings.fill_holes if name in known),
        }
    )


def paint_over(
    whole: NDArray[np.unsignedinteger[Any]], found: NDArray[np.unsignedinteger[Any]], classes: Sequence[int]
) -> None:
    """Paint what a part found over what earlier ones did.

    Args:
        whole: (I, J, K) class indices of the model, changed in place.
        found: (I, J, K) class indices of the part; its background changes nothing.
        classes: Class index of the part → that of the model.
    """
    lookup = np.asarray(classes, dtype=whole.dtype)
    for plane, painted in zip(whole, found, strict=True):  # plane by plane, so that no third volume is held
        inside = painted != 0
        plane[inside] = lookup[painted[inside]]


def joined_regions(regions: Sequence[SearchRegion]) -> SearchRegion | None:
    """Where the parts looked, taken together; None if they looked at everything, ``none`` if not all at the same."""
    if not regions:
        return None
    kinds = {region.kind for region in regions}
    windows, skipped = sum(region.windows for region in regions), sum(region.skipped for region in regions)
    why = "; ".join(dict.fromkeys(region.why for region in regions if region.why)) or None
    return SearchRegion(kinds.pop() if len(kinds) == 1 else "none", windows, skipped, why=why)
