"""DICOM objects of a mask that is there already."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.documents import read_json
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder, write_json
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.paths import is_named
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.dicom import OpenedSeries, inspect, open_series
from pipeline.data.dicom_series import POSITION_TOLERANCE_MM
from pipeline.data.label_tables import label_table
from pipeline.data.legend import target_colors
from pipeline.data.volume_file import series_source, split_source, volume_stem, wanted_series
from pipeline.data.volumes import read_label_map
from pipeline.evaluate.label_choice import find_labels
from pipeline.export.dicom_objects import KINDS, DicomOutput, write_objects
from pipeline.export.dicom_source import Maker, Segmented, SourceSeries

RECORD_FILE = "dicom.json"
MANUAL = "manual"
"""Who made a mask that a person drew."""

_LABELS = "labels.json"
_COLOR = re.compile("#[0-9a-f]{6}")


class Written(NamedTuple):
    """What became of a mask.

    Args:
        files: Kind → the DICOM object.
        notes: What was corrected in the series, a sentence each.
    """

    files: dict[str, Path]
    notes: tuple[str, ...]


def write_dicom(
    mask: Path | str,
    series: Path | str,
    out: Path | str,
    *,
    output: DicomOutput | None = None,
    labels: Path | str | None = None,
    allow_gaps: bool = False,
    made_by: str = "volseg",
) -> Written:
    """Write a mask as DICOM objects that belong to the series it was made of.

    Args:
        mask: Label map on the grid of the series, in any direction of its axes.
        series: Folder, archive or file of the series, which ``#series=2`` may name; else the one on the mask's grid.
        out: Folder for the objects; what others wrote there stays.
        output: Which objects; by default a binary segmentation and measurements.
        labels: JSON file of label names; by default those beside the mask.
        allow_gaps: As for :func:`~pipeline.stages.predict.predict`, if the mask was made so.
        made_by: Name of what made the mask; ``manual`` for a person's hand.

    Raises:
        VolsegError: If there is no such mask, series or name, their grids differ, or an object cannot be written.
    """
    mask, out, output = Path(mask), Path(out), output or DicomOutput(("seg", "sr"))
    if not output.kinds:
        raise VolsegError(sentence("DICOM objects", f"some of {', '.join(KINDS)}", "none", "Name some"))
    label_map, case = read_label_map(mask), volume_stem(mask)
    table, colors = _labels(mask, None if labels is None else Path(labels))
    opened = _series(label_map, series, case, allow_gaps=allow_gaps)
    label_map = _on_grid(label_map, opened.grid, mask)
    source = SourceSeries.of(opened)
    image = opened.image() if {"sr", "sc"} & set(output.kinds) else None
    # No version is known of what others made.
    maker = Maker() if made_by == "volseg" else Maker(made_by, "unknown", made_by, made_by == MANUAL)
    segmented = Segmented(source, label_map, table, colors, image, maker)
    files = _begun(out, case, output, segmented.uid("mask"))
    write_objects(segmented, files, output)
    notes = (sentence(doubt.what, doubt.expected, doubt.got, doubt.advice, case=case) for doubt in opened.doubts)
    return Written(files, tuple(notes))


def _begun(out: Path, case: str, output: DicomOutput, mask: str) -> dict[str, Path]:
    """Kind → the file to be written, once the record names it and no object of another mask is left.

    Raises:
        VolsegError: If a file of others is in the way.
    """
    files, folder = output.files(out, case), OutputFolder(out, RECORD_FILE)
    known, written = folder.listed("files"), {path.name for path in files.values()}
    folder.require_free(files.values(), {out / name for name in known}, "an object of an earlier run")
    found = folder.earlier.get("masks")
    masks = found if isinstance(found, dict) else {}
    same = masks.get(case, mask) == mask
    outdated = output.outdated(out, case) if same else DicomOutput(KINDS).files(out, case).values()
    stale = known.intersection(path.name for path in outdated) - written
    folder.remove(stale)
    write_json(folder.record, {"files": sorted(known - stale | written), "masks": {**masks, case: mask}})
    return files


def _labels(mask: Path, given: Path | None) -> tuple[LabelTable, dict[str, str]]:
    """Names of the values, and colours by name: those that a prediction noted beside its mask, if it did."""
    file = given or mask.parent / _LABELS
    content: Any = read_json(file) if given is not None or is_named(file) else None
    table = find_labels(mask, mask) if content is None else label_table(content, file)
    if table is None:
        advice = f"Write them to a {_LABELS} beside it, or name a file with --labels"
        raise VolsegError(sentence("mask", "names of its label values", "none", advice, file=mask))
    noted = content.get("colors") if isinstance(content, dict) else None
    found = {int(v): c for v, c in noted.items() if str(v).isdecimal()} if isinstance(noted, dict) else {}
    fits = all(_COLOR.fullmatch(str(found.get(value))) for value in table.values)
    return table, target_colors(table, found if fits else None)


def _series(label_map: LabelMap, source: Path | str, case: str, *, allow_gaps: bool) -> OpenedSeries:
    """The series that is named; else the only one that can be used, or that lies on the grid of the mask."""
    path, named = split_source(source)[0], split_source(source)[1] == "series"
    if named:
        number, gaps = wanted_series(source)
        source = series_source(path, number, allow_gaps=gaps or allow_gaps)
    else:
        usable = [series for series in inspect(path, allow_gaps=allow_gaps).series if series.usable]
        near = [series for series in usable if series.stack and _turned(label_map, series.stack.grid) is not None]
        one = near if len(usable) > 1 and len(near) == 1 else []
        source = series_source(path, *(str(series.number) for series in one), allow_gaps=allow_gaps)
    return open_series(source, case=case)


def _turned(label_map: LabelMap, grid: Grid) -> LabelMap | None:
    """A mask as a grid lists its voxels; None if it is on another one."""
    turned = label_map.reoriented(grid.orientation)
    # Other programs round positions to 32 bits, or to what a header shows.
    tolerance = min(POSITION_TOLERANCE_MM, 0.1 * min(grid.spacing_mm))
    return LabelMap(turned.array, grid) if grid.matches(turned.grid, tolerance) else None


def _on_grid(label_map: LabelMap, grid: Grid, mask: Path) -> LabelMap:
    found = _turned(label_map, grid)
    if found is None:
        advice = "Give the series that it was made of, or bring it back to that"
        turned = label_map.reoriented(grid.orientation).grid
        require_same_grid(grid, turned, "mask grid", "that of the series", file=str(mask), advice=advice)
    assert found is not None  # else it was refused
    return found
