"""Patches for networks that see more than they give logits for."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.settings import AugmentSettings, SampleSettings
from pipeline.core.errors import DataError
from pipeline.data.store import PreparedArray, PreparedCase, class_voxels, write_prepared, write_stage_map
from pipeline.sample.augment import PatchGeometry, augment, draw_moves
from pipeline.sample.randomness import BatchRandom
from pipeline.train.loader import Ahead, PatchSource, TrainingBatches

SHAPE = (11, 12, 13)
TARGET, MARGIN = (4, 3, 5), (6, 0, 14)  # the last margin is wider than the volume
INPUT = (16, 3, 33)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.int8)
    label[3:6, 3:6, 3:6] = 1
    image = generator.normal(size=(1, *SHAPE)).astype(np.float32)
    write_prepared(tmp_path, PreparedCase("a", image, label, class_voxels(label, 50, generator), {"group": None}))
    return tmp_path


def source(prepared: Path, size: tuple[int, int, int], margin: tuple[int, int, int], **sample: object) -> PatchSource:
    settings = SampleSettings.model_validate({"foreground_share": 0.5, **sample})
    return PatchSource(prepared, ["a"], size, 4, settings, torch.device("cpu"), margin=margin)


@pytest.mark.parametrize("cache_mb", [0, 64])
@pytest.mark.parametrize("strategy", ["balanced", "sliding"])
def test_targets_are_placed_as_patches_without_a_margin(prepared: Path, strategy: str, cache_mb: int) -> None:
    sample = {"strategy": strategy, "cache_mb": cache_mb}
    plain, wide = source(prepared, TARGET, (0, 0, 0), **sample), source(prepared, INPUT, MARGIN, **sample)
    assert wide.target_size == TARGET
    batches = wide.batches_per_epoch(3)
    assert batches == plain.batches_per_epoch(3)
    epochs = [[part.batch(n)[:2] for n in range(batches)] for part in (plain, wide)]
    for (images, labels), (around, labels_around) in zip(*epochs, strict=True):
        assert around.shape[2:] == labels_around.shape[1:] == INPUT
        assert torch.equal(images, around[:, :, 6:10, :, 14:19])
        assert torch.equal(labels, labels_around[:, 6:10, :, 14:19])


def test_around_a_target_lies_the_image_mirrored_at_its_border(prepared: Path) -> None:
    wide = source(prepared, (13, 14, 15), (1, 1, 1))  # one target, which is the volume
    images, labels, _ = wide.batch(0)
    volume = wide.volumes["a"][0][...].numpy()
    expected = np.pad(volume, [(0, 0), (1, 1), (1, 1), (1, 1)], mode="reflect")
    assert all(np.array_equal(image, expected) for image in images.numpy())
    assert int((labels[0] == -1).sum()) == 13 * 14 * 15 - 11 * 12 * 13


def test_targets_larger_than_the_volume_are_ignored_outside_it(prepared: Path) -> None:
    wide = source(prepared, (17, 12, 13), (2, 0, 0))  # targets of 13 voxels in a volume of 11: one more on either side
    images, labels, _ = wide.batch(0)
    assert (labels[0, :, 0, 0] == -1).tolist() == [True] * 3 + [False] * 11 + [True] * 3
    assert torch.equal(images[0, 0, 2], images[0, 0, 4])


def test_sliding_targets_see_every_voxel_once(prepared: Path) -> None:
    wide = source(prepared, (9, 12, 17), (4, 4, 2), strategy="sliding")  # targets of (1, 4, 13)
    batches = wide.batches_per_epoch(0)
    assert batches * 4 == 11 * 3 + 3
    inner = [labels[:, 4:-4, 4:-4, 2:-2] for _, labels, _ in map(wide.batch, range(batches))]
    assert sum(part.numel() for part in inner) == 11 * 12 * 13
    assert int(sum((part == 1).sum() for part in inner)) == 27


@pytest.mark.parametrize("skip_empty", [False, True])
def test_sliding_windows_lie_elsewhere_in_every_epoch(prepared: Path, skip_empty: bool) -> None:
    options = {"strategy": "sliding", "skip_empty": skip_empty}
    part, again = (source(prepared, (4, 5, 5), (0, 0, 0), **options) for _ in range(2))
    batches = part.batches_per_epoch(0)
    epochs = [[p for n in range(batches) for p in part.patches(epoch * batches + n)] for epoch in range(6)]
    assert {len(epoch) for epoch in epochs} == {len(part.windows)}
    assert len({tuple(sorted(patch.start for patch in epoch)) for epoch in epochs}) > 3
    assert again.patches(3 * batches + 1) == part.patches(3 * batches + 1)
    if not skip_empty:
        assert len(part.windows) == 3 * 3 * 3
        for epoch in epochs:
            seen = np.zeros(SHAPE, bool)
            for i, j, k in (patch.start for patch in epoch):
                seen[i : i + 4, j : j + 5, k : k + 5] = True
            assert seen.all()
    else:
        inside = [set(epoch) <= set(part._epoch_windows(n)) for n, epoch in enumerate(epochs)]
        assert all(inside)


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_label_maps_are_read_once_to_find_empty_windows(prepared: Path, cache_mb: int) -> None:
    part, whole = source(prepared, (4, 5, 5), (0, 0, 0), strategy="sliding", skip_empty=True, cache_mb=cache_mb), []
    image, label = part.volumes["a"]

    class Noted:
        def __getitem__(self, key: tuple[slice, ...]) -> object:
            found = label[key]
            whole.append(tuple(found.shape) == SHAPE)
            return found

    part.volumes["a"] = image, Noted()
    for epoch in range(5):
        for n in range(part.batches_per_epoch(0)):
            part.patches(epoch * part.batches_per_epoch(0) + n)
    assert whole.count(True) == 1


def test_a_2d_source_has_no_margin_across_slices(prepared: Path) -> None:
    settings = SampleSettings()
    flat = PatchSource(prepared, ["a"], (9, 1, 8), 3, settings, torch.device("cpu"), squeeze_axis=1, margin=(4, 0, 3))
    images, labels, _ = flat.batch(0)
    assert (images.shape, labels.shape) == ((3, 1, 9, 8), (3, 9, 8))
    assert flat.target_size == (1, 1, 2)


def test_patches_that_do_not_move_are_augmented_as_they_were_cut(prepared: Path) -> None:
    part = source(prepared, (8, 8, 8), (0, 0, 0))
    settings, geometry = AugmentSettings(), PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0))
    still = moved = 0
    for number in range(8):
        images, labels, places = part.batch(number)
        random = BatchRandom(part.seed, number, places)
        moves = draw_moves(settings, random, (8, 8, 8), geometry)
        within, within_labels = augment(images, labels, settings, BatchRandom(part.seed, number, places), geometry)
        changed, changed_labels = part.augmented(number, 0, settings, geometry)
        for n in range(len(places)):
            if n in moves:
                moved += int((changed_labels[n] == -1).sum() < (within_labels[n] == -1).sum())
                continue
            still += 1
            assert torch.equal(changed[n], within[n])
            assert torch.equal(changed_labels[n], within_labels[n])
    assert still > 10
    assert moved > 3


# A GPU keeps the cases that it has room for, the processor's memory the next, the disk the rest.


@pytest.mark.parametrize(("gpu_bytes", "on_gpu"), [(0, 0), (10_000, 1), (25_000, 2), (10**9, 3)])
def test_a_gpu_keeps_what_it_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_bytes: int, on_gpu: int
) -> None:
    generator, places = np.random.default_rng(0), list[str]()
    label = np.ones(SHAPE, np.int8)  # 1716 voxels: with an image of float32, 8580 bytes a case
    for name in "abc":
        image = generator.normal(size=(1, *SHAPE)).astype(np.float32)
        case = PreparedCase(name, image, label, class_voxels(label, 50, generator), {"group": None})
        write_prepared(tmp_path, case, steps=False)
    monkeypatch.setattr(PreparedArray, "load", lambda self, place: places.append(str(place)))
    settings, gpu = SampleSettings(), torch.device("cuda", 0)
    PatchSource(tmp_path, ["a", "b", "c"], (4, 4, 4), 2, settings, gpu, gpu_bytes=gpu_bytes)
    assert places == ["cuda:0"] * 2 * on_gpu + ["cpu"] * 2 * (3 - on_gpu)


# Values are made ahead, in order, and what making them raises comes out where they are asked for.


def test_weights_of_gaps_are_made_beside_the_training(prepared: Path) -> None:
    threads: list[str] = []

    def border(labels: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return labels.float() + 0.5

    geometry, off = PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0)), AugmentSettings(enabled=False)
    with TrainingBatches(source(prepared, TARGET, (0, 0, 0)), geometry, off, border=border) as batches:
        ((_, labels, weights),), _ = batches.step(0)
    assert torch.equal(weights, labels + 0.5)
    assert all(name.startswith("batches") for name in threads)
    with TrainingBatches(source(prepared, TARGET, (0, 0, 0)), geometry, off) as batches:
        assert [len(part) for part in batches.step(0)[0]] == [2]


def test_values_come_by_number_and_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []
    ahead = Ahead(lambda number: made.append(number) or number * 10, count=2)
    assert ahead.get(3)[0] == 30
    deadline = time.monotonic() + 10
    while made != [3, 4, 5] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [3, 4, 5]
    assert [ahead.get(number)[0] for number in (4, 5)] == [40, 50]
    ahead.close()
    assert not ahead.coming
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_waiting_is_measured() -> None:
    ahead = Ahead(lambda number: time.sleep(0.2), count=1)
    assert ahead.get(0)[1] > 0.15
    time.sleep(0.4)
    assert ahead.get(1)[1] < 0.1
    ahead.close()


def test_errors_come_where_the_value_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("broken")
        return number

    ahead = Ahead(make)
    assert ahead.get(0)[0] == 0
    with pytest.raises(ValueError, match="broken"):
        ahead.get(1)
    ahead.close()


@pytest.mark.parametrize("cache_mb", [0, 64])
@pytest.mark.parametrize("strategy", ["balanced", "sliding"])
def test_what_a_first_stage_found_is_the_last_channel(prepared: Path, strategy: str, cache_mb: int) -> None:
    found = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    write_stage_map(prepared / "maps", "a", found, "")
    settings = SampleSettings.model_validate({"foreground_share": 0.5, "strategy": strategy, "cache_mb": cache_mb})
    options = (prepared, ["a"], (5, 14, 4), 4, settings, torch.device("cpu"))
    plain, staged = PatchSource(*options), PatchSource(*options, stage=(prepared / "maps", 2))
    geometry = PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0))
    off = AugmentSettings(enabled=False)
    # The volume has 12 voxels along j, the patch 14: outside nothing was found.
    padded = np.pad(found, [(0, 0), (1, 1), (0, 0)])
    with TrainingBatches(plain, geometry, off) as one, TrainingBatches(staged, geometry, off) as other:
        for number in range(3):
            ((images, labels),), ((both, same),) = one.step(number)[0], other.step(number)[0]
            assert torch.equal(both[:, :1], images)
            assert torch.equal(same, labels)
            for patch, seen in zip(staged.patches(number), both[:, 1].numpy(), strict=True):
                i, _, k = patch.start
                assert np.array_equal(seen, padded[i : i + 5, :, k : k + 4])


def test_a_map_of_another_shape_is_refused(prepared: Path) -> None:
    write_stage_map(prepared / "maps", "a", np.zeros((11, 12, 14), np.uint8), "")
    with pytest.raises(DataError, match=r"stage map: expected the shape of the prepared case, \(11, 12, 13\)"):
        PatchSource(
            prepared, ["a"], TARGET, 4, SampleSettings(), torch.device("cpu"), stage=(prepared / "maps", 2)
        )  # fmt: skip


def test_augmented_batches_hold_disturbed_maps(prepared: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 3:6, 3:6] = 1
    write_stage_map(prepared / "maps", "a", label, "")  # as if the first stage made no mistake
    options = (prepared, ["a"], SHAPE, 4, SampleSettings(foreground_share=1.0), torch.device("cpu"))
    staged = PatchSource(*options, stage=(prepared / "maps", 1))
    geometry = PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0))
    with TrainingBatches(staged, geometry, AugmentSettings()) as batches:
        ((images, labels),), _ = batches.step(0)
        (again, _), _ = batches.again(0)
        assert torch.equal(images, again)  # of a batch's number alone
        alike = []
        for number in range(30):
            ((seen, wanted),), _ = batches.step(number)
            alike += ((seen[:, 1] > 0) == (wanted > 0)).flatten(1).all(dim=1).tolist()
    assert images.shape == (4, 2, *SHAPE)
    assert labels.shape == (4, *SHAPE)
    assert 0.35 < sum(alike) / len(alike) < 0.65  # left alone: 0.6 * 0.8 of the patches, and some by chance
