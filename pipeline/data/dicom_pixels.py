"""Stored pixels of DICOM files, of every compression that is decoded. Loaded by the process that reads.

Decoders: pydicom itself (not compressed, deflated, RLE), pyjpegls (JPEG-LS), pylibjpeg-openjpeg (JPEG 2000), and the
GDCM that SimpleITK brings (the older JPEG processes).
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dicom_file import RefusedError, read_dataset, uid, whole

_GDCM = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)}  # JPEG baseline, extended, lossless
_PLUGINS = {
    **{f"1.2.840.10008.1.2.4.{n}": "pyjpegls" for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": "pylibjpeg" for n in (90, 91, 201, 202, 203)},
}
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
_BIG_ENDIAN = _PLAIN[2]
_RLE = "1.2.840.10008.1.2.5"
DECODED = frozenset((*_PLAIN, _RLE, *_GDCM, *_PLUGINS))
"""Transfer syntaxes that are decoded."""
PLAIN = frozenset(_PLAIN[:3])
"""Those whose pixels take as many bytes in the file as in memory."""

Decoder = Callable[[int], NDArray[Any]]


def syntax_of(dataset: Any) -> str:
    """Transfer syntax of a data set that was read from a file."""
    return uid(dataset.file_meta, "TransferSyntaxUID") or _PLAIN[0]


def frame_digest(stream: IO[bytes], frame: int) -> str:
    """A hash of the stored pixels of a frame, compressed as they are."""
    from pydicom.encaps import get_frame

    dataset = read_dataset(stream)
    content = dataset.PixelData
    frames = whole(dataset, "NumberOfFrames") or 1
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        content = get_frame(content, frame, number_of_frames=frames)
    else:
        size = len(content) // frames
        content = content[frame * size : (frame + 1) * size]
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_frames(stream: IO[bytes], frames: Sequence[int]) -> NDArray[Any]:
    """Stored pixels of frames, (frames, rows, columns)."""
    decode = frame_decoder(read_dataset(stream))
    return np.ascontiguousarray(np.stack([decode(frame) for frame in frames]))


def frame_decoder(dataset: Any) -> Decoder:
    """Gives stored pixels (rows, columns) of a frame, without what the bits that are not used hold."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = UID(syntax_of(dataset))
    if syntax not in DECODED:
        raise RefusedError("pixels of a compression that is not decoded")
    bits = ("BitsAllocated", "BitsStored", "PixelRepresentation")
    allocated, stored, signed = (int(dataset[name].value) for name in bits)
    if allocated == 1:
        return _single_bits(dataset, syntax)
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or signed not in (0, 1):
        raise RefusedError("pixels of a number of bits that is not read")
    decode: Decoder
    if syntax in _GDCM:
        decode = _gdcm(dataset, syntax)
    else:
        decoder = get_decoder(syntax)
        plugin = _PLUGINS.get(syntax, "")

        def decode(frame: int) -> NDArray[Any]:
            options: Any = {"raw": True, "decoding_plugin": plugin, "correct_unused_bits": False}
            return np.asarray(decoder.as_array(dataset, index=frame, **options)[0])

    high = int(dataset.get("HighBit", stored - 1))
    shift = high + 1 - stored if syntax in (*_PLAIN, _RLE) else 0

    def one(frame: int) -> NDArray[Any]:
        pixels = _used_bits(decode(frame), stored, shift, bool(signed))
        if pixels.ndim != 2:
            raise RefusedError("several numbers per pixel")
        return pixels

    return one


def _single_bits(dataset: Any, syntax: str) -> Decoder:
    """Decode frames of one bit per pixel, which follow each other without a gap: a frame may begin within a byte."""
    if syntax not in _PLAIN or syntax == _BIG_ENDIAN:
        raise RefusedError("pixels of a compression that is not decoded")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    content = np.frombuffer(dataset.PixelData, np.uint8)

    def decode(frame: int) -> NDArray[np.uint8]:
        first, last = frame * rows * columns, (frame + 1) * rows * columns
        if last > content.size * 8:
            raise ValueError("the pixels end before the frame does")
        part = np.unpackbits(content[first // 8 : -(-last // 8)], bitorder="little")
        return part[first % 8 :][: rows * columns].reshape(rows, columns)

    return decode


def _used_bits(pixels: NDArray[Any], stored: int, shift: int, signed: bool) -> NDArray[Any]:
    """Pixels of the bits that hold them; overlays, which old files keep in the others, are dropped."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    bits = pixels.dtype.itemsize * 8
    if shift < 0 or shift + stored > bits:
        raise RefusedError("pixels of a number of bits that is not read")
    if stored == bits:
        return pixels
    # Up to the highest bit, and down again: signed numbers keep their sign.
    kind = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    return (pixels.view(kind) << (bits - stored - shift)) >> (bits - stored)


def _gdcm(dataset: Any, syntax: str) -> Decoder:
    """Decode frames by SimpleITK's GDCM, each as a file of its own that says nothing but what its pixels are."""
    import pydicom
    import SimpleITK as sitk  # noqa: N813
    from pydicom.encaps import encapsulate, get_frame

    kept = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    count = whole(dataset, "NumberOfFrames") or 1

    def decode(frame: int) -> NDArray[Any]:
        single = pydicom.Dataset()
        for name in kept:
            setattr(single, name, dataset[name].value)
        single.SamplesPerPixel, single.PhotometricInterpretation = 1, "MONOCHROME2"
        single.SOPClassUID, single.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
        single.PixelData = encapsulate([get_frame(dataset.PixelData, frame, number_of_frames=count)])
        single["PixelData"].VR = "OB"
        single["PixelData"].is_undefined_length = True
        single.file_meta = pydicom.dataset.FileMetaDataset()
        single.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        content = io.BytesIO()
        single.save_as(content, enforce_file_format=True)
        with _in_file(content.getbuffer()) as path:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(path)
            pixels = sitk.GetArrayFromImage(reader.Execute())
        # GDCM widens no integer that has no scale; one slice comes as a volume.
        kind = np.dtype(f"{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}")
        return np.asarray(pixels[0] if pixels.ndim == 3 else pixels).astype(kind, casting="same_kind")

    return decode


@contextmanager
def _in_file(content: memoryview) -> Iterator[str]:
    """The path of a file with some content, which vanishes with this process where the system has files in memory."""
    create = getattr(os, "memfd_create", None)  # Linux
    if create is not None:
        number = create("frame")
        with os.fdopen(number, "wb") as stream:
            stream.write(content)
            stream.flush()
            yield f"/proc/self/fd/{number}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        path.write_bytes(content)
        yield str(path)
