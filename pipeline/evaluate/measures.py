"""What to measure of every organ (:class:`Measures`), and the conventions that follows, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import VolsegError, sentence
from pipeline.evaluate.calibration import CALIBRATION_BINS, CALIBRATION_MARGIN_MM
from pipeline.evaluate.metrics import CALIBRATION_COLUMNS, LESION_COLUMNS, SURFACE_COLUMNS, Compat, compat_columns

_ALL = "all"
_SHOWN = 8  # names quoted in a message
_OVERLAP = (
    "Dice = 2 |R ∩ P| / (|R| + |P|) and IoU = |R ∩ P| / |R ∪ P|, from voxel counts, one organ at a time. A region, as "
    "organs that overlap are called, is an organ here: the union of its label values.",
    "An organ that is in the reference but not in the prediction (missed) scores 0.",
    "An organ that is in the prediction but not in the reference (hallucinated) scores 0.",
    "An organ that is in neither (true negative) has no score and enters no mean; such cases are counted.",
    "A case without a prediction file, or with one that cannot be used (failed), scores 0 for every organ in its "
    "reference.",
    "Voxels that carry the ignore label in the reference are left out of every count and volume.",
    "The volume bias is prediction minus reference; a case without a usable prediction counts as 0 mL.",
)
_STATISTICS = (
    "Mean foreground Dice is the mean over organs of each organ's mean over cases, so that every organ weighs the "
    "same, and so are all overall means. The mean over cases, of each case's mean over its organs, is given beside it.",
    "Intervals are 95 % percentile bootstrap intervals: 10000 resamples of whole cases, seeded. One case alone has no "
    "interval.",
    "SD is the sample standard deviation (n - 1).",
)
_KINDS = {
    "exact": "Surfaces are those of solids made of voxel boxes; distances between them are weighted by area.",
    "voxel": "Surfaces are the centres of voxels that touch the outside by a face (as in MONAI), each counted once; "
    "percentiles are interpolated.",
}
_DISTANCES = (
    "HD is the largest distance, HD95 the 95th percentile, each the larger of the two directions. MASD is the mean of "
    "the two directed mean distances, ASSD the mean over both surfaces together. Beyond the field of view is "
    "background. Faces that touch the ignore label are part of no surface.",
    "A missed or hallucinated organ has infinite distances and NSD 0. In every statistic of distances the diagonal of "
    "the image stands for infinity; only where_found leaves such cases out, says how many are left, and is no score.",
)


@dataclass(frozen=True)
class Measures:
    """What to measure beside overlap and volumes.

    Args:
        surface: Between which surfaces distances are measured: ``exact`` (boxes), ``voxel`` (centres of border voxels)
            or ``none``.
        tolerance_mm: Distance that surface Dice (NSD) tolerates.
        tolerances_mm: The same for single organs, by name.
        compat: Tools in whose conventions columns are added.
        lesions: Organs whose connected parts are matched one by one; ``all`` for every organ.
        minimum_lesion_ml: Parts smaller than this do not count.
        probabilities: Folder of the predicted probabilities, for calibration.
        resample: Bring predictions on other grids to the reference's instead of refusing them.
        remap: Label value of the predictions → the one it stands for.
        unscored: Label value of the references that is not scored, since no prediction can have it, → its name; in the
            references it counts as background.
    """

    surface: Literal["exact", "voxel", "none"] = "exact"
    tolerance_mm: float = 2.0
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    compat: tuple[Compat, ...] = ()
    lesions: tuple[str, ...] = ()
    minimum_lesion_ml: float = 0.0
    probabilities: Path | None = None
    resample: bool = False
    remap: Mapping[int, int] = field(default_factory=dict)
    unscored: Mapping[int, str] = field(default_factory=dict)

    @property
    def needs_surfaces(self) -> bool:
        """Whether faces of organs have to be found: for distances, or for the box around an organ."""
        return self.surface != "none" or bool(self.compat or self.lesions or self.probabilities)

    def for_organs(self, names: Sequence[str]) -> Measures:
        """The same with ``all`` among the lesions replaced by every organ.

        Raises:
            VolsegError: If a tolerance or the lesions name an organ that there is not.
        """
        for what, given in (("--tolerance-mm", self.tolerances_mm), ("--lesions", self.lesions)):
            unknown = [name for name in given if name not in (*names, _ALL)]
            if unknown:
                shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
                rule = f"organs of the label table ({shown})"
                raise VolsegError(sentence(what, rule, ", ".join(unknown), "Check the spelling"))
        return replace(self, lesions=tuple(names) if _ALL in self.lesions else self.lesions)

    def tolerance_of(self, organ: str) -> float:
        """The tolerance of an organ in mm."""
        return self.tolerances_mm.get(organ, self.tolerance_mm)

    def columns(self, organ: str) -> tuple[str, ...]:
        """Columns of an organ that are measured beside overlap and volumes."""
        return (
            *(SURFACE_COLUMNS if self.surface != "none" else ()),
            *(LESION_COLUMNS if organ in self.lesions else ()),
            *(CALIBRATION_COLUMNS if self.probabilities is not None else ()),
            *(column for tool in self.compat for column in compat_columns(tool)),
        )

    def conventions(self) -> tuple[str, ...]:
        """The conventions of everything that is measured, one sentence or a few each."""
        lines = list(_OVERLAP)
        if self.surface != "none":
            own = "".join(f", {organ} {limit:g} mm" for organ, limit in self.tolerances_mm.items())
            nsd = f"NSD is the share of both surfaces' area within the tolerance: {self.tolerance_mm:g} mm{own}."
            lines += [_KINDS[self.surface], nsd, *_DISTANCES]
        if self.compat:
            lines.append(f"Columns named after {', '.join(self.compat)} follow the conventions of these tools.")
        if self.lesions:
            lines.append(
                f"Lesions ({', '.join(self.lesions)}) are 26-connected parts of at least "
                f"{self.minimum_lesion_ml:g} mL. F1 counts any overlap as found; RQ, SQ and PQ match parts of an IoU "
                "above 0.5."
            )
        if self.probabilities is not None:
            lines.append(
                f"ECE ({CALIBRATION_BINS} bins) and Brier score are taken within {CALIBRATION_MARGIN_MM:g} mm of the "
                "box around reference and prediction; without probabilities they are 1."
            )
        return (*lines, *_STATISTICS)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        content = asdict(self)
        content["probabilities"] = None if self.probabilities is None else str(self.probabilities)
        content["remap"] = {str(old): new for old, new in self.remap.items()}
        content["unscored"] = {str(value): name for value, name in self.unscored.items()}
        return {**content, "compat": list(self.compat), "lesions": list(self.lesions)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measures:
        """Read what :meth:`to_json` wrote; what it does not name has its default."""
        # Scores of an earlier version lack newer options, which then have their defaults.
        known = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        if known.get("probabilities") is not None:
            known["probabilities"] = Path(known["probabilities"])
        for name in ("compat", "lesions"):
            known[name] = tuple(known.get(name, ()))
        known["remap"] = {int(old): int(new) for old, new in known.get("remap", {}).items()}
        known["unscored"] = {int(value): str(name) for value, name in known.get("unscored", {}).items()}
        return cls(**known)


OVERLAP_ONLY = Measures(surface="none")
"""Overlap and volumes alone."""
