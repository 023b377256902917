from random import Random

import numpy as np
import torch
from cutting import cut
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sample.folds import make_folds
from pipeline.sample.patches import Balance, CaseInfo, balanced_patches, sliding_patches

lengths = st.integers(1, 24)
triples = st.tuples(lengths, lengths, lengths)
seeds = st.integers(0, 2**32 - 1)


def seen(shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float) -> np.ndarray:
    """How often every voxel lies in a window."""
    counts = np.zeros(shape, int)
    for patch in sliding_patches([CaseInfo("a", shape, {})], size, overlap):
        counts[
            tuple(slice(max(first, 0), first + window) for first, window in zip(patch.start, size, strict=True))
        ] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(triples, triples)
def test_windows_cover_every_voxel_once_but_for_the_last_one_moved_in(
    shape: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    expected = np.ones(shape, int)
    for axis, (length, window) in enumerate(zip(shape, size, strict=True)):
        if length > window and length % window:
            moved_in = slice(length - window, length // window * window)
            expected[(slice(None),) * axis + (moved_in,)] *= 2
    np.testing.assert_array_equal(seen(shape, size, 0.0), expected)


@settings(max_examples=40, deadline=None)
@given(triples, st.tuples(*[st.integers(2, 24)] * 3), st.floats(0.0, 0.9))
def test_windows_cover_every_voxel_with_any_overlap(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float
) -> None:
    assert seen(shape, size, overlap).min() >= 1


@settings(max_examples=60, deadline=None)
@given(triples, triples, seeds, st.floats(0.0, 1.0), st.integers(1, 5))
def test_balanced_patches_stay_inside_and_hold_their_voxel(
    shape: tuple[int, int, int], size: tuple[int, int, int], seed: int, share: float, batch_size: int
) -> None:
    rng = np.random.default_rng(seed)
    voxel = np.array([[rng.integers(length) for length in shape]], np.int32)
    patches = balanced_patches([CaseInfo("a", shape, {1: voxel})], Balance(size, batch_size, share), rng, batches=3)
    assert len(patches) == 3 * batch_size
    for patch in patches:
        for first, length, window in zip(patch.start, shape, size, strict=True):
            if window <= length:
                assert 0 <= first <= length - window
            else:
                assert first <= 0
                assert first + window >= length
    for patch in balanced_patches([CaseInfo("a", shape, {1: voxel})], Balance(size, batch_size, 1.0), rng, batches=3):
        assert all(first <= at < first + window for first, at, window in zip(patch.start, voxel[0], size, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(-6, 8)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_cut_equals_indexing_a_padded_volume(start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(size=(1, 5, 6, 7))
    padded = np.pad(volume, [(0, 0), *[(10, 20)] * 3], constant_values=-2.0)
    i, j, k = (first + 10 for first in start)
    expected = padded[:, i : i + size[0], j : j + size[1], k : k + size[2]]
    np.testing.assert_array_equal(cut(torch.from_numpy(volume), start, size, -2.0).numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.none() | st.sampled_from("pqrstu"), min_size=12),
    st.integers(2, 6),
    st.integers(-100, 100),
    st.randoms(use_true_random=False),
)
def test_folds_partition_the_cases_and_never_split_a_group(
    groups: dict[str, str | None], folds: int, seed: int, random: Random
) -> None:
    sizes: dict[str, int] = {}
    for case, group in groups.items():
        sizes[group or f"case {case}"] = sizes.get(group or f"case {case}", 0) + 1
    if len(sizes) < folds:
        return
    made = make_folds(groups, folds, seed)
    shuffled = list(groups.items())
    random.shuffle(shuffled)
    assert make_folds(dict(shuffled), folds, seed) == made
    assert sorted(case for fold in made for case in fold.validation) == sorted(groups)
    parts = [len(fold.validation) for fold in made]
    assert min(parts) >= 1
    assert max(parts) - min(parts) <= max(sizes.values())
    for fold in made:
        assert not set(fold.train) & set(fold.validation)
        train_groups = {groups[case] for case in fold.train} - {None}
        assert not train_groups & {groups[case] for case in fold.validation}
