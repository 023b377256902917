"""The viewer of a report: which cases are in it, what its script needs to know about them, and their volumes.

Volumes are cropped, made smaller where they must be, and packed as NIfTI without any text.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.data.legend import organ_color
from pipeline.data.nibabel_alone import nib
from pipeline.report.overlay import CT_WINDOW_HU, Scene, error_masks
from pipeline.report.plots import ERROR_COLORS

ERROR_VALUES: Mapping[str, int] = {"false negative": 1, "false positive": 2, "taken for another organ": 3}
"""Voxel values of the layer of errors."""

_CT_RANGE_HU = (-1024.0, 3071.0)
_CT_STEP_HU = 4.0
_TAILS_PERCENT = (0.1, 99.9)
_SMALLEST = 8  # voxels along an axis that is not made any smaller
_SAMPLED_SLICES = 6
_GZIP_LEVEL = 6

_PRESETS_HU = (("Soft tissue", CT_WINDOW_HU), ("Lung", (-1350.0, 150.0)), ("Bone", (-500.0, 1300.0)))
"""Windows of CT: level 40, width 400; level -600, width 1500; level 400, width 1800."""

_LAYERS = (
    ("image", "Image", True, 100),
    ("reference", "Reference", False, 60),
    ("prediction", "Prediction", True, 60),
    ("errors", "Errors", True, 90),
)
"""Name, title, whether it is shown at first, and its opacity in percent."""

_Factors = tuple[int, int, int]

_Layers = dict[str, tuple[NDArray[Any], tuple[float, float]]]
"""Name of a layer → its integers, and slope and intercept that turn them into values."""


@dataclass(frozen=True)
class PackedVolumes:
    """The layers of a case.

    Args:
        layers: ``image``, ``reference``, ``prediction`` and ``errors`` → gzipped NIfTI in base64.
        shape: Voxels along i, j, k.
        spacing_mm: Their distance.
        factors: Every how many-th voxel along i, j, k was kept.
        window: Intensities to show as black and white, or None if there is no image.
        is_ct: Whether intensities are HU.
        cropped: Whether only the surroundings of the labels are in it.
        organs: Class indices in reference or prediction.
    """

    layers: Mapping[str, str]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    factors: _Factors
    window: tuple[float, float] | None
    is_ct: bool
    cropped: bool
    organs: tuple[int, ...]

    @property
    def size(self) -> int:
        """Characters of all layers."""
        return sum(len(layer) for layer in self.layers.values())


@dataclass
class SizeBudget:
    """Mutable budget of a page in characters, shared out among the cases that still have to come."""

    characters: int
    cases: int

    def share(self) -> int:
        """The share of the next case."""
        return max(1, self.characters // max(1, self.cases))

    def take(self, characters: int) -> None:
        """Count a case."""
        self.characters, self.cases = self.characters - characters, self.cases - 1


@dataclass(frozen=True)
class ViewerEntry:
    """A case in the viewer: what the page calls it, ``worst`` or ``best``, its layers, and the voxel to open it at.

    ``picture``: it is shown as it is, since no one knows the patient's sides.
    """

    name: str
    rank: str
    packed: PackedVolumes
    at: tuple[int, int, int]
    notes: tuple[str, ...]
    picture: bool = False


def chosen_cases(ranked: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Case ids and ``worst`` or ``best``: of ids in ascending order half each, all where there are no more."""
    wanted = min(count, len(ranked))
    worst, best = -(-wanted // 2), wanted // 2
    chosen = [*ranked[:worst], *ranked[len(ranked) - best :]]
    return [(case, "worst" if n < worst else "best") for n, case in enumerate(chosen)]


def viewer_entry(
    scene: Scene, labels: LabelTable, organ: Sequence[int], name: str, rank: str, limit: int
) -> ViewerEntry | None:
    """Pack a case, opened at the largest error of an organ (its label values); None if it does not fit."""
    packed = pack_case(scene, labels, limit)
    if packed is None:
        return None
    position = scene.largest_error(organ)
    i, j, k = (at // factor for at, factor in zip(position, packed.factors, strict=True))
    return ViewerEntry(name, rank, packed, (i, j, k), tuple(_notes(packed, scene)), scene.picture)


def viewer_context(
    cases: Sequence[ViewerEntry], labels: LabelTable, *, neurological: bool = False
) -> dict[str, Any] | None:
    """What the template of the viewer uses; None without cases.

    ``neurological``: it opens with the patient's left on the left.

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
        "neurological": neurological,
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
    return (files("pipeline.report") / "assets" / name).read_bytes()


def _facts(case: ViewerEntry) -> dict[str, Any]:
    packed = case.packed
    presets = _PRESETS_HU if packed.is_ct else (("Automatic", packed.window),) if packed.window else ()
    windows = [{"name": name, "low": low, "high": high} for name, (low, high) in presets]
    shown = {"organs": [organ - 1 for organ in packed.organs], "at": case.at, "picture": case.picture}
    shown["flat"] = case.picture and packed.shape[2] == 1
    return {"name": case.name, "notes": " ".join(case.notes), "windows": windows, **shown}


def _notes(packed: PackedVolumes, scene: Scene) -> list[str]:
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


# Packing: fewer voxels until a case fits.


def pack_case(scene: Scene, labels: LabelTable, limit: int) -> PackedVolumes | None:
    """Pack a case into a given size, with fewer voxels if it has to be.

    Label maps hold class indices, the n-th organ of the table as n. Intensities of CT are kept in steps of 4 HU, others
    in 256 steps between their 0.1 and 99.9 percentiles.

    Args:
        scene: Volumes in RAS order, cropped.
        labels: The organs.
        limit: Largest size in characters.

    Returns:
        The case; None if it is too large even with 8 voxels along each axis.
    """
    layers, is_ct = _layers(scene, labels)
    factors: _Factors = (1, 1, 1)
    # Packing a large volume takes seconds. A guess from a few slices saves most of the attempts.
    excess = _estimate(layers, scene.grid) / limit
    while True:
        factors = _larger(factors, scene.grid, excess)
        grid, reduced = _reduced(layers, scene.grid, factors)
        packed = {
            name: nifti_base64(array, grid, scale, labels=name != "image") for name, (array, scale) in reduced.items()
        }
        size = sum(len(layer) for layer in packed.values())
        window = None if scene.image is None else scene.window
        if size <= limit:
            organs = np.union1d(layers["reference"][0], layers["prediction"][0]).tolist()
            present = tuple(organ for organ in organs if organ)
            return PackedVolumes(packed, grid.shape, grid.spacing_mm, factors, window, is_ct, scene.cropped, present)
        # No axis can be made shorter: the case does not fit.
        if _larger(factors, scene.grid, 1.01) == factors:
            return None
        excess = max(size / limit, 1.01)


def nifti_base64(
    array: NDArray[Any], grid: Grid, scale: tuple[float, float] = (1.0, 0.0), *, labels: bool = False
) -> str:
    """A volume as gzipped NIfTI-1 in base64; its header has no text and no extension.

    ``scale`` turns the integers into intensities. ``labels`` says in the header that these are labels: NiiVue mixes the
    colours of neighbouring values otherwise.
    """
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.header.set_slope_inter(*scale)
    if labels:
        image.header.set_intent("label")
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), _GZIP_LEVEL, mtime=0)).decode("ascii")


def smaller(array: NDArray[Any], factors: _Factors, *, mean: bool) -> NDArray[Any]:
    """Every n-th voxel along each axis (of two in the middle of a block the second), or the mean over each block.

    Blocks at the far edges may be smaller.
    """
    if factors == (1, 1, 1):
        return array
    if not mean:
        index = [np.minimum(np.arange(0, n, f) + f // 2, n - 1) for n, f in zip(array.shape, factors, strict=True)]
        return array[np.ix_(*index)]
    result = array.astype(np.float64)
    for axis, factor in enumerate(factors):
        starts = np.arange(0, result.shape[axis], factor)
        counts = np.diff([*starts, result.shape[axis]])
        shape = [-1 if n == axis else 1 for n in range(3)]
        result = np.add.reduceat(result, starts, axis=axis) / counts.reshape(shape)
    return result


def _layers(scene: Scene, labels: LabelTable) -> tuple[_Layers, bool]:
    """Name → integers and their scale, and whether the image is a CT."""
    is_ct = scene.image is not None and scene.window == CT_WINDOW_HU
    errors = np.zeros(scene.grid.shape, np.uint8)
    for kind, mask in error_masks(scene.reference, scene.prediction, scene.ignored).items():
        errors[mask] = ERROR_VALUES[kind]
    return {
        "image": _stored(scene.image, errors.shape, is_ct),
        "reference": (_indices(scene.reference, labels), (1.0, 0.0)),
        "prediction": (_indices(scene.prediction, labels), (1.0, 0.0)),
        "errors": (errors, (1.0, 0.0)),
    }, is_ct


def _stored(
    image: NDArray[np.floating[Any]] | None, shape: Sequence[int], is_ct: bool
) -> tuple[NDArray[Any], tuple[float, float]]:
    """Intensities as integers, and slope and intercept that give them back; black without an image."""
    if image is None:
        return np.zeros(shape, np.uint8), (1.0, 0.0)
    finite = np.isfinite(image)
    if is_ct:
        low, high = _CT_RANGE_HU
        slope, zero, kind = _CT_STEP_HU, 0.0, "int16"
    else:
        low, high = np.percentile(image[finite], _TAILS_PERCENT).tolist() if finite.any() else (0.0, 1.0)
        slope, zero, kind = max((high - low) / 255, 1e-6), low, "uint8"
    clipped = np.clip(np.where(finite, image, low), low, high)
    return np.round((clipped - zero) / slope).astype(kind), (slope, zero)


def _indices(array: NDArray[np.integer[Any]], labels: LabelTable) -> NDArray[Any]:
    """Class indices; an ignore label that was predicted is background."""
    index: NDArray[np.signedinteger[Any]] = np.maximum(labels.to_index(array), 0)
    return index.astype(np.uint8 if labels.classes <= 256 else np.uint16)


def _estimate(layers: _Layers, grid: Grid) -> float:
    """Characters of all layers, by a few slices in the middle."""
    count = min(_SAMPLED_SLICES, grid.shape[2])
    first = (grid.shape[2] - count) // 2
    slabs = [array[..., first : first + count].tobytes() for array, _ in layers.values()]
    size = sum(len(gzip.compress(slab, 1)) for slab in slabs)
    return size * 4 / 3 * grid.shape[2] / count * 0.9  # rather too little: packing finds out, and goes on from there


def _larger(factors: _Factors, grid: Grid, excess: float) -> _Factors:
    """Factors that leave fewer voxels, by at least this much, the finest axis first."""
    chosen = list(factors)
    before = np.prod(chosen)
    while np.prod(chosen) < before * excess:
        axes = [axis for axis in range(3) if grid.shape[axis] / (chosen[axis] + 1) >= _SMALLEST]
        if not axes:
            break
        chosen[min(axes, key=lambda axis: (chosen[axis] * grid.spacing_mm[axis], axis))] += 1
    return chosen[0], chosen[1], chosen[2]


def _reduced(layers: _Layers, grid: Grid, factors: _Factors) -> tuple[Grid, _Layers]:
    if factors == (1, 1, 1):
        return grid, layers
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, :3] * factors
    # The centre of the first block, not that of its first voxel.
    affine[:3, 3] = grid.to_world([(factor - 1) / 2 for factor in factors])
    reduced: _Layers = {}
    for name, (array, scale) in layers.items():
        made = smaller(array, factors, mean=name == "image")
        reduced[name] = (np.round(made).astype(array.dtype) if name == "image" else made, scale)
    return Grid(reduced["image"][0].shape, affine), reduced
