"""A picture of a mask for viewers that show nothing else: a DICOM secondary capture.

Three planes through the middle of what was found, seen as radiologists do, with the patient's left on the right, or in
the neurological view. Below them organs with their colours and volumes. No name, number or date of a patient is in the
picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from pipeline.core.planes import ORDER, planes
from pipeline.export.dicom_source import Segmented, Target, mismatch

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WIDTH, _HEIGHT = 1500, 560  # pixels of the three planes at most
_GAP, _LINE, _COLUMNS, _LISTED = 12, 24, 4, 32
_LETTER = 20
_OPACITY = 0.45
_CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue
_CAPTION = "Made by software. Not for diagnosis."


def overview(case: Segmented, *, neurological: bool = False) -> Dataset:
    """The picture as a secondary capture of the same study."""
    import highdicom as hd

    maker = case.maker
    found = hd.sc.SCImage.from_ref_dataset(
        case.source.images()[0],
        pixel_array=picture(case, neurological=neurological),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=case.uid("SC series"),
        series_number=case.source.number_of(4),
        sop_instance_uid=case.uid("SC neurological" if neurological else "SC"),
        instance_number=2 if neurological else 1,
        manufacturer=maker.name,
        manufacturer_model_name=maker.name,
        software_versions=maker.version,
        device_serial_number=maker.serial,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description="Overview",
        specific_character_set="ISO_IR 192",
    )
    found.copy_patient_and_study_information(case.source.images()[0])
    found.PatientOrientation = []  # each of the planes has its own
    found.Laterality, found.ConversionType, found.BurnedInAnnotation = "", "WSD", "NO"
    found.SourceImageSequence = case.source.references()
    return found


def picture(case: Segmented, *, neurological: bool = False) -> NDArray[np.uint8]:
    """(rows, columns, 3), red, green and blue; the same for the same mask.

    ``neurological``: with the patient's left on the left.
    """
    turned = case.label_map.reoriented(ORDER)
    labels = np.maximum(case.table.to_index(turned.array), 0)
    grey = None if case.image is None else case.image.reoriented(ORDER).array[0]
    window = _window(case, grey)
    spacing = turned.grid.spacing_mm
    views = planes(neurological=neurological)
    sizes = [tuple(labels.shape[a] * spacing[a] for a in (view.right, view.up)) for view in views]
    # Pixels per mm: the same for all planes.
    scale = min((_WIDTH - 2 * _GAP) / sum(width for width, _ in sizes), _HEIGHT / max(height for _, height in sizes))
    place = _middle(labels != 0)
    drawn = []
    for view, size in zip(views, sizes, strict=True):
        shown = tuple(max(1, round(mm * scale)) for mm in size)
        plane = view.slice(labels, place[view.cut])[::-1]  # rows of a picture go down
        behind = np.full(plane.shape, window[0]) if grey is None else view.slice(grey, place[view.cut])[::-1]
        drawn.append(_lettered(_painted(case.targets, plane, behind, window, (shown[0], shown[1])), view.letters))
    measured = zip(case.targets, case.statistics, strict=True)
    return _composed(drawn, [(target, found.volume_ml) for target, found in measured if found.voxels])


def _window(case: Segmented, grey: NDArray[Any] | None) -> tuple[float, float]:
    if case.source.modality == "CT" or grey is None:
        return _CT_WINDOW_HU
    low, high = (float(value) for value in np.percentile(grey, (1, 99)))
    return low, max(high, low + 1e-6)


def _middle(found: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Along each axis the plane with most of what was found; the middle of the volume if that is nothing."""
    if not found.any():
        return found.shape[0] // 2, found.shape[1] // 2, found.shape[2] // 2
    i, j, k = (int(found.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3))
    return i, j, k


def _painted(
    targets: tuple[Target, ...],
    labels: NDArray[Any],
    grey: NDArray[Any],
    window: tuple[float, float],
    size: tuple[int, int],
) -> Picture.Image:
    """Grey levels with the targets' colours over them, of a size in pixels."""
    low, high = window
    levels = np.clip((np.nan_to_num(grey) - low) / (high - low), 0, 1) * 255
    back = Picture.fromarray(levels.astype(np.uint8)).resize(size, Picture.Resampling.BILINEAR)
    shown = np.repeat(np.asarray(back)[..., None], 3, axis=2).astype(np.float64)
    for target in targets:
        mask = Picture.fromarray(np.isin(labels, target.classes).astype(np.uint8) * 255)
        there = np.asarray(mask.resize(size, Picture.Resampling.NEAREST)) > 0
        shown[there] = shown[there] * (1 - _OPACITY) + np.array(target.rgb) * _OPACITY
    return Picture.fromarray(shown.astype(np.uint8))


def _lettered(plane: Picture.Image, letters: str) -> Picture.Image:
    # Planes of a few slices get a border, in which letters stand beside each other.
    width, height = (max(pixels, 3 * _LETTER) for pixels in plane.size)
    shown = Picture.new("RGB", (width, height))
    shown.paste(plane, ((width - plane.width) // 2, (height - plane.height) // 2))
    draw = ImageDraw.Draw(shown)
    places = ((4, height / 2, "lm"), (width - 4, height / 2, "rm"), (width / 2, height - 4, "mb"), (width / 2, 4, "mt"))
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        draw.text((x, y), letter, "white", _font(_LETTER), anchor, stroke_width=2, stroke_fill="black")
    return shown


def _composed(drawn: list[Picture.Image], found: list[tuple[Target, float]]) -> NDArray[np.uint8]:
    """The planes beside each other, and below them what was found, with its mL."""
    shown = found if len(found) <= _LISTED else found[: _LISTED - 1]
    texts = [(f"{target.label}  {volume_ml:.1f} mL", target.color) for target, volume_ml in shown]
    texts += [(f"and {len(found) - len(shown)} more", "black")] if len(found) > len(shown) else []
    texts = texts or [("nothing found", "black")]
    width = max(_WIDTH, sum(plane.width for plane in drawn) + 2 * _GAP)
    height = max(plane.height for plane in drawn)
    whole = Picture.new("RGB", (width, height + _GAP + _LINE * (-(-len(texts) // _COLUMNS) + 1)))
    left = 0
    for plane in drawn:
        whole.paste(plane, (left, (height - plane.height) // 2))
        left += plane.width + _GAP
    draw = ImageDraw.Draw(whole)
    for number, (text, color) in enumerate(texts):
        x, y = width // _COLUMNS * (number % _COLUMNS) + 4, height + _GAP + _LINE * (number // _COLUMNS)
        draw.rectangle((x, y + 4, x + 14, y + 18), fill=color)
        draw.text((x + 22, y + 11), text, "white", _font(16), "lm")
    draw.text((4, whole.height - _LINE // 2), _CAPTION, "gray", _font(14), "lm")
    return np.asarray(whole)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def check_overview(made: Dataset, path: Path) -> None:
    """Compare the pixels of a file with those that were to be written.

    Raises:
        VolsegError: If they differ.
    """
    import pydicom

    if pydicom.dcmread(path).pixel_array.tobytes() != made.PixelData[: made.Rows * made.Columns * 3]:
        raise mismatch("the pixels of the picture", "others")
