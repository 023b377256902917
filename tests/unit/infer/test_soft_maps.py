"""What is kept of rows of probabilities, by hand; and in how much memory."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.scratch import RowFile, RowMemory
from pipeline.core.volume import LabelMap
from pipeline.infer.soft_maps import SoftMaps, SoftWanted, entropy, probabilities
from pipeline.preprocess.trace import Trace

TWO = LabelTable({1: "liver", 5: "spleen"})
DISC = LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "cup": (2,)})


def test_entropy_by_hand():
    even, sure = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    halves = torch.tensor([0.5, 0.5, 0.0, 0.0])  # 1 bit of 2
    assert entropy(torch.stack([even, sure, halves]), shared=True).tolist() == pytest.approx([1.0, 0.0, 0.5])
    regions = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 1.0], [0.25, 1.0]])
    quarter = (0.25 * 2 + 0.75 * math.log2(4 / 3)) / 2
    assert entropy(regions, shared=False).tolist() == pytest.approx([1.0, 0.0, 0.5, quarter])


def test_probabilities_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])
    assert probabilities(logits, shared=True).tolist() == pytest.approx([0.25, 0.75])
    assert probabilities(logits, shared=False).tolist() == pytest.approx([0.5, 0.75])


def _trace() -> Trace:
    """Of 4 x 1 x 2 voxels, the second and third row and the first column are kept."""
    source = Grid((4, 1, 2), np.eye(4))
    crop = source.reoriented("RAS").cropped((1, 0, 0), (3, 1, 1))
    return Trace(source, "RAS", (1, 0, 0), (3, 1, 1), crop)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("pieces", [1, 2])
def test_maps_and_confidence_of_two_voxels(tmp_path: Path, on_disk: bool, pieces: int) -> None:
    wanted = SoftWanted(("spleen", "liver"), True, tmp_path if on_disk else None)
    maps = SoftMaps(wanted, TWO, _trace(), 0, whole=False)
    found = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.25, 0.75]]).reshape(2, 1, 1, 3)
    labels = torch.tensor([1, 2], dtype=torch.uint8).reshape(2, 1, 1)
    for first in range(0, 2, 2 // pieces):
        part = slice(first, first + 2 // pieces)
        maps.add(first, found[part], labels[part])
    label_map = LabelMap(np.zeros((4, 1, 2), np.uint8), _trace().source)
    soft = maps.finished(label_map)
    assert soft.label_map is label_map
    assert soft.confidence == {"liver": 0.5, "spleen": 0.75}
    assert soft.probabilities["liver"][:, 0].tolist() == [[0, 0], [0.5, 0], [0.25, 0], [0, 0]]
    assert soft.probabilities["spleen"][:, 0].tolist() == [[0, 0], [0.5, 0], [0.75, 0], [0, 0]]
    quarter = (0.25 * 2 + 0.75 * math.log2(4 / 3)) / math.log2(3)
    assert soft.entropy is not None
    assert soft.entropy[:, 0, 0].tolist() == pytest.approx([0.0, 1 / math.log2(3), quarter, 0.0])
    assert not soft.entropy[:, :, 1].any()
    assert list(tmp_path.iterdir()) == []


def test_a_voxel_of_two_regions_counts_for_both() -> None:
    maps = SoftMaps(SoftWanted(), DISC, _trace(), 0, whole=False)
    maps.add(0, torch.tensor([[0.9, 0.1], [0.7, 0.6]]).reshape(2, 1, 1, 2), torch.tensor([1, 2]).reshape(2, 1, 1))
    confidence = maps.finished(LabelMap(np.zeros((4, 1, 2), np.uint8), _trace().source)).confidence
    assert confidence == pytest.approx({"disc": 0.8, "cup": 0.6})


def test_organs_that_are_not_there_have_no_confidence() -> None:
    maps = SoftMaps(SoftWanted(), TWO, _trace(), 0, whole=False)
    maps.add(0, torch.full((2, 1, 1, 3), 1 / 3), torch.tensor([0, 1]).reshape(2, 1, 1))
    confidence = maps.finished(LabelMap(np.zeros((4, 1, 2), np.uint8), _trace().source)).confidence
    assert confidence == {"liver": pytest.approx(1 / 3), "spleen": None}


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    class Full:
        def seek(self, place: int) -> None: ...

        def write(self, content: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows = RowFile((2, 3), tmp_path / "new")
    rows.stream.close()
    rows.stream = Full()
    with pytest.raises(VolsegError, match=r"new: the disk is full, nothing was written\. Free some space"):
        rows.write(0, np.zeros((1, 3)))


def test_rows_in_memory_and_in_a_file_are_alike(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    for rows in (RowMemory((7, 3, 2)), RowFile((7, 3, 2), tmp_path)):
        rows.write(1, values[:2])
        rows.write(3, values[2:])
        np.testing.assert_array_equal(rows.array()[1:6], values)
        assert not rows.array()[[0, 6]].any()


_PEAK = """
import resource, sys, threading
from contextlib import nullcontext
from pathlib import Path
import numpy as np
import torch
import pipeline.infer.stream
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.restore import restore_labels
from pipeline.infer.soft_maps import SoftMaps, SoftWanted
from pipeline.preprocess.trace import Trace
pipeline.infer.stream.keep_freed_memory = nullcontext  # what is held counts, not what is kept for the next use
torch.set_num_threads(1)
length, scratch, classes = int(sys.argv[1]), sys.argv[2], 40
image = torch.zeros(1, 64, 64, length)
table = LabelTable({n: f"organ_{n}" for n in range(1, classes)})
source = Grid((64, 64, 2 * length), np.eye(4))
trace = Trace(source, "RAS", (0, 0, 0), source.shape, source.resized((64, 64, length)))
wanted = SoftWanted(("organ_3", "organ_4"), True, Path(scratch))

def network(window):
    logits = torch.zeros(len(window), classes, *window.shape[2:]).contiguous(memory_format=torch.channels_last_3d)
    logits[:, 3] = 9
    return logits

def own():
    words = open("/proc/self/statm").read().split()
    return (int(words[1]) - int(words[2])) * resource.getpagesize() / 2**20

network(image[None, ..., :32])
before, peak, stop = own(), [0.0], threading.Event()

def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], own() - before)

thread = threading.Thread(target=watch)
thread.start()
rows = StreamingInferer((32, 32, 32)).labelled_rows(image, network, source.shape)
maps = SoftMaps(wanted, table, trace, 2, whole=False)
found = restore_labels(maps.watched(rows), 2, trace)
stop.set()
thread.join()
assert (found == 3).all() and maps.stores[0].array().min() > 0.99
print(peak[0] - found.size / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_memory_is_a_slab_whatever_the_length(tmp_path: Path) -> None:
    def peak_mb(length: int) -> float:
        words = [sys.executable, "-c", _PEAK, str(length), str(tmp_path)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is returned at once
        return float(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout)

    slab_mb = 40 * 64 * 64 * 32 * 4 / 2**20  # classes times the planes of a window, 20 MB
    short, long = peak_mb(200), peak_mb(400)  # all classes at full size: 250 and 500 MB
    assert long < 1.25 * slab_mb + 180  # and copies of 32 MB of rows
    assert long < 1.05 * short + 10
