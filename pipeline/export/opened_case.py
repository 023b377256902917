"""A case of an evaluation with its volumes, as it was evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.core import Image, LabelMap, VolsegError, require_same_grid
from pipeline.core.errors import DataError, sentence
from pipeline.data.volume_file import is_picture
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate import OVERLAP_ONLY, EvaluatedCase, Evaluation, Row, score_case
from pipeline.evaluate.alignment import aligned, replaced_values, without_values

__all__ = ["OpenedCase", "open_case"]


@dataclass(frozen=True, eq=False)
class OpenedCase:
    """Volumes of a case on one grid.

    Args:
        id: Case id.
        reference: Reference label map without labels that were not scored.
        prediction: Predicted label map as it was scored: on the reference's grid, with the reference's values.
        image: First channel of the image; None if there is none or it cannot be used.
        problem: Why the image that the evaluation knows of cannot be used; empty if it can, or if none is known.
        picture: Whether image or reference is a picture: no one knows the patient's sides.
    """

    id: str
    reference: LabelMap
    prediction: LabelMap
    image: Image | None
    problem: str = ""
    picture: bool = False


def open_case(case: EvaluatedCase, evaluation: Evaluation) -> OpenedCase:
    """Read the volumes of a case and make sure that they are those that were scored.

    Args:
        case: A case with a prediction.
        evaluation: What was found.

    Raises:
        VolsegError: If a label map cannot be read, or its scores are no longer those of the evaluation.
    """
    if case.prediction is None:
        raise DataError(sentence("prediction", "a label map", "none", "Predict it", case=case.id))
    measures = evaluation.measures
    reference = without_values(read_label_map(case.reference, case=case.id), measures.unscored)
    prediction = replaced_values(read_label_map(case.prediction, case=case.id), measures.remap)
    prediction = aligned(prediction, reference.grid, case.id, resample=measures.resample)
    then = [row for row in evaluation.rows if row.case == case.id]
    _require_same_scores(score_case(prediction, reference, evaluation.labels, case.id, OVERLAP_ONLY), then, case.id)
    image, problem = _image(case, reference)
    picture = any(map(is_picture, (case.reference, *case.images)))
    return OpenedCase(case.id, reference, prediction, image, problem, picture)


def _require_same_scores(now: Sequence[Row], then: Sequence[Row], case: str) -> None:
    known = {row.name: row for row in then}
    for row in now:
        old = known.get(row.name, replace(row, dice=math.nan, volume_reference_ml=math.nan))
        for what, one, other in (
            ("Dice", row.dice, old.dice),
            ("mL in the reference", row.volume_reference_ml, old.volume_reference_ml),
        ):
            if not (one == other or math.isclose(one, other, rel_tol=1e-6) or (math.isnan(one) and math.isnan(other))):
                got = f"{row.name} with {what} {one:.3f} instead of {other:.3f}"
                raise DataError(
                    sentence("label maps", "those that were evaluated", got, "Run volseg evaluate again", case=case)
                )


def _image(case: EvaluatedCase, reference: LabelMap) -> tuple[Image | None, str]:
    if not case.images:
        return None, ""
    try:
        image = read_image(case.images[:1], case=case.id)
        require_same_grid(reference.grid, image.grid, "image grid", "the reference grid", case=case.id)
    except VolsegError as error:
        return None, str(error)
    return Image(image.array[:1], image.grid), ""
