"""A picture of training patches: each as it is cut and as augmentation changes it, and every change alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.core.labels import IGNORE_INDEX
from pipeline.core.planes import Plane, shown_planes
from pipeline.data.legend import organ_color
from pipeline.report.overlay import display_range, draw_outline, frame_panel, write_on
from pipeline.report.plots import DARK, figure_png, plain_text

_DPI = 110
_PAPER = "#14181d"
_PANEL, _PANEL_2D, _LEAST = 1.8, 2.0, 0.4  # inches: the longest side of a patch, and the shortest of a panel
_EDGE, _GAP, _STEP, _LINE = 0.18, 0.06, 0.3, 0.19
_CAPTION = 1.55  # inches that a caption needs
_CHARACTER = 0.058  # inches of a letter of 8 points
_STRIPES = 96  # pixels of the picture of stripes along each side
_NAME = 36  # letters of an organ's name
_LEGEND = 40  # organs named before the rest is only counted


# What a picture of patches shows, and which slices of them.


@dataclass(frozen=True, eq=False)
class PatchView:
    """A patch in RAS order, or as pictures look; that of a 2D network has one voxel along the axis across the slices.

    Args:
        image: (C, I, J, K) normalized intensities.
        label: (I, J, K) class indices, -1 where neither loss nor score look.
    """

    image: NDArray[np.floating[Any]]
    label: NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False)
class PatchRow:
    """A patch as it is cut, what augmentation makes of it, and where it lies and what is in it."""

    text: str
    cut: PatchView
    versions: tuple[PatchView, ...]


@dataclass(frozen=True, eq=False)
class PatchScene:
    """Everything on the picture.

    Args:
        heading: Lines above.
        rows: At least one; all patches of the same shape.
        changes: Caption → a patch after a single change.
        spacing_mm: Along the RAS axes.
        axis: RAS axis that the slices of augmented patches cut.
        organs: Names, in the order of classes 1, 2, ….
        channel: Which channel to show in grey; None shows three as red, green and blue.
        margin: Voxels along the RAS axes on either side for which the network gives no logits.
        pictures: Whether the cases are pictures: no one knows the patient's sides.
        neurological: Whether the patient's left is on the left.
    """

    heading: tuple[str, ...]
    rows: tuple[PatchRow, ...]
    changes: tuple[tuple[str, PatchView], ...]
    spacing_mm: tuple[float, float, float]
    axis: int
    organs: tuple[str, ...]
    channel: int | None
    margin: tuple[int, int, int] = (0, 0, 0)
    pictures: bool = False
    neurological: bool = False

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Planes in which patches are shown as cut."""
        return shown_planes(self.rows[0].cut.label.shape, neurological=self.pictures or self.neurological)

    @property
    def main(self) -> Plane:
        """The plane in which augmented patches are shown."""
        return next((plane for plane in self.planes if plane.cut == self.axis), self.planes[0])

    @property
    def window(self) -> tuple[float, float]:
        """Intensities to show as black and white, the same everywhere.

        They are the display range of patches as cut, without padding, widened where organs are darker or brighter.
        """
        images = [row.cut.image if self.channel is None else row.cut.image[[self.channel]] for row in self.rows]
        parts = list(zip(images, (row.cut.label for row in self.rows), strict=True))
        known = np.concatenate([image[:, label != IGNORE_INDEX].ravel() for image, label in parts])
        organs = np.concatenate([image[:, label > 0].ravel() for image, label in parts])
        low, high = display_range(known)
        if not organs.size:
            return low, high
        darkest, brightest = np.percentile(organs, [2.0, 98.0])
        return min(low, float(darkest)), max(high, float(brightest))

    def views(self) -> Iterator[PatchView]:
        """All patches shown."""
        for row in self.rows:
            yield from (row.cut, *row.versions)
        yield from (view for _, view in self.changes)

    def seen(self) -> tuple[int, ...]:
        """Class indices of the organs in any patch shown, ascending."""
        found = set().union(*(np.unique(view.label).tolist() for view in self.views()))
        return tuple(sorted(value for value in found if value > 0))

    def extent_mm(self, plane: Plane) -> tuple[float, float]:
        """Width and height of a plane of a patch."""
        shape = self.rows[0].cut.label.shape
        return shape[plane.right] * self.spacing_mm[plane.right], shape[plane.up] * self.spacing_mm[plane.up]


def telling_slices(label: NDArray[np.signedinteger[Any]]) -> tuple[int, int, int]:
    """The slice along each axis (i, j, k) that shows most of the organs, small ones counting as much as large ones.

    The middle of a patch without foreground.
    """
    foreground = np.maximum(label, 0)
    count = np.bincount(foreground.ravel())
    if len(count) == 1:
        i, j, k = (length // 2 for length in label.shape)
        return i, j, k
    # A voxel of an organ of n voxels is worth 1 / n, so that small organs count as much as large ones.
    worth = np.zeros(len(count))
    present = count[1:] > 0
    worth[1:][present] = 1 / count[1:][present]
    share = worth[foreground]
    i, j, k = (int(share.sum(axis=tuple({0, 1, 2} - {axis})).round(9).argmax()) for axis in range(3))
    return i, j, k


# The picture.


def draw_patches(scene: PatchScene) -> bytes:
    """:func:`patch_figure` as a PNG; the same scene gives the same bytes."""
    return figure_png(patch_figure(scene), _DPI, transparent=False)


def patch_figure(scene: PatchScene) -> Figure:
    """Draw a scene: one panel per view and plane, row by row.

    One row per patch: as cut, in every plane and true to scale, then augmented in one plane; below, every change alone;
    organs as outlines, voxels without a label striped, a dashed frame around what the network gives logits for. The
    patient's left is on the right, but pictures look as they are. Every view shows the slice with most of the organs.
    """
    sizes = {plane: _size(scene, plane) for plane in scene.planes}
    main = sizes[scene.main]
    versions = len(scene.rows[0].versions)
    widths = [sizes[plane][0] + _GAP for plane in scene.planes] + [main[0] + _GAP] * versions
    width = max(2 * _EDGE + sum(widths) + _STEP, 9.0)
    cell = (max(main[0], _CAPTION) + _GAP, main[1] + 2 * _LINE + 0.05)
    columns = max(1, int((width - 2 * _EDGE + _GAP) / cell[0]))
    row = max(height for _, height in sizes.values()) + _LINE + 0.14
    tops = [_EDGE + _LINE * len(scene.heading) + 0.1 + _LINE]
    tops.append(tops[0] + row * len(scene.rows))
    lines = -(-len(scene.changes) // columns)
    tops.append(tops[1] + (_LINE + 0.15 + cell[1] * lines if lines else 0.0))
    per_line, names = _legend_lines(scene, width)
    height = tops[2] + _LINE * -(-len(names) // per_line) + _EDGE + 0.1
    sheet = _Sheet(Figure(figsize=(width, height), facecolor=_PAPER), width, height)
    for n, line in enumerate(scene.heading):
        sheet.write(_EDGE, _EDGE + n * _LINE, line, size=10 if n == 0 else 8, bold=n == 0)
    _draw_rows(sheet, scene, sizes, tops[0], row)
    _draw_changes(sheet, scene, main, tops[1], cell, columns)
    _draw_legend(sheet, names, tops[2] + 0.1, per_line)
    return sheet.figure


def _size(scene: PatchScene, plane: Plane) -> tuple[float, float]:
    """Inches of a panel; all panels at the same scale."""
    extents = [scene.extent_mm(each) for each in scene.planes]
    scale = (_PANEL if len(extents) > 1 else _PANEL_2D) / max(max(extent) for extent in extents)
    width, height = (max(_LEAST, length * scale) for length in scene.extent_mm(plane))
    return width, height


@dataclass(frozen=True, eq=False)
class _Sheet:
    """A figure on which things are placed in inches from the upper left corner."""

    figure: Figure
    width: float
    height: float

    def panel(self, x: float, y: float, size: tuple[float, float]) -> Axes:
        box = (x / self.width, 1 - (y + size[1]) / self.height, size[0] / self.width, size[1] / self.height)
        return self.figure.add_axes(box)

    def write(self, x: float, y: float, text: str, *, size: float = 8, bold: bool = False, most: int = 400) -> None:
        longest = min(most, int((self.width - x - _EDGE) / (_CHARACTER * size / 8)))
        weight = "bold" if bold else "normal"
        shown = plain_text(text, longest)
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, shown, color=DARK.text, fontsize=size, va="top", weight=weight)


def _draw_rows(
    sheet: _Sheet, scene: PatchScene, sizes: dict[Plane, tuple[float, float]], top: float, height: float
) -> None:
    window = scene.window
    for n, row in enumerate(scene.rows):
        y = top + n * height
        sheet.write(_EDGE, y, row.text)
        x = _EDGE
        for plane in scene.planes:
            axes = sheet.panel(x, y + _LINE, sizes[plane])
            _draw_view(axes, scene, row.cut, plane, window, letters=True)
            x += sizes[plane][0] + _GAP
        x += _STEP
        for number, version in enumerate(row.versions):
            if n == 0 and number == 0:
                sheet.write(x, y - _LINE, "augmented: first as training gets it, then other draws", bold=True)
            axes = sheet.panel(x, y + _LINE, sizes[scene.main])
            _draw_view(axes, scene, version, scene.main, window)
            x += sizes[scene.main][0] + _GAP
    sheet.write(_EDGE, top - _LINE, "as cut", bold=True)


def _draw_changes(
    sheet: _Sheet, scene: PatchScene, size: tuple[float, float], top: float, cell: tuple[float, float], columns: int
) -> None:
    if scene.changes:
        sheet.write(_EDGE, top, "every change alone, as strong as the settings allow", bold=True)
    for n, (caption, view) in enumerate(scene.changes):
        x, y = _EDGE + (n % columns) * cell[0], top + _LINE + 0.05 + (n // columns) * cell[1]
        for line, text in enumerate(caption.splitlines()):
            sheet.write(x, y + line * 0.15, text, size=7.5)
        axes = sheet.panel(x, y + 2 * _LINE - 0.05, size)
        _draw_view(axes, scene, view, scene.main, scene.window, letters=n == 0)


def _draw_view(
    axes: Axes, scene: PatchScene, view: PatchView, plane: Plane, window: tuple[float, float], *, letters: bool = False
) -> None:
    """One plane of a patch."""
    index = telling_slices(view.label)[plane.cut]
    label = plane.slice(view.label, index)
    pixel = scene.spacing_mm[plane.right], scene.spacing_mm[plane.up]
    extent = (0.0, label.shape[1] * pixel[0], 0.0, label.shape[0] * pixel[1])
    low, high = window
    if scene.channel is None:
        channels = [plane.slice(channel, index) for channel in view.image]
        picture = np.clip((np.stack(channels, axis=-1) - low) / (high - low), 0.0, 1.0)
    else:
        picture = plane.slice(view.image[scene.channel], index)
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower", interpolation="antialiased")
    frame_panel(axes, (extent[1], extent[3]), plane.letters if letters and not scene.pictures else "", fontsize=7)
    if letters and not scene.pictures:
        write_on(axes, 0.03, 0.97, plane.name, "left", "top", fontsize=6.5)
    for spine in axes.spines.values():
        spine.set_color(DARK.grid)
    _stripe(axes, label == IGNORE_INDEX, extent)
    for value in np.unique(label[label > 0]).tolist():
        draw_outline(axes, label == value, pixel[0], pixel[1], organ_color(value - 1), 1.1)
    right, up = (scene.margin[axis] * scene.spacing_mm[axis] for axis in (plane.right, plane.up))
    if right or up:
        inner = (extent[1] - 2 * right, extent[3] - 2 * up)
        for color, line in (("black", "-"), ("white", "--")):
            axes.add_patch(Rectangle((right, up), *inner, fill=False, edgecolor=color, linestyle=line, linewidth=0.9))


def _stripe(axes: Axes, mask: NDArray[np.bool_], extent: tuple[float, float, float, float]) -> None:
    """Thin stripes over a mask, light and dark so that they are seen on any grey."""
    if mask.any():
        phase = np.add.outer(np.arange(_STRIPES), np.arange(_STRIPES)) % 8
        rows, columns = (np.arange(_STRIPES) * length // _STRIPES for length in mask.shape)
        where = mask[np.ix_(rows, columns)]
        picture = np.zeros((_STRIPES, _STRIPES, 4))
        picture[where & (phase < 2)] = (0.85, 0.85, 0.85, 0.4)
        picture[where & (phase >= 2) & (phase < 4)] = (0.15, 0.15, 0.15, 0.4)
        axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest")


def _legend_lines(scene: PatchScene, width: float) -> tuple[int, list[tuple[str, str | None]]]:
    """How many names fit beside each other, and the names with their colours."""
    seen = scene.seen()
    names: list[tuple[str, str | None]] = [
        (scene.organs[value - 1], organ_color(value - 1)) for value in seen[:_LEGEND]
    ]
    if len(seen) > _LEGEND:
        names.append((f"and {len(seen) - _LEGEND} more", None))
    longest = min(_NAME, max((len(name) for name, _ in names), default=1))
    return max(1, int((width - 2 * _EDGE) / (longest * _CHARACTER + 0.45))), names


def _draw_legend(sheet: _Sheet, names: Sequence[tuple[str, str | None]], top: float, per_line: int) -> None:
    step = (sheet.width - 2 * _EDGE) / per_line
    for n, (name, color) in enumerate(names):
        x, y = _EDGE + (n % per_line) * step, top + (n // per_line) * _LINE
        if color is not None:
            height = 1 - (y + 0.065) / sheet.height
            ends = [x / sheet.width, (x + 0.25) / sheet.width]
            sheet.figure.add_artist(Line2D(ends, [height] * 2, color=color, linewidth=3))
        sheet.write(x + 0.33, y, name, most=_NAME)
