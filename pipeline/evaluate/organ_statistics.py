"""What a label map says of every organ: volume, intensities, and whether the field of view cuts it off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap, require_same_grid

_PIECE_VOXELS = 4_000_000  # looked at together, at 8 bytes per place and intensity
_OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))


class OrganStatistics(NamedTuple):
    """Statistics of one organ or region in one case.

    Args:
        name: Its name.
        values: Label values it consists of.
        voxels: Voxels that have one of these values.
        volume_ml: Their volume in mL.
        means: Mean intensity per channel, in the image's own units (HU of a CT); None without a voxel. Empty without
            an image.
        sds: Standard deviation of the intensities (of all its voxels, divided by their number), likewise.
        edges: Faces of the volume that it reaches, as axis codes: ``("I",)`` if it is in the lowest plane. An axis of
            one plane has no faces.
    """

    name: str
    values: tuple[int, ...]
    voxels: int
    volume_ml: float
    means: tuple[float | None, ...]
    sds: tuple[float | None, ...]
    edges: tuple[str, ...]

    @property
    def touches_edge(self) -> bool:
        """Whether it reaches the edge of the field of view, so that a part of it may be missing."""
        return bool(self.edges)


def organ_statistics(label_map: LabelMap, table: LabelTable, image: Image | None = None) -> tuple[OrganStatistics, ...]:
    """Measure every organ of a label map; of a table with regions, every region.

    Args:
        label_map: Label values (I, J, K); values that are not in the table count as background.
        table: Names of the values.
        image: Intensities (C, I, J, K) on the same grid, of any scale. NaN and infinity are left out of means and SDs.

    Returns:
        One entry per organ or region of the table, in its order; those that are not there have 0 voxels.

    Raises:
        DataError: If image and label map are not on the same grid.
    """
    if image is not None:
        require_same_grid(image.grid, label_map.grid, "label map grid", "the image grid")
    intensities = np.empty((0, *label_map.array.shape), np.float32) if image is None else image.array
    voxels, finite, means, squares = _moments(label_map.array, table, intensities)
    faces = _faces(label_map, table.values)
    place = {value: n for n, value in enumerate(table.values)}
    found = []
    for name, values in table.target_values.items():
        held = [place[value] for value in values]
        count = int(voxels[held].sum())
        spread = [
            _joined(n[held], mean[held], square[held]) for n, mean, square in zip(finite, means, squares, strict=True)
        ]
        found.append(
            OrganStatistics(
                name,
                tuple(values),
                count,
                count * label_map.grid.voxel_volume_ml,
                tuple(mean for mean, _ in spread),
                tuple(sd for _, sd in spread),
                tuple(face for face, seen in faces.items() if seen[held].any()),
            )
        )
    return tuple(found)


def statistics_entry(found: OrganStatistics, channels: Sequence[str] = ()) -> dict[str, Any]:
    """Statistics of an organ for JSON: ``label``, ``voxels``, ``volume_ml``, ``intensity`` by channel, ``edges``."""
    intensity = {
        channel: {"mean": mean, "sd": sd} for channel, mean, sd in zip(channels, found.means, found.sds, strict=True)
    }
    return {
        "label": found.values[0] if len(found.values) == 1 else list(found.values),
        "voxels": found.voxels,
        "volume_ml": found.volume_ml,
        "intensity": intensity,
        "touches_edge": found.touches_edge,
        "edges": list(found.edges),
    }


def statistics_columns(channels: Sequence[str] = ()) -> tuple[str, ...]:
    """Columns of a table of statistics; of several channels each has its own mean and SD."""
    names = ("",) if len(channels) == 1 else tuple(f"_{channel}" for channel in channels)
    intensities = (f"{kind}{name}" for name in names for kind in ("mean", "sd"))
    return ("case", "label", "name", "voxels", "volume_ml", *intensities, "touches_edge", "edges")


def statistics_row(case: str, name: str, entry: Mapping[str, Any], channels: Sequence[str] = ()) -> tuple[str, ...]:
    """A line of that table, from what :func:`statistics_entry` gave.

    Returns:
        Text; empty where there is no number, label values of a region with a blank between them.
    """
    label = entry["label"] if isinstance(entry["label"], list) else [entry["label"]]
    numbers = (entry["intensity"].get(channel, {}).get(kind) for channel in channels for kind in ("mean", "sd"))
    return (
        case,
        " ".join(map(str, label)),
        name,
        str(entry["voxels"]),
        f"{entry['volume_ml']:.6g}",
        *("" if number is None else f"{number:.6g}" for number in numbers),
        "yes" if entry["touches_edge"] else "no",
        " ".join(entry["edges"]),
    )


def _moments(
    labels: NDArray[np.integer[Any]], table: LabelTable, intensities: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Voxels per label value; per channel and label value, finite intensities, their mean and summed squared deviation.

    The deviations are summed about the means in a second pass, so that large intensities lose no digits.
    """
    count = len(table.values)
    voxels = np.zeros(count, np.int64)
    finite, sums, squares = (np.zeros((len(intensities), count)) for _ in range(3))
    for index, seen in _foreground(labels, table.values, intensities):
        voxels += np.bincount(index, minlength=count)
        for channel, numbers in enumerate(seen):
            good = np.isfinite(numbers)
            finite[channel] += np.bincount(index[good], minlength=count)
            sums[channel] += np.bincount(index[good], numbers[good], minlength=count)
    means = np.divide(sums, finite, out=np.zeros_like(sums), where=finite > 0)
    # A second pass about the means: sums of squares of large intensities would lose the digits of small deviations.
    for index, seen in _foreground(labels, table.values, intensities) if len(intensities) else ():
        for channel, numbers in enumerate(seen):
            good = np.isfinite(numbers)
            apart = numbers[good] - means[channel][index[good]]
            squares[channel] += np.bincount(index[good], apart * apart, minlength=count)
    return voxels, finite, means, squares


def _joined(
    counts: NDArray[np.float64], means: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """Mean and SD of several groups of voxels together, from those of each."""
    total = counts.sum()
    if not total:
        return None, None
    mean = (counts * means).sum() / total
    variance = (squares.sum() + (counts * (means - mean) ** 2).sum()) / total
    return float(mean), float(np.sqrt(variance))


def _foreground(
    labels: NDArray[np.integer[Any]], values: Sequence[int], intensities: NDArray[np.floating[Any]]
) -> Iterator[tuple[NDArray[np.intp], list[NDArray[np.float64]]]]:
    """Voxels that have a value of the table, some planes at a time: its position in the table, and the intensities."""
    table = np.asarray(values, dtype=np.int64)
    planes = max(1, _PIECE_VOXELS // labels[0].size)
    for first in range(0, labels.shape[0], planes):
        part = slice(first, first + planes)
        place = np.asarray(labels[part] != 0)
        found = labels[part][place].astype(np.int64)
        index = np.minimum(np.searchsorted(table, found), len(table) - 1)
        known = table[index] == found
        yield index[known], [channel[part][place][known].astype(np.float64) for channel in intensities]


def _faces(label_map: LabelMap, values: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Axis code of every face of the volume → which label values it holds."""
    found = {}
    for axis, code in enumerate(label_map.grid.orientation):
        if label_map.array.shape[axis] > 1:
            for index, face in ((0, _OPPOSITE[code]), (-1, code)):
                found[face] = np.isin(values, np.take(label_map.array, index, axis=axis))
    return {face: found[face] for face in sorted(found)}
