"""What pictures (PNG, TIFF) hold beside grey levels: the spacing of a TIFF, and the indices of a palette.

A TIFF of several pages is a stack of slices. Its spacing is that of a JSON file beside it, ``{"spacing": [z, y, x]}``
in mm, as nnU-Net has it: ``c0.json`` for ``c0.tif`` and for the channel ``c0_0000.tif``. Without it that of ImageJ
counts, then the resolution within a slice, and slices are 1 mm apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.documents import read_json, short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import write_json
from pipeline.data.detached_files import spacing_file
from pipeline.data.volume_file import TIFF_SUFFIXES, Doubt, refusal_of, volume_stem, volume_suffix

_RESOLUTION, _DESCRIPTION, _PHOTOMETRIC, _PALETTE = (282, 283), 270, 262, 3  # tags of TIFF, and a value
_PNG_COLOUR_TYPE = 25  # byte of a PNG file
_IMAGEJ_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "nm": 1e-6, "inch": 25.4}


def tiff_spacing(path: Path, slices: int, case: str | None) -> tuple[float, float, float] | None:
    """Spacing in mm along i, j, k that a file beside a TIFF, or ImageJ in it, says; None if neither does.

    Raises:
        VolumeError: If a stack's file has no spacing. Beside a single slice it may be a file of something else.
    """
    file = spacing_file(path)
    if file is not None:
        try:
            return _read_spacing(file)
        except VolsegError as error:
            if slices > 1:
                raise refusal_of(error, "spacing", case) from None
    tags = _tags(path)
    text = str(tags.get(_DESCRIPTION, ""))
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    unit = fields.get("unit", "").replace("\\u00B5", "µ").strip()
    mm = _IMAGEJ_MM.get(unit, 0.0) if text.startswith("ImageJ=") else 0.0
    try:
        within = [mm / float(tags[tag]) for tag in _RESOLUTION]
        across = mm * float(fields.get("spacing", 1.0))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    found = (*within, abs(across) if slices > 1 else 1.0)
    return (found[0], found[1], found[2]) if np.isfinite(found).all() and min(found) > 0 else None


def unknown_spacing(path: Path, spacing_mm: tuple[float, float, float]) -> Doubt:
    """What to say of a stack that does not tell how far its slices are apart."""
    name = f"{volume_stem(path)}.json"
    rule, got = f"a file {name} beside it", f"none, so that {' x '.join(f'{n:.4g}' for n in spacing_mm)} mm are taken"
    advice = 'Write {"spacing": [z, y, x]} in mm into it, also where this is right'
    return Doubt("warning", "spacing", f"{path}: spacing of a TIFF stack", rule, got, advice)


def write_spacing(path: Path, spacing_mm: tuple[float, float, float]) -> None:
    """Write the file beside a TIFF stack.

    Raises:
        VolsegError: If something else is there, or it cannot be written.
    """
    file = path.with_name(f"{volume_stem(path)}.json")
    content = {"spacing": [round(n, 9) for n in reversed(spacing_mm)]}
    if file.exists():
        try:
            _read_spacing(file)
        except VolsegError:
            advice = "Use another folder, or write NIfTI (--format nii.gz)"
            raise VolsegError(sentence("file", "the spacing of a stack", "another file", advice, file=file)) from None
    write_json(file, content)


def has_palette(path: Path) -> bool:
    """Whether the pixels of a picture are indices of a palette."""
    if volume_suffix(path) in TIFF_SUFFIXES:
        return _tags(path).get(_PHOTOMETRIC) == _PALETTE
    with path.open("rb") as stream:
        return stream.read(_PNG_COLOUR_TYPE + 1)[_PNG_COLOUR_TYPE:] == bytes([_PALETTE])


def decoded_indices(path: Path) -> NDArray[np.uint8]:
    """Indices of a picture with a palette, (J, I) or (K, J, I); decoders have errors of many kinds."""
    from PIL import PngImagePlugin, TiffImagePlugin  # here: pictures are seldom, and it takes 50 ms

    tiff = volume_suffix(path) in TIFF_SUFFIXES
    # Not by Image.open, which takes a scan of a whole slide for an attack; its size was checked before.
    with (TiffImagePlugin.TiffImageFile if tiff else PngImagePlugin.PngImageFile)(path) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1) if tiff else 1):
            image.seek(page)
            pages.append(np.array(image, dtype=np.uint8))
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _tags(path: Path) -> dict[int, Any]:
    """Tags of the first page of a TIFF; empty if they cannot be read."""
    from PIL import TiffImagePlugin

    try:
        with path.open("rb") as stream:
            directory = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
            stream.seek(directory.next)
            directory.load(stream)
            return dict(directory)
    except Exception:  # ITK says what is wrong with the file
        return {}


def _read_spacing(file: Path) -> tuple[float, float, float]:
    """Spacing along i, j, k; other keys may stand beside it."""
    found = read_json(file, kind=dict[str, Any]).get("spacing")
    numbers = [n for n in found if type(n) in (int, float) and 0 < n < float("inf")] if isinstance(found, list) else []
    if len(numbers) != 3 or len(found) != 3:
        advice = 'Write {"spacing": [z, y, x]} in mm, or remove the file'
        raise VolsegError(sentence("spacing", "three numbers above 0", short(found), advice, file=file))
    z, y, x = map(float, numbers)
    return x, y, z
