"""Volume files of every format, and what may have happened to their bytes: for tests that try many.

python damaged.py <folder> <files> <seed>   write damaged files there, read each, print what came out as JSON
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from pipeline.core.errors import VolsegError
from pipeline.core.grid import Grid
from pipeline.data.legend import LegendEntry
from pipeline.data.volumes import read_image, read_label_map, write_voxels

EXTREMES = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "16",
    "1000",
    "65536",
    "2147483648",
    "99999999999999999999",
    "1e308",
    "nan",
    "inf",
    "-0.0",
)
WORDS = (
    "",
    "x" * 3000,
    "1 " * 2000,
    "%d%s%n",
    "../../../../etc/passwd",
    "/dev/zero",
    "LIST",
    "LOCAL",
    "gzip",
    "\0",
    "é",
    "((",
)


def good_files(folder: Path) -> list[Path]:
    """A volume of every format, 6 x 7 x 5 voxels from 0 to 9, or one slice of them; not the files of voxels alone.

    From ``k`` on the names are of pictures, ``n`` and ``o`` in colour, but for ``p``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid.from_spacing((6, 7, 5), (1.0, 2.0, 3.0))
    array = (np.arange(210) % 10).astype(np.uint8).reshape(6, 7, 5)
    legend = (LegendEntry(1, "liver", "#ff0000"), LegendEntry(2, "spleen", "#00ff00"))
    for name in ("a.nii", "b.nii.gz", "c.nrrd", "d.seg.nrrd", "e.mha", "f.mhd"):
        write_voxels(array, grid, folder / name, legend=legend)
    nib.save(nib.Nifti2Image(array, grid.affine), folder / "g.nii")
    image = sitk.GetImageFromArray(array.astype(np.int16).T)
    for name in ("h.nrrd", "i.mha", "j.mhd", "k.tif"):
        sitk.WriteImage(image, str(folder / name))
    colours = np.stack([array[:, :, 0].T] * 3, axis=-1)
    for name, pixels in (
        ("l.png", array[:, :, 1].T),
        ("m.tif", array[:, :, 2].T),
        ("n.png", colours),
        ("o.tif", colours),
    ):
        picture = sitk.GetImageFromArray(np.ascontiguousarray(pixels), isVector=pixels.ndim == 3)
        sitk.WriteImage(picture, str(folder / name), useCompression=name[0] in "mn")
    (folder / "voxels.raw").write_bytes(array.T.tobytes())
    header = (folder / "h.nrrd").read_bytes().split(b"\n\n")[0].replace(b"short", b"uchar")
    (folder / "p.nrrd").write_bytes(header + b"\ndata file: voxels.raw\n\n")
    return sorted(path for path in folder.iterdir() if "raw" not in path.suffix)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes of a file to which up to three things have happened."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        content = chance.choice(DAMAGES)(bytearray(content), chance)
    return content


def _flip(content: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 2, 8, 30))):
        if content:
            content[_place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(content)


def _number(content: bytearray, chance: random.Random) -> bytes:
    width, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
    at = _place(content, chance)
    content[at : at + width] = (chance.choice(EXTREMES) % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
    return bytes(content)


def _real(content: bytearray, chance: random.Random) -> bytes:
    at = _place(content, chance) // 4 * 4
    content[at : at + 4] = np.float32(chance.choice((0, -1, np.nan, np.inf, 1e38, 1e-38, 2**31))).tobytes()
    return bytes(content)


def _cut(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: _place(content, chance)])


def _lose(content: bytearray, chance: random.Random) -> bytes:
    at = _place(content, chance)
    del content[at : at + chance.choice((1, 4, 60))]
    return bytes(content)


def _repeat(content: bytearray, chance: random.Random) -> bytes:
    at, width = _place(content, chance), chance.choice((1, 4, 60, 3000))
    return bytes(content[:at] + content[at : at + width] * chance.choice((1, 2, 50)) + content[at:])


def _text(content: bytearray, chance: random.Random) -> bytes:
    """Another number or word in a header of text."""
    places = list(re.finditer(rb"[-\w.]+", content[:600]))
    if not places:
        return bytes(content)
    match, words = chance.choice(places), NUMBERS if chance.random() < 0.6 else WORDS
    return bytes(content[: match.start()] + chance.choice(words).encode() + content[match.end() :])


def _line(content: bytearray, chance: random.Random) -> bytes:
    """A line of a header of text that is gone, there twice, or somewhere else."""
    lines = content.split(b"\n")
    at = chance.randrange(min(len(lines), 20))
    line = lines.pop(at)
    for _ in range(chance.choice((0, 1, 2))):
        lines.insert(chance.randrange(min(len(lines), 20) + 1), line)
    return b"\n".join(lines)


def _place(content: bytearray, chance: random.Random) -> int:
    """Three times of four within the first 500 bytes, where headers are."""
    return chance.randrange(max(1, min(len(content), 500) if chance.random() < 0.75 else len(content)))


DAMAGES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    *(_flip, _number, _real, _cut, _lose, _repeat, _text, _text, _text, _line),
)


def write_damaged(folder: Path, number: int, seed: int, stem: str = "", *, of: str = "") -> list[Path]:
    """Write files into a folder, each a good one to which something happened.

    Args:
        folder: It also gets the voxels that headers point to.
        number: Of files.
        seed: The same one gives the same files.
        stem: What their names begin with; their number and the good file's ending follow.
        of: First letters of the good files' names; by default all are taken.
    """
    good = good_files(folder.parent / f"{folder.name}_good")
    folder.mkdir(parents=True, exist_ok=True)
    for data in good[0].parent.glob("*raw"):
        (folder / data.name).write_bytes(data.read_bytes())
    good = [path for path in good if not of or path.name[0] in of]
    written = []
    for n in range(number):
        chance, source = random.Random(f"{seed} {n}"), good[n % len(good)]
        written.append(folder / f"{stem}{n:05d}{''.join(source.suffixes)}")
        written[-1].write_bytes(damaged(source.read_bytes(), chance))
    return written


def outcome(path: Path) -> dict[str, Any]:
    """What reading a file, as an image and as a label map, came to."""
    began, found = time.monotonic(), {}
    for name, read in (("image", read_image), ("labels", read_label_map)):
        try:
            array = read(path, case="c").array  # type: ignore[operator]
            found[name] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
        except VolsegError as error:
            found[name] = f"refused: {error}"
        except BaseException as error:
            found[name] = f"{type(error).__name__}: {error}"
    return {"file": path.name, **found, "seconds": round(time.monotonic() - began, 2)}


if __name__ == "__main__":
    home, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    files = write_damaged(home, number, seed)
    sys.stdout.write(json.dumps([outcome(path) for path in files]))
