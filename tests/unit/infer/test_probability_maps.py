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
from members import ORGANS, REGIONS, image, member, whole_probabilities

from pipeline.core.errors import ConfigError, DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.machine import RowFile, RowMemory
from pipeline.core.volume import Image, LabelMap
from pipeline.infer.probability_maps import SoftMaps, SoftWanted, entropy, probabilities
from pipeline.preprocess.grid_history import GridHistory
from pipeline.stages.predict import Predictor

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


def _trace() -> GridHistory:
    """Of 4 x 1 x 2 voxels, the second and third row and the first column are kept."""
    source = Grid((4, 1, 2), np.eye(4))
    crop = source.reoriented("RAS").cropped((1, 0, 0), (3, 1, 1))
    return GridHistory(source, "RAS", (1, 0, 0), (3, 1, 1), crop)


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


_PEAKS = """
import os, resource, sys, threading
from contextlib import nullcontext
from pathlib import Path
import numpy as np
import torch
import pipeline.infer.accumulate
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.segment import restore_labels
from pipeline.infer.probability_maps import SoftMaps, SoftWanted
from pipeline.preprocess.grid_history import GridHistory
pipeline.infer.accumulate.keep_freed_memory = nullcontext  # what is held counts, not what is kept for the next use
torch.set_num_threads(1)  # a fork has no threads but its own
scratch, classes = sys.argv[1], 40
table = LabelTable({n: f"organ_{n}" for n in range(1, classes)})
wanted = SoftWanted(("organ_3", "organ_4"), True, Path(scratch))

def network(window):
    logits = torch.zeros(len(window), classes, *window.shape[2:]).contiguous(memory_format=torch.channels_last_3d)
    logits[:, 3] = 9
    return logits

def own():
    words = open("/proc/self/statm").read().split()
    return (int(words[1]) - int(words[2])) * resource.getpagesize() / 2**20

def measured(length):
    image = torch.zeros(1, 64, 64, length)
    source = Grid((64, 64, 2 * length), np.eye(4))
    trace = GridHistory(source, "RAS", (0, 0, 0), source.shape, source.resized((64, 64, length)))
    network(image[None, ..., :32])
    before, peak, stop = own(), [0.0], threading.Event()

    def watch():
        while not stop.wait(0.002):
            peak[0] = max(peak[0], own() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    rows = StreamingInferer((32, 32, 32)).labelled_planes(image, network, source.shape)
    maps = SoftMaps(wanted, table, trace, 2, whole=False)
    found = restore_labels(maps.watched(rows), 2, trace)
    stop.set()
    thread.join()
    assert (found == 3).all() and maps.stores[0].array().min() > 0.99
    return peak[0] - found.size / 2**20

for length in sys.argv[2:]:
    if os.fork() == 0:
        print(measured(int(length)), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_memory_is_a_slab_whatever_the_length(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _PEAKS, str(tmp_path), "128", "256"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is returned at once
    told = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    slab_mb = 40 * 64 * 64 * 32 * 4 / 2**20  # classes times the planes of a window, 20 MB
    short_mb, long_mb = map(float, told.split())  # all classes at full size: 160 and 320 MB
    assert long_mb < 1.25 * slab_mb + 180  # and copies of 32 MB of rows
    assert long_mb < 1.05 * short_mb + 10


# Probabilities, entropy and confidence of whole images are those of logits that are all held at full size.

MIRROR = {"augment": {"flip_axes": ["LR", "SI"]}, "infer": {"mirror": True}}
MODELS = {
    "3D": lambda: [member()],
    "2D": lambda: [member(2)],
    "regions": lambda: [member(table=REGIONS)],
    "no resampling": lambda: [member(spacing_mm=(1.5, 2.5, 1.0), crop="none")],
    "finer": lambda: [member(spacing_mm=(0.9, 1.3, 0.8))],
    "folds": lambda: [member(folds=2)],
    "mirrored": lambda: [member(settings=MIRROR)],
    "ensemble": lambda: [member(), member(2, seed=5, spacing_mm=(3.0, 1.5, 1.5), crop="none")],
    "ensemble of regions": lambda: [member(table=REGIONS), member(table=REGIONS, seed=3, crop="none")],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "ILA"])
def test_soft_outputs_are_those_of_all_logits_at_full_size(name, orientation, tmp_path):
    predictor, given = Predictor(MODELS[name]()), image(orientation)
    table = predictor.labels
    expected = whole_probabilities(predictor, given).double()
    found = predictor.predict_soft(given, table.targets)
    plain = predictor.predict(given)
    np.testing.assert_array_equal(found.label_map.array, plain.array)
    assert (found.label_map.array.dtype, found.label_map.grid) == (plain.array.dtype, given.grid)
    first = len(expected) - len(table.targets)
    assert list(found.probabilities) == list(table.targets)
    for channel, array in enumerate(found.probabilities.values(), start=first):
        assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_allclose(array, expected[channel], atol=1e-5)
    parts = -torch.xlogy(expected, expected)
    whole = parts.sum(0) / math.log(len(expected))
    if table.regions:
        whole = (parts - torch.xlogy(1 - expected, 1 - expected)).mean(0) / math.log(2)
    np.testing.assert_allclose(found.entropy, whole, atol=1e-5)
    for channel, (target, values) in enumerate(table.target_values.items(), start=first):
        inside = np.isin(plain.array, values)
        mean = expected[channel][inside].mean().item() if inside.any() else None
        assert found.confidence[target] == pytest.approx(mean, abs=1e-5)
    assert len(plain.values()) > 1
    on_disk = predictor.predict_soft(given, table.targets[-1:], entropy=False, scratch=tmp_path)
    np.testing.assert_array_equal(on_disk.probabilities[table.targets[-1]], found.probabilities[table.targets[-1]])
    assert on_disk.entropy is None
    assert on_disk.confidence == found.confidence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", [ORGANS, REGIONS])
def test_a_single_picture(table):
    grid = Grid.from_spacing((30, 21, 1), (1.0, 1.0, 1.0))
    given = Image(np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32), grid)
    predictor = Predictor([member(2, table, crop="none")])
    found = predictor.predict_soft(given, table.targets)
    expected = whole_probabilities(predictor, given)[-len(table.targets) :]
    np.testing.assert_allclose(np.stack(list(found.probabilities.values())), expected, atol=1e-5)
    np.testing.assert_array_equal(found.label_map.array, predictor.predict(given).array)


def test_half_sums_give_the_same_soft_outputs_but_for_rounding():
    exact, half = (Predictor([member(settings={"infer": {"accumulate": kind}})]) for kind in ("float32", "float16"))
    one, other = (predictor.predict_soft(image(), ("liver",)) for predictor in (exact, half))
    np.testing.assert_allclose(one.probabilities["liver"], other.probabilities["liver"], atol=0.01)
    np.testing.assert_array_equal(other.label_map.array, half.predict(image()).array)


def test_more_classes_than_eight_bits_hold():
    many = type(ORGANS)({n: f"organ_{n}" for n in range(1, 300)})
    predictor = Predictor([member(table=many)])
    found = predictor.predict_soft(image(), ("organ_299",), entropy=False)
    np.testing.assert_array_equal(found.label_map.array, predictor.predict(image()).array)
    np.testing.assert_allclose(
        found.probabilities["organ_299"], whole_probabilities(predictor, image())[299], atol=1e-5
    )


def test_confidence_is_of_what_the_network_found_before_cleaning():
    kept = Predictor([member(settings={"infer": {"keep_largest": ["liver"]}})])
    plain = Predictor([member()])
    cleaned, whole = kept.predict_soft(image()), plain.predict_soft(image())
    assert (cleaned.label_map.array == 1).sum() < (whole.label_map.array == 1).sum()
    assert cleaned.confidence == whole.confidence
    assert not cleaned.probabilities


@pytest.mark.parametrize(("table", "name", "known"), [(ORGANS, "spleen", "liver, "), (REGIONS, "rim", "disc, cup")])
def test_organs_that_the_network_does_not_find_are_refused(table, name, known):
    predictor = Predictor([member(table=table)])
    with pytest.raises(DataError, match=rf"probabilities: expected some of {known}.*, got {name}\. Correct the names"):
        predictor.predict_soft(image(), (name,))


def test_a_part_of_the_image_has_no_probabilities() -> None:
    predictor = Predictor([member(settings={"infer": {"roi": "body"}})])
    with pytest.raises(ConfigError, match=r"infer.roi: expected none with .* confidence, got body"):
        predictor.predict_soft(image())
