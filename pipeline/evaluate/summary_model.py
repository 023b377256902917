"""What ``summary.json`` must hold for those who read it.

Loaded only where there is one: building these models is a tenth of the start of commands that read none.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from pipeline.core.documents import short
from pipeline.core.errors import sentence
from pipeline.core.labels import LabelTable
from pipeline.data.prepared_cases import PossibleFile
from pipeline.evaluate.metrics import METRICS, STATUSES

_Number = float | None
_Interval = Annotated[list[float], Field(min_length=2, max_length=2)] | None


class _Part(BaseModel):
    """Base of what is checked of ``summary.json``; further keys are for others."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Mean(_Part):
    mean: _Number
    interval_95: _Interval


class _Spread(_Mean):
    median: _Number
    sd: _Number
    min: _Number
    max: _Number


class _OverallMean(_Mean):
    over_cases: _Spread


class _Volume(_Part):
    reference_ml: _Number
    bias_ml: _Number
    sd_ml: _Number
    limits_of_agreement_ml: _Interval
    bias_percent: _Number


class _Group(_Part):
    n_cases: int
    dice: _Mean


class _Case(_Part):
    case: str
    dice: _Number
    worst_organ: str | None
    worst_dice: _Number
    reference: PossibleFile | None = None
    prediction: PossibleFile | None = None
    images: list[PossibleFile] = []


class _Failure(_Part):
    case: str
    message: str


def _counts(kind: type[_Mean], **more: Any) -> Any:
    """A model of counts, and of means of those metrics that were measured."""
    counts: dict[str, Any] = dict.fromkeys(("n", *(f"n_{status}" for status in STATUSES)), (int, ...))
    # A default is not checked: a metric may be missing, but not null.
    means: dict[str, Any] = dict.fromkeys(METRICS, (kind, None)) | {"dice": (kind, ...), "iou": (kind, ...)}
    return create_model("_Counts", __base__=_Part, **{**counts, **means, **more})


def _label_table(content: dict[str, Any]) -> dict[str, Any]:
    LabelTable.from_json(content)  # called for its refusals
    return content


_Overall: Any = _counts(_OverallMean, n_cases=(int, ...), n_organs=(int, ...))
_Organ: Any = _counts(_Spread, volume=(_Volume, ...))


class SummaryModel(_Part):
    """Content of ``summary.json``, as far as it is read."""

    overall: _Overall
    organs: dict[str, _Organ]
    cases: list[_Case]
    labels: Annotated[dict[str, Any], AfterValidator(_label_table)]
    conventions: list[str]
    failures: list[_Failure]
    notes: list[str]
    subgroups: dict[str, dict[str, _Group]] = {}

    @model_validator(mode="after")
    def _of_one_evaluation(self) -> Self:
        measured = METRICS.keys() & self.overall.model_fields_set
        odd: list[str | None] = [
            name for name, organ in self.organs.items() if METRICS.keys() & organ.model_fields_set != measured
        ]
        odd += [case.worst_organ for case in self.cases if case.worst_organ not in (None, *self.organs)]
        odd += [*self.organs.keys() - set(LabelTable.from_json(self.labels).targets)]
        if odd:
            got = short(odd[0])
            raise ValueError(
                sentence("organs", "those of the labels, all measured alike", got, "Run `volseg evaluate`")
            )
        return self
