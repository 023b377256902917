"""Streaming inference beside the plain case: several outputs, skipped windows, too little memory, half sums."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from pipeline.infer.accumulate import Accumulator, PlaneBuffer, WindowWeights, _order
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.windows import interval_starts


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (20, 8, 0.5, [0, 4, 8, 12]),
        (21, 8, 0.5, [0, 4, 8, 12, 13]),  # the last one is moved back
        (10, 7, 0.4, [0, 3]),  # 4.2 voxels are 4
        (8, 8, 0.5, [0]),
        (3, 8, 0.5, [0]),
        (4, 1, 0.5, [0, 1, 2, 3]),
    ],
)
def test_starts_of_monai(size, window, overlap, expected):
    assert interval_starts(size, window, overlap) == expected


def test_one_inferer_serves_several_threads_at_once():
    inferer, network = StreamingInferer((4, 4, 4), batch=3), nn.Conv3d(1, 12, 3, padding=1).eval()
    images = [_random(1, 1, 9, 10, 11, seed=seed) for seed in range(4)]
    expected = [inferer.label_map(image, network, (14, 14, 14)) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: inferer.label_map(image, network, (14, 14, 14)), images * 3))
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 3, strict=True))


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_several_outputs_come_as_several(kind):
    inputs = _random(1, 1, 9, 7)

    def network(x):
        parts = {"plain": x, "double": torch.cat([x, 2 * x], 1)}
        return parts if kind is dict else kind(parts.values())

    found = StreamingInferer((4, 4))(inputs, network)
    assert type(found) is (dict if kind is dict else tuple)
    plain, double = found.values() if kind is dict else found
    torch.testing.assert_close(plain, inputs)
    torch.testing.assert_close(double, torch.cat([inputs, 2 * inputs], 1))


def _constant_at_the_side():
    inputs = _random(1, 2, 16, 8)
    inputs[..., 8:, :] = -3.0
    return inputs


@pytest.mark.parametrize(
    "skip",
    [
        "padding",
        torch.arange(16)[:, None].expand(16, 8) < 8,
        lambda window: window.shape == (2, 4, 8) and bool((window == -3).all()),
    ],
)
def test_skipped_windows_cost_nothing_and_are_background(skip):
    inputs, seen = _constant_at_the_side(), []

    def network(x):
        seen.append(len(x))
        return x

    inferer = StreamingInferer((4, 8), 0.0, batch=3, skip=skip)
    found = inferer(inputs, network)
    assert seen == [2]
    torch.testing.assert_close(found[..., :8, :], inputs[..., :8, :])
    assert not found[..., 8:, :].any()
    labels = inferer.label_map(inputs, lambda x: torch.cat([x, x + 1], 1))
    assert (labels[0, :8] > 0).all()
    assert not labels[0, 8:].any()


def test_where_all_windows_are_skipped_all_is_background():
    inputs = torch.full((2, 1, 9, 9, 9), 7.0)
    inferer = StreamingInferer((4, 4, 4), skip="padding")
    assert not inferer(inputs, lambda x: torch.cat([x, x], 1)).any()
    assert not inferer.label_map(inputs, lambda x: torch.cat([x, 2 * x], 1)).any()


@pytest.mark.parametrize(
    ("padding", "fill"), [("constant", -1.0), ("reflect", None), ("replicate", None), ("circular", None)]
)
def test_small_volumes_are_padded_as_asked(padding, fill):
    inputs = _random(1, 1, 5, 12, 4)
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1).eval()
    with torch.no_grad():
        expected = sliding_window_inference(inputs, (8, 8, 5), 2, network, 0.5, padding_mode=padding, cval=fill)
    found = StreamingInferer((8, 8, 5), 0.5, "constant", batch=2, padding=padding, fill=fill or 0.0)(inputs, network)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_too_little_memory_halves_the_batch_and_goes_on_from_there():
    inputs, calls = _random(1, 1, 32, 4), []

    def network(x):
        calls.append(len(x))
        if len(calls) > 1 and len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * x

    found = StreamingInferer((4, 4), 0.0, batch=4)(inputs, network)
    assert calls == [4, 4, 2, 1, 1, 1, 1]  # eight windows; the first four are not done again
    torch.testing.assert_close(found, 2 * inputs)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shape mismatch"), KeyError("other")]
)
def test_other_errors_and_too_little_memory_for_one_window_are_not_hidden(error):
    def network(x):
        raise error

    batch = 1 if isinstance(error, torch.OutOfMemoryError) else 4
    with pytest.raises(type(error), match=str(error.args[0])):
        StreamingInferer((4, 4), batch=batch)(_random(1, 1, 8, 8), network)


def test_half_sums_decide_almost_all_voxels_alike():
    torch.manual_seed(0)
    network = nn.Conv3d(1, 12, 5, padding=2).eval()
    inputs = torch.nn.functional.interpolate(_random(1, 1, 5, 5, 5), size=(40, 40, 40), mode="trilinear")
    full, half = (
        StreamingInferer((16, 16, 16), accumulate=sums).label_map(inputs, network, (60, 60, 60))
        for sums in ("float32", "float16")
    )
    assert len(full.unique()) > 3
    assert (full == half).float().mean() >= 0.9999


def test_more_than_256_classes_take_two_bytes():
    def network(x):
        return torch.cat([x, *[torch.zeros_like(x)] * 299, 2 * x.abs() + 1], 1)

    labels = StreamingInferer((4, 4, 4)).label_map(_random(1, 1, 6, 6, 6), network, (9, 9, 9))
    assert labels.dtype == torch.uint16
    assert (labels.int() == 300).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 3}, "streaming axis: expected auto or one of 0 to 2, got 3"),
        ({"accumulate": "int8"}, "accumulate: expected one of float32, float16, got 'int8'"),
        ({"placement": "wide"}, "placement: expected one of interval, even, nnunet, got 'wide'"),
        ({"margin": (2, 2, 2)}, "window: expected more than twice the margin"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamingInferer((4, 4, 4), **arguments)


def test_a_wrong_output_shape_is_refused():
    with pytest.raises(ValueError, match="output_shape: expected 2 sizes of at least 1"):
        StreamingInferer((4, 4)).label_map(torch.zeros(1, 1, 8, 8), lambda x: x, (8, 8, 8))


_PEAKS = """
import json, os, re, sys
from pathlib import Path
import torch
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.tta import Passes
torch.set_num_threads(1)  # a fork has no threads but its own
CLASSES = 480

def peak_mb():
    # Kept by the kernel since it was told to begin anew: samples may miss it.
    return int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def measured(length, folds=1, overlap=0.5, noise=False):
    image = torch.zeros(1, 1, 64, 64, length)

    logits = torch.zeros(1, CLASSES, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    logits[:, 3] = 1
    if noise:  # another class wins in every voxel
        logits.scatter_(1, torch.randint(CLASSES, (1, 1, 32, 32, 32)), 2)

    def network(window):
        return logits.clone()

    network(image[..., :32])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mb()
    passes = network if folds == 1 else Passes([network] * folds, axes=(0,), sides=0, side_pairs=((1, 2),))
    found = StreamingInferer((32, 32, 32), overlap).label_map(image, passes, (64, 64, 2 * length))
    peak = peak_mb()
    assert noise or (found == 3).all()
    return peak - before - found.numel() / 2**20

for given in json.loads(sys.argv[1]):
    if os.fork() == 0:
        print(measured(**given), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
_RUNS: dict[str, dict[str, Any]] = {
    "short": {"length": 64},
    "long": {"length": 128},
    "noise": {"length": 64, "noise": True},
    "one fold": {"length": 64, "overlap": 0.0},
    "three folds, mirrored": {"length": 64, "overlap": 0.0, "folds": 3},
}


@pytest.fixture(scope="module")
def peaks_mb() -> dict[str, float]:
    """Run → the most memory that it took above the labels it gave; each in a fork of one process."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells")
    words = [sys.executable, "-c", _PEAKS, json.dumps(list(_RUNS.values()))]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(_RUNS, map(float, told), strict=True))


def test_memory_is_that_of_the_planes_of_a_window_whatever_the_length(peaks_mb: dict[str, float]) -> None:
    slab_mb = 480 * 64 * 64 * 32 * 4 / 2**20  # classes times the planes of a window, 240 MB
    assert peaks_mb["short"] < 1.25 * slab_mb + 150
    assert peaks_mb["long"] < 1.05 * peaks_mb["short"]


def test_memory_does_not_grow_with_folds_and_mirror_images(peaks_mb: dict[str, float]) -> None:
    assert peaks_mb["three folds, mirrored"] < 1.1 * peaks_mb["one fold"]


def test_memory_does_not_grow_where_the_class_changes_from_voxel_to_voxel(peaks_mb: dict[str, float]) -> None:
    assert peaks_mb["noise"] < 1.05 * peaks_mb["short"]


def test_planes_are_given_out_before_the_next_window_is_computed():
    # What is done with them may take the memory that the logits of a window take.
    calls = []
    planes = StreamingInferer((2, 3, 3), 0.0, axis=0).label_planes(
        torch.zeros(1, 6, 3, 3), lambda window: calls.append(1) or torch.cat([window, 1 + window], 1), (6, 3, 3)
    )
    seen = [(first, len(calls)) for first, _ in planes]
    assert seen == [(0, 1), (2, 2), (4, 3)]


# Accumulator over windows and passes, computed by hand.

CPU = torch.device("cpu")


def _slab_random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_window_is_added_turned_back_and_with_its_channels_in_place():
    buffer, logits = PlaneBuffer(4, (3, 2), 3, torch.float32, CPU), _slab_random(3, 4, 3, 2)
    weights = WindowWeights(torch.full((4, 3, 2), 0.5), 3, torch.float32)
    buffer.add((0, 0, 0), logits, weights, flips=(0, 2), swapped=((1, 2),))
    assert torch.equal(buffer.finish(4), logits[[0, 2, 1]].flip(1, 3).permute(1, 2, 3, 0))


@pytest.mark.parametrize("flips", [(), (0,), (1,), (0, 1, 2)])
def test_what_lies_outside_is_left_out_of_turned_windows_too(flips):
    buffer, logits = PlaneBuffer(5, (4, 4), 2, torch.float32, CPU), _slab_random(2, 5, 6, 3)
    buffer.add((0, -1, 2), logits, WindowWeights(torch.ones(5, 6, 3), 2, torch.float32), flips)
    back = logits.flip([n + 1 for n in flips]).permute(1, 2, 3, 0)
    found = buffer.finish(5)
    assert torch.equal(found[:, :, 2:], back[:, 1:5, :2])
    assert not found[:, :, :2].any()


def test_mirror_orders_are_made_once():
    once = _order(5, ((1, 2), (0, 4)), CPU)
    assert once.tolist() == [4, 2, 1, 3, 0]
    assert _order(5, ((1, 2), (0, 4)), CPU) is once


@pytest.mark.parametrize(("size", "tried"), [(25, 0), (26, 13)])
def test_kernels_are_tried_for_full_batches_of_many_windows_only(size, tried, monkeypatch):
    seen = []

    @contextmanager
    def noted(device, worth):
        seen.append(worth)
        yield

    monkeypatch.setattr("pipeline.infer.accumulate.tried_kernels", noted)
    monkeypatch.setattr("pipeline.infer.accumulate._MANY_CALLS", 13)
    # windows of one voxel: 25 are 12 batches of two and one that is not full, 26 are 13
    StreamingInferer((1, 1, 1), overlap=0.0, batch=2)(_random(1, 1, size, 1, 1), lambda window: window)
    assert (len(seen), sum(seen)) == (13, tried)


@pytest.mark.parametrize("classes", [2, 40])
def test_planes_go_around_the_ring_in_pieces(classes, monkeypatch):
    monkeypatch.setattr("pipeline.infer.accumulate._ADDED_BYTES", 3 * 4 * 4 * classes * 4)  # three planes
    buffer, weights = (
        PlaneBuffer(5, (4, 4), classes, torch.float32, CPU),
        WindowWeights(torch.ones(5, 4, 4), classes, torch.float32),
    )
    first, second = _slab_random(classes, 5, 4, 4), _slab_random(classes, 5, 4, 4, seed=1)
    buffer.add((0, 0, 0), first, weights)
    assert torch.equal(buffer.finish(3), first[:, :3].permute(1, 2, 3, 0))
    buffer.forget(3)
    buffer.add((3, 0, 0), second, weights)
    expected = torch.cat([(first[:, 3:] + second[:, :2]) / 2, second[:, 2:]], 1).permute(1, 2, 3, 0)
    assert buffer.piece_end(8) == 5
    torch.testing.assert_close(buffer.finish(5), expected[:2])
    buffer.forget(5)
    assert torch.equal(buffer.finish(8), expected[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("relative", [False, True])
def test_the_mean_of_passes_made_elsewhere_first_is_the_same(dtype, relative):
    passes = [_slab_random(6, 4, 4, 4, seed=n) for n in range(5)]
    importance = _slab_random(4, 4, 4).abs() + 1e-3
    found = []
    for elsewhere in (None, CPU):
        accumulator = Accumulator(PlaneBuffer(4, (4, 4), 6, dtype, CPU, relative), importance, len(passes), elsewhere)
        for n, logits in enumerate(passes):
            accumulator.add((0, 0, 0), logits, flips=(n % 3,), swapped=((1, 2),) * (n % 2))
        assert not accumulator.means
        found.append(accumulator.buffer.finish(4))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    same = [one - one.amax(-1, keepdim=True) for one in found]  # a relative mean is of logits relative once more
    torch.testing.assert_close(*same, atol=tolerance, rtol=tolerance)
