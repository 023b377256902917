"""Headers that would crash ITK, keep it busy or take memory without end are refused before ITK sees the file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.data.dataset import CaseFiles, content_hashes
from pipeline.data.itk_reader import _READERS
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_header, read_image

VOXELS = bytes(range(24))
SPACE = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that reach SimpleITK."""
    seen: list[str] = []
    ask = _READERS.ask
    monkeypatch.setattr(_READERS, "ask", lambda request: (seen.append(request["path"]), ask(request))[1])
    return seen


def refusal(path: Path) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_image(path, case="p7")
    assert str(caught.value).startswith(f"case p7: {path}: ")
    return caught.value


def nrrd(path: Path, more: str = SPACE, data: bytes = VOXELS, **fields: str) -> Path:
    named = {"type": "uint8", "dimension": "3", "sizes": "4 3 2", "encoding": "raw", "endian": "little", **fields}
    head = "".join(f"{name}: {value}\n" for name, value in named.items())
    path.write_bytes(f"NRRD0004\n{head}{more}\n".encode() + data)
    return path


def meta(path: Path, more: str = "", data: bytes = VOXELS, place: str = "LOCAL", **fields: str) -> Path:
    named = {"ObjectType": "Image", "NDims": "3", "DimSize": "4 3 2", "ElementType": "MET_UCHAR", **fields}
    head = "".join(f"{name} = {value}\n" for name, value in named.items())
    path.write_bytes(f"{head}{more}ElementDataFile = {place}\n".encode() + data)
    return path


LONG = "1" * 2500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("space directions", f"({LONG},0,0) (0,1,0) (0,0,1)"),
        ("thicknesses", f"{LONG} 1 1"),
        ("kinds", f"{LONG} domain domain"),
        ("Measurement Frame", f"({LONG},0,0) (0,1,0) (0,0,1)"),
        ("sizes", "4 3 2" + " " * 2500),
        ("type", LONG),
        (LONG, "1"),
    ],
)
def test_a_long_line_of_a_nrrd_header(tmp_path: Path, unseen: list[str], name: str, value: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", f"{name}: {value}\n")
    message = str(refusal(path))
    assert (
        f"header, {name.lower()[:20]}: expected at most 1000 characters, got {len(name) + len(value) + 2}." in message
    )
    assert unseen == []


def test_long_comments_and_free_text_are_fine(tmp_path: Path) -> None:
    # 3D Slicer writes such keys; hundreds of segments make a header of more than 64 KB.
    more = f"# {LONG}\ncontent: {LONG}\nSegmentation_ConversionParameters:={LONG}\n" + f"Segment0_Name:={LONG}\n" * 60
    path = nrrd(tmp_path / "a.seg.nrrd", SPACE + more)
    assert read_image(path).array.ravel().tolist() == np.arange(24).reshape(2, 3, 4).T.ravel().tolist()


def test_a_header_without_end(tmp_path: Path, unseen: list[str]) -> None:
    path = nrrd(tmp_path / "a.nrrd", f"Segment0_Name:={LONG}\n" * 600)
    assert "header: expected an end of it, got more than 1048576 bytes" in str(refusal(path))
    assert unseen == []


@pytest.mark.parametrize("given", ["1000", "-1", "0", "6", "16", "2000000000", "three", "9" * 50, ""])
def test_the_number_of_axes(tmp_path: Path, unseen: list[str], given: str) -> None:
    paths = (nrrd(tmp_path / "a.nrrd", dimension=given), meta(tmp_path / "a.mha", NDims=given))
    for path in paths:
        error = refusal(path)
        assert error.code == "dimensions"
        assert "shape: expected three axes, got " in str(error)
    assert unseen == []


@pytest.mark.parametrize(
    "header",
    [
        "ElementDataFile = LOCAL\nElementDataFile = ../x.raw\n",  # which of them counts depends on what is before
        "Comment = ElementDataFile = LOCAL\n",
        "elementdatafile = LOCAL\n",
    ],
)
def test_the_place_of_the_voxels_is_named_once(tmp_path: Path, unseen: list[str], header: str) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes(b"NDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\n" + header.encode() + VOXELS)
    refusal(path)
    assert unseen == []


# Voxels in files of their own.


def test_detached_voxels_lie_beside_or_below_their_header(tmp_path: Path, unseen: list[str]) -> None:
    home = tmp_path / "scans"
    (home / "raw").mkdir(parents=True)
    for place in (tmp_path / "secret", home / "a.raw", home / "raw" / "b.raw"):
        place.write_bytes(VOXELS)
    (home / "link.raw").symlink_to(tmp_path / "secret")
    secret = tmp_path / "secret"
    for name in ("../secret", str(secret), "raw/../../secret", "link.raw"):
        lines = (
            f"data file: {name}\n",
            f"DATAFILE: {name}\n",
            f"data file: LIST\n{name}\n",
            f"# x\rData File: {name}\n",
        )
        headers = [nrrd(home / f"{n}.nrrd", SPACE + line, b"") for n, line in enumerate(lines)]
        headers += [meta(home / "m.mhd", place=name, data=b""), meta(home / "m.mha", place=name, data=b"")]
        for path in headers:
            message = str(refusal(path))
            assert "voxel data: expected a file beside or below its header, got " in message
            assert message.endswith("Put both into one folder, and its name into the header.")
    assert unseen == []
    (home / "Gänge.raw").write_bytes(VOXELS)
    for name in ("a.raw", "./a.raw", "raw/b.raw", "raw/../a.raw", str(home / "a.raw"), "Gänge.raw"):
        assert read_image(nrrd(home / "n.nrrd", f"{SPACE}data file: {name}\n", b"")).array.max() == 23
        assert read_image(meta(home / "m.mhd", place=name, data=b"")).array.max() == 23
    # Folders of links are common: both files lie together where the links point to.
    links = tmp_path / "links"
    links.mkdir()
    meta(home / "m.mhd", place="a.raw", data=b"")
    for name in ("m.mhd", "a.raw"):
        (links / name).symlink_to(home / name)
    assert read_image(links / "m.mhd").array.max() == 23


def test_git_annex_links_to_one_place_in_the_repository(tmp_path: Path) -> None:
    store = tmp_path / "repo" / ".git" / "annex" / "objects"
    scans = tmp_path / "repo" / "sub-01" / "anat"
    for folder in (store / "x1", store / "y2", scans):
        folder.mkdir(parents=True)
    (store / "x1" / "key").write_bytes(VOXELS)
    meta(store / "y2" / "key", place="a.raw", data=b"")
    (scans / "a.raw").symlink_to("../../.git/annex/objects/x1/key")
    (scans / "a.mhd").symlink_to("../../.git/annex/objects/y2/key")
    assert read_image(scans / "a.mhd").array.max() == 23
    (store / "x1" / "key").unlink()
    assert "voxel data: expected the file a.raw, got a link to ../../.git/annex" in str(refusal(scans / "a.mhd"))
    # A repository from a stranger may have its place lead elsewhere.
    (tmp_path / "x1").mkdir()
    (tmp_path / "x1" / "key").write_bytes(VOXELS)
    store.rename(tmp_path / "repo" / "moved")
    store.symlink_to(tmp_path)
    (scans / "a.mhd").unlink()
    meta(scans / "a.mhd", place="a.raw", data=b"")
    assert "expected a file beside or below its header" in str(refusal(scans / "a.mhd"))


@pytest.mark.parametrize("name", ["LIST", "LIST 2", "s%02d.raw", "/dev/zero", "pipe", "no.raw", "a\0b", "n" * 300])
def test_detached_voxels_are_regular_files(tmp_path: Path, unseen: list[str], name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "LIST").write_bytes(VOXELS)
    (tmp_path / "s%02d.raw").write_bytes(VOXELS)
    refusal(meta(tmp_path / "a.mhd", place=name, data=b""))
    refusal(nrrd(tmp_path / "a.nrrd", f"{SPACE}data file: {name}\n", b""))
    assert unseen == []


def test_the_content_of_files_elsewhere_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    path = nrrd(tmp_path / "scans" / "a.nrrd", f"{SPACE}data file: /dev/zero\n", b"")
    with pytest.raises(VolumeError, match=r"^case p7: .*a.nrrd: voxel data: expected a file beside or below its head"):
        content_hashes(CaseFiles("p7", (path,)))


def test_a_small_detached_header_asks_for_no_memory(tmp_path: Path) -> None:
    (tmp_path / "v.raw").write_bytes(VOXELS)
    for encoding in ("raw", "gzip"):
        path = nrrd(tmp_path / "a.nrrd", f"{SPACE}data file: v.raw\n", b"", sizes="1500 1500 1500", encoding=encoding)
        error = refusal(path)
        assert error.code == "truncated"
        assert "voxel data: expected 3375000000 bytes for shape (1500, 1500, 1500), got 24 bytes" in str(error)


def test_voxels_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.core.machine.available_bytes", lambda: 2_000_000_000)
    with (tmp_path / "v.raw").open("wb") as stream:
        stream.truncate(3_375_000_000)  # takes no space
    path = nrrd(tmp_path / "a.nrrd", f"{SPACE}data file: v.raw\n", b"", sizes="1500 1500 1500")
    error = refusal(path)
    assert error.code == "size"
    assert "voxels: expected at most 2.0 GB, the free memory, got 3.4 GB. Read it where there is more" in str(error)


# Files that are none, or whose reading would never end.


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.png", "a.tif"])
def test_pipes_and_devices_are_no_volumes(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "expected a regular file, got a pipe or a device. Copy its content" in str(refusal(tmp_path / name))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert refusal(tmp_path / name).code == "format"


# Pictures.


def png(path: Path, width: int, height: int) -> Path:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(bytes(5 * 4))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def tiff(
    path: Path, *, following: int = 0, edge: int = 4, compression: int = 1, big: bool = False, **tags: int
) -> Path:
    named = {"offset": 16, "length": edge * edge, **tags}
    values = {256: edge, 257: edge, 258: 8, 259: compression, 262: 1, 273: named["offset"], 277: 1, 278: edge}
    values[279] = named["length"]
    entry, word = ("<HHQQ", "Q") if big else ("<HHII", "I")
    start = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 32) if big else struct.pack("<2sHI8x", b"II", 42, 32)
    table = struct.pack("<Q" if big else "<H", len(values))
    table += b"".join(struct.pack(entry, tag, 16 if big else 4, 1, value) for tag, value in sorted(values.items()))
    path.write_bytes(start + bytes(range(16)) + table + struct.pack(f"<{word}", following))
    return path


@pytest.mark.parametrize("big", [False, True])
def test_a_whole_tiff_is_read(tmp_path: Path, big: bool) -> None:
    assert read_image(tiff(tmp_path / "a.tif", big=big)).array[0, :, :, 0].T.ravel().tolist() == list(range(16))
    # Wrong lengths of plain strips do no harm: their rows say how long they are.
    with pytest.warns(match=r"b\.tif: TIFFReadDirectory: Warning, Bogus .StripByteCounts. field"):
        assert read_image(tiff(tmp_path / "b.tif", big=big, length=9999)).array.max() == 15


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"following": 32}, "got directories in a circle"),
        ({"following": 5000}, "got a directory at byte 5000 of "),
        ({"offset": 5000}, "got pixels at bytes 5000 to 5016 of "),
        ({"compression": 5, "length": 5000}, "got pixels at bytes 16 to 5016 of "),
        ({"edge": 60_000}, "got pixels at bytes 16 to 3600000016 of "),
        ({"compression": 8, "edge": 60_000, "length": 16}, "expected 3600000000 bytes for shape"),
    ],
)
@pytest.mark.parametrize("big", [False, True])
def test_damaged_tiffs(tmp_path: Path, unseen: list[str], changes: dict[str, int], text: str, big: bool) -> None:
    error = refusal(tiff(tmp_path / "a.tif", big=big, **changes))
    assert error.code == "truncated"
    assert text in str(error)
    assert unseen == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(30, 40), (5, 30, 40)])
def test_truncated_tiffs(tmp_path: Path, share: float, compressed: bool, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.tif"
    array = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compressed)
    assert np.array_equal(read_image(path).array[0].T.reshape(shape), array)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert refusal(path).code == "truncated"


@pytest.mark.parametrize("planar", [1, 2])
def test_strips_of_three_colours(tmp_path: Path, planar: int) -> None:
    # 4 x 10 pixels in strips of 3 rows: the last strip of a plane has one.
    strips = 4 * (3 if planar == 2 else 1)
    tags = {256: (4,), 257: (10,), 258: (8, 8, 8), 262: (2,), 277: (3,), 278: (3,), 284: (planar,)}
    tags[279] = tuple(4 * (1 if n % 4 == 3 else 3) * (3 if planar == 1 else 1) for n in range(strips))
    tags[273] = tuple(8 + sum(tags[279][:n]) for n in range(strips))
    assert sum(tags[279]) == 120
    content, table = struct.pack("<2sHI", b"II", 42, 0) + bytes(range(120)), b""
    for tag, values in sorted(tags.items()):
        where = len(content) if len(values) > 1 else values[0]
        table += struct.pack("<HHII", tag, 4, len(values), where)
        content += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
    path = tmp_path / "a.tif"
    whole = content[:4] + struct.pack("<I", len(content)) + content[8:]
    path.write_bytes(whole + struct.pack("<H", len(tags)) + table + bytes(4))
    pixels = np.arange(120, dtype=np.uint8)
    expected = pixels.reshape(3, 10, 4).transpose(1, 2, 0) if planar == 2 else pixels.reshape(10, 4, 3)
    assert np.array_equal(open_header(path).load()[:, :, 0].transpose(1, 0, 2), expected)


def test_many_pages_with_the_same_pixels(tmp_path: Path, unseen: list[str]) -> None:
    content = tiff(tmp_path / "a.tif", edge=1 << 9).read_bytes()
    pixels, page = bytes(1 << 18), content[32:-4]
    first = 32 + len(pixels)
    places = [first + n * (len(page) + 4) for n in range(1, 100)]
    pages = b"".join(page + struct.pack("<I", place) for place in (*places, 0))
    path = tmp_path / "b.tif"
    path.write_bytes(struct.pack("<2sHI24x", b"II", 42, first) + pixels + pages)
    assert "got pixels of 26214400 bytes at least in " in str(refusal(path))
    assert unseen == []


def test_a_small_png_asks_for_no_memory(tmp_path: Path, unseen: list[str]) -> None:
    assert read_image(png(tmp_path / "a.png", 4, 4)).array.max() == 0
    unseen.clear()
    for width, height in ((1_000_000, 1_000_000), (2**31 - 1, 2**31 - 1), (40_000, 4_000), (0, 4)):
        error = refusal(png(tmp_path / "b.png", width, height))
        assert error.code in ("size", "truncated")
    assert unseen == []
