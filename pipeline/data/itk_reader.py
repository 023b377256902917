"""SimpleITK reads in a process of its own: its C and C++ decoders may crash or never end on a damaged file.

So does Pillow, which reads the indices of pictures with a palette.

Such a file then costs this small process and one sentence, not the command and all other cases. Voxels come back
through a pipe, straight into their array, so that nothing is left on disk whatever ends. Where no process can be
started, as in some programs that embed Python, SimpleITK reads in this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.notices import about, tell
from pipeline.data.pictures import decoded_indices
from pipeline.data.reader_process import Readers, serve_requests, voxels_limit_s

PALETTE = "palette"
"""In place of a decoder: the indices of a picture with a palette."""

_HEADER_S = 120.0
_MOST_SAID = 1 << 16


def read_header(path: Path, decoder: str) -> dict[str, Any]:
    """Header of a file as SimpleITK has it.

    Args:
        path: The file.
        decoder: ITK's class for its format, such as ``NrrdImageIO``; no other looks at the file.

    Returns:
        ``size``, ``spacing``, ``origin`` and ``direction`` along its axes (LPS, mm), ``components`` per voxel, and
        ``kind``, ITK's name of their type.

    Raises:
        ReaderError: If it cannot be read.
    """
    return _asked({"path": str(path), "decoder": decoder, "limit_s": _HEADER_S})[0]


def read_array(path: Path, decoder: str, values: int) -> NDArray[Any]:
    """Voxels of a file in its own order: (K, J, I), or (J, I), with the components of a voxel last.

    Args:
        path: The file.
        decoder: As for :func:`read_header`; PALETTE for the indices of a picture, which Pillow decodes.
        values: How many its header promises, all components counted.

    Raises:
        ReaderError: If they cannot be read, or are more or fewer.
    """
    limit_s = voxels_limit_s(values)
    array = _asked({"path": str(path), "decoder": decoder, "values": values, "limit_s": limit_s})[1]
    assert array is not None  # what was asked for came, or an error
    return array


def _asked(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None]:
    answer, array = _READERS.ask(request)
    tell(about(request["path"], answer.get("said", ())))
    return answer, array


# The other side: what runs in the process.


def serve() -> None:
    """Answer requests until there are no more."""
    serve_requests(_answer, _loaded)


def _loaded() -> None:
    import SimpleITK  # noqa: F401


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None, Any]:
    """Header, or voxels if the number of its values is given; an error of SimpleITK is an answer too."""
    import SimpleITK as sitk  # noqa: N813  # its usual name; here, because the process that asks needs none of it

    try:
        if request["decoder"] == PALETTE:
            indices = decoded_indices(Path(request["path"]))
            return {}, indices, None
        reader = sitk.ImageFileReader()
        reader.SetImageIO(request["decoder"])
        reader.SetFileName(request["path"])
        if "values" in request:
            image = reader.Execute()
            return {}, np.asarray(sitk.GetArrayViewFromImage(image)), image  # in the image's memory
        reader.ReadImageInformation()
        header = {
            "size": reader.GetSize(),
            "spacing": reader.GetSpacing(),
            "origin": reader.GetOrigin(),
            "direction": reader.GetDirection(),
            "components": reader.GetNumberOfComponents(),
            "kind": sitk.GetPixelIDValueAsString(reader.GetPixelID()),
        }
        return header, None, None
    except Exception as error:  # whatever SimpleITK raises is about the file
        return {"error": str(error)[-_MOST_SAID:] or type(error).__name__}, None, None


_READERS = Readers("pipeline.data.itk_reader", _answer)
