import numpy as np
import pytest

from pipeline.sample.patches import Balance, CaseInfo, Foreground, Patch, balanced_patches, sliding_patches


def case(name: str = "a", shape: tuple[int, int, int] = (20, 30, 40), **voxels: list[tuple[int, int, int]]) -> CaseInfo:
    """``c1=[(i, j, k)]`` puts a voxel of class 1 there."""
    return CaseInfo(name, shape, {int(key[1:]): np.array(at, np.int32).reshape(-1, 3) for key, at in voxels.items()})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(
    cases: list[CaseInfo],
    size: tuple[int, int, int],
    batch_size: int,
    batches: int,
    share: float,
    rng: np.random.Generator,
    class_weights: dict[int, float] | None = None,
) -> list[Patch]:
    return balanced_patches(cases, Balance(size, batch_size, share, class_weights), rng, batches=batches)


def test_the_last_third_of_every_batch_is_centred_on_foreground() -> None:
    patches = drawn([case(c1=[(10, 15, 20)])], (8, 8, 8), 6, 50, 0.33, rng())
    assert len(patches) == 300
    centred = np.array([patch.start == (6, 11, 16) for patch in patches]).reshape(50, 6)
    assert centred[:, 4:].all()
    assert centred[:, :4].mean() < 0.02


@pytest.mark.parametrize(
    ("share", "batch_size", "forced"), [(0.0, 4, 0), (0.33, 2, 1), (0.33, 12, 4), (0.5, 5, 3), (1.0, 3, 3)]
)
def test_number_of_forced_patches(share: float, batch_size: int, forced: int) -> None:
    large = case(shape=(999, 999, 999), c1=[(500, 500, 500)])
    patches = drawn([large], (11, 11, 11), batch_size, 20, share, rng())
    centred = np.array([patch.start == (495, 495, 495) for patch in patches]).reshape(20, batch_size)
    assert (centred.sum(axis=1) == forced).all()


def test_single_patch_batches_keep_the_share_over_many_batches() -> None:
    large = case(shape=(999, 999, 999), c1=[(500, 500, 500)])
    patches = drawn([large], (11, 11, 11), 1, 100, 0.33, rng())
    assert sum(patch.start == (495, 495, 495) for patch in patches) == 33


def test_classes_are_drawn_uniformly_whatever_their_size() -> None:
    many = [(5, 5, k) for k in range(5, 35)]
    patches = drawn([case(c1=many, c2=[(14, 25, 20)], c3=[])], (4, 4, 4), 10, 100, 1.0, rng())
    of_second = sum(patch.start == (12, 23, 18) for patch in patches)
    assert 420 < of_second < 580  # 1000 draws with p = 0.5: 5 standard deviations
    assert len({patch.start for patch in patches}) == 31


def test_weighted_classes_are_drawn_in_proportion_and_uniform_stays_as_it_was() -> None:
    both = case(c1=[(5, 5, 5)], c2=[(14, 25, 20)], c3=[])
    patches = drawn([both], (4, 4, 4), 10, 100, 1.0, rng(), {2: 4.0, 3: 9.0})
    of_second = sum(patch.start == (12, 23, 18) for patch in patches)
    assert 737 < of_second < 863  # 1000 draws with p = 4 / 5: 5 standard deviations
    found = [patch.start for patch in drawn([both], (4, 4, 4), 1, 8, 1.0, rng(3))]
    draws = rng(3)  # a case, a class, a voxel: the draws of trainings before there were weights
    classes = [(draws.integers(1), int(draws.integers(2)), draws.integers(1))[1] for _ in range(8)]
    assert found == [((3, 3, 3), (12, 23, 18))[chosen] for chosen in classes]


def test_forced_patches_come_from_cases_with_foreground() -> None:
    patches = drawn([case("empty"), case("full", c1=[(9, 9, 9)])], (4, 4, 4), 4, 25, 0.5, rng())
    names = np.array([patch.case for patch in patches]).reshape(25, 4)
    assert (names[:, 2:] == "full").all()
    assert set(names[:, :2].flat) == {"empty", "full"}


def test_without_any_foreground_patches_lie_anywhere() -> None:
    assert len({patch.start for patch in drawn([case()], (4, 4, 4), 4, 10, 1.0, rng())}) > 30


def test_patches_at_the_border_stay_inside() -> None:
    corners = case(c1=[(0, 0, 0)], c2=[(19, 29, 39)])
    starts = {patch.start for patch in drawn([corners], (8, 8, 8), 4, 10, 1.0, rng())}
    assert starts == {(0, 0, 0), (12, 22, 32)}


def test_small_volumes_are_centred_in_the_patch() -> None:
    small = case(shape=(5, 30, 8), c1=[(0, 29, 7)])
    for share in (0.0, 1.0):
        patches = drawn([small], (8, 8, 8), 2, 10, share, rng())
        assert {(patch.start[0], patch.start[2]) for patch in patches} == {(-1, 0)}
    assert sliding_patches([small], (8, 30, 9)) == [Patch("a", (-1, 0, 0))]


def test_random_positions_reach_every_start_evenly() -> None:
    patches = drawn([case(shape=(6, 1, 1))], (4, 1, 1), 1, 900, 0.0, rng())
    counts = np.bincount([patch.start[0] for patch in patches])
    assert len(counts) == 3
    assert (abs(counts - 300) < 75).all()


def test_slices_are_patches_of_size_one() -> None:
    info = case(c1=[(10, 15, 20)])
    (patch,) = drawn([info], (16, 16, 1), 1, 1, 1.0, rng())
    assert patch.start == (2, 7, 20)
    assert [p.start[2] for p in sliding_patches([info], (20, 30, 1))] == list(range(40))


def test_draws_depend_on_the_generator_alone() -> None:
    cases = [case("a", c1=[(3, 3, 3)]), case("b")]
    first, again, other = (drawn(cases, (8, 8, 8), 4, 5, 0.33, rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(isinstance(value, int) for patch in first for value in patch.start)


def test_no_cases() -> None:
    assert sliding_patches([], (4, 4, 4)) == []
    with pytest.raises(ValueError, match="cases: expected at least one to draw patches from, got none"):
        drawn([], (4, 4, 4), 2, 2, 0.33, rng())


def test_sliding_starts_and_order() -> None:
    starts = [patch.start for patch in sliding_patches([case(shape=(10, 4, 8))], (4, 4, 4))]
    assert starts == [(0, 0, 0), (0, 0, 4), (4, 0, 0), (4, 0, 4), (6, 0, 0), (6, 0, 4)]


@pytest.mark.parametrize(
    ("length", "window", "overlap"), [(10, 4, 0.0), (11, 4, 0.0), (30, 8, 0.5), (7, 7, 0.0), (3, 4, 0.0)]
)
def test_shifted_grids_have_as_many_windows_and_leave_out_no_voxel(length: int, window: int, overlap: float) -> None:
    info = case(shape=(length, 1, 1))
    plain = [patch.start[0] for patch in sliding_patches([info], (window, 1, 1), overlap)]
    generator, seen = rng(), set()
    for _ in range(200):
        starts = [p.start[0] for p in sliding_patches([info], (window, 1, 1), overlap, rng=generator)]
        assert len(starts) == len(plain)
        assert (starts[0], starts[-1]) == (plain[0], plain[-1])
        covered = {n for start in starts for n in range(start, start + window)}
        assert set(range(length)) <= covered
        seen.add(tuple(starts))
    # 10 of 4: 0 4 6, 0 3 6, 0 2 6. 11 of 4: 0 4 7, 0 3 7. 30 of 8 by 4: six steps are 2 too far. Else there is no room.
    assert len(seen) == {(10, 4): 3, (11, 4): 2, (30, 8): 3}.get((length, window), 1)


def test_overlap_sets_the_step() -> None:
    starts = [patch.start[0] for patch in sliding_patches([case(shape=(100, 10, 10))], (40, 10, 10), 0.75)]
    assert starts == [0, 10, 20, 30, 40, 50, 60]
    with pytest.raises(ValueError, match=r"overlap: expected a fraction in \[0, 1\), got 1.0"):
        sliding_patches([case()], (4, 4, 4), 1.0)


def foreground(labels: np.ndarray, size: tuple[int, int, int]) -> Foreground:
    i, j, k = labels.shape
    return Foreground(labels.__getitem__, (i, j, k), size)


def test_empty_windows_are_left_out_by_the_label_map_itself() -> None:
    labels = np.zeros((8, 8, 8), np.int8)
    labels[7, 0, 0] = 2  # a single voxel that a subsample of voxels may miss
    labels[0, 7, 7] = -1  # ignored is not foreground
    found = foreground(labels, (4, 4, 4))
    patches = sliding_patches([case(shape=(8, 8, 8))], (4, 4, 4), foreground=lambda _: found)
    assert patches == [Patch("a", (4, 0, 0))]


def test_overhanging_windows_see_only_the_volume() -> None:
    labels = np.zeros((3, 8, 8), np.int8)
    labels[2, 5, 5] = 1
    found = foreground(labels, (6, 4, 4))
    patches = sliding_patches([case(shape=(3, 8, 8))], (6, 4, 4), foreground=lambda _: found)
    assert patches == [Patch("a", (-1, 4, 4))]


@pytest.mark.parametrize("size", [(32, 8, 16), (5, 3, 4), (1, 24, 20), (40, 2, 2)])
def test_windows_with_foreground_are_those_whose_voxels_have_some(size: tuple[int, int, int]) -> None:
    draw, shape, cases = rng(), (37, 29, 26), [case(shape=(37, 29, 26))]
    for voxels in (0, 1, 3, 40):
        labels = np.zeros(shape, np.int8)
        labels[tuple(draw.integers(0, length, voxels) for length in shape)] = 1
        found = foreground(labels, size)
        for seed in range(3):
            kept = [
                window
                for window in sliding_patches(cases, size, 0.5, rng=rng(seed))
                if labels[tuple(slice(max(a, 0), a + n) for a, n in zip(window.start, size, strict=True))].any()
            ]
            assert sliding_patches(cases, size, 0.5, foreground=lambda _, found=found: found, rng=rng(seed)) == kept


def test_a_label_map_is_read_once_and_of_windows_with_foreground_at_their_rim_the_window() -> None:
    labels, read = np.zeros((64, 64, 64), np.int8), list[int]()
    labels[20:38, 20:38, 20:38] = 1

    def noted(part: tuple[slice, ...]) -> np.ndarray:
        read.append(labels[part].size)
        return labels[part]

    found = Foreground(noted, (64, 64, 64), (32, 32, 32))
    windows = [(0, 0, 0), (20, 20, 20), (33, 0, 0), (38, 0, 0), (40, 0, 0)]
    assert found.shown_by(windows) == windows[:3]
    assert read == [64**3, 31 * 32 * 32, 26 * 32 * 32]
