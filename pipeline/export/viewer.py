"""The viewer of a report: which cases are in it, and what its script needs to know about them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from pipeline.core import LabelTable
from pipeline.export.palette import ERROR_COLORS, organ_color
from pipeline.export.scene import CT_WINDOW_HU, Scene
from pipeline.export.viewer_volumes import ERROR_VALUES, PackedCase, pack_case

__all__ = ["Ranked", "Room", "ViewerCase", "chosen_cases", "viewer_case", "viewer_context"]

_PRESETS_HU = (("Soft tissue", CT_WINDOW_HU), ("Lung", (-1350.0, 150.0)), ("Bone", (-500.0, 1300.0)))
"""Windows of CT: level 40, width 400; level -600, width 1500; level 400, width 1800."""

_LAYERS = (
    ("image", "Image", True, 100),
    ("reference", "Reference", False, 60),
    ("prediction", "Prediction", True, 60),
    ("errors", "Errors", True, 90),
)
"""Name, title, whether it is shown at first, and its opacity in percent."""


class Ranked(NamedTuple):
    """A case and whether it is among the worst or the best that are shown."""

    case: str
    rank: str


@dataclass
class Room:
    """Mutable budget of a page, shared out among the cases that still have to come.

    Args:
        characters: What is left.
        cases: Cases that have to come.
    """

    characters: int
    cases: int

    def share(self) -> int:
        """The share of the next case."""
        return max(1, self.characters // max(1, self.cases))

    def take(self, characters: int) -> None:
        """Count a case."""
        self.characters, self.cases = self.characters - characters, self.cases - 1


@dataclass(frozen=True)
class ViewerCase:
    """A case in the viewer.

    Args:
        name: What the page calls it.
        rank: ``worst`` or ``best``.
        packed: Its layers.
        at: Voxel to open it at.
        notes: What a reader should know about what is shown.
        picture: Whether it is a picture, shown as it is: no one knows the patient's sides.
    """

    name: str
    rank: str
    packed: PackedCase
    at: tuple[int, int, int]
    notes: tuple[str, ...]
    picture: bool = False


def chosen_cases(ranked: Sequence[str], count: int) -> list[Ranked]:
    """Half of them the worst, half the best, the worst first; all of them where there are no more.

    Args:
        ranked: Case ids, the worst first.
        count: How many are wanted.
    """
    wanted = min(count, len(ranked))
    worst, best = -(-wanted // 2), wanted // 2
    chosen = [*ranked[:worst], *ranked[len(ranked) - best :]]
    return [Ranked(case, "worst" if n < worst else "best") for n, case in enumerate(chosen)]


def viewer_case(
    scene: Scene, labels: LabelTable, organ: Sequence[int], name: str, rank: str, limit: int
) -> ViewerCase | None:
    """Pack a case.

    Args:
        scene: Its volumes, turned and cropped.
        labels: The organs.
        organ: Label values of the organ at whose largest error it opens.
        name: What the page calls it.
        rank: ``worst`` or ``best``.
        limit: Largest size in characters.

    Returns:
        None if it does not fit.
    """
    packed = pack_case(scene, labels, limit)
    if packed is None:
        return None
    position = scene.largest_error(organ)
    i, j, k = (at // factor for at, factor in zip(position, packed.factors, strict=True))
    return ViewerCase(name, rank, packed, (i, j, k), tuple(_notes(packed, scene)), scene.picture)


def viewer_context(cases: Sequence[ViewerCase], labels: LabelTable) -> dict[str, Any] | None:
    """What the template of the viewer uses; None without cases.

    ``facts`` goes to the script as JSON; ``blocks`` are the volumes, as (element id, base64).
    """
    if not cases:
        return None
    blocks = [(f"volume-{n}-{name}", data) for n, case in enumerate(cases) for name, data in case.packed.layers.items()]
    organs = [{"name": name, "color": organ_color(n)} for n, name in enumerate(labels.organs)]
    errors = [{"name": name, "color": ERROR_COLORS[name]} for name in ERROR_VALUES]
    return {
        "cases": cases,
        "pictures": sum(case.picture for case in cases),
        "organs": organs,
        "errors": errors,
        "layers": _LAYERS,
        "blocks": blocks,
        "facts": {"organs": organs, "errors": errors, "cases": [_facts(case) for case in cases]},
        "library": base64.b64encode(asset("niivue.umd.js.gz")).decode("ascii"),
        "script": asset("viewer.js").decode("utf-8"),
        "licence": asset("niivue.LICENSE.txt").decode("utf-8"),
    }


@cache
def asset(name: str) -> bytes:
    """A file that comes with this package."""
    return (files("pipeline.export") / "assets" / name).read_bytes()


def _facts(case: ViewerCase) -> dict[str, Any]:
    packed = case.packed
    presets = _PRESETS_HU if packed.is_ct else (("Automatic", packed.window),) if packed.window else ()
    windows = [{"name": name, "low": low, "high": high} for name, (low, high) in presets]
    shown = {"organs": [organ - 1 for organ in packed.organs], "at": case.at, "picture": case.picture}
    shown["flat"] = case.picture and packed.shape[2] == 1
    return {"name": case.name, "notes": " ".join(case.notes), "windows": windows, **shown}


def _notes(packed: PackedCase, scene: Scene) -> list[str]:
    notes = []
    if scene.image is None:
        notes.append("No image is known of this case: label maps only.")
    if packed.cropped:
        notes.append("Cropped to the surroundings (15 mm) of reference and prediction.")
    if packed.factors != (1, 1, 1):
        kept = " × ".join(str(factor) for factor in packed.factors)
        was, now = (" × ".join(f"{mm:.3g}" for mm in each) for each in (scene.spacing_mm, packed.spacing_mm))
        notes.append(
            f"Shown with fewer voxels than were scored: blocks of {kept} became one ({was} mm to {now} mm), so small "
            "errors may not be seen. A larger --viewer-mb keeps more."
        )
    if scene.image is not None:
        notes.append("Intensities in steps of 4 HU." if packed.is_ct else "Intensities in 256 steps.")
    return notes
