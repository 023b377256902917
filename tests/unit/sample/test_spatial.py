import math

import pytest
import torch

from pipeline.sample.randomness import BatchRandom
from pipeline.sample.spatial import (
    Move,
    affine_matrices,
    coarse_axis,
    control_distances,
    draw_control,
    elastic_displacement,
    sampling_grid,
    swap_sides,
    warp,
)

ONE = torch.ones(1)


def noise_image(*size: int) -> torch.Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))


def move(
    images: torch.Tensor, labels: torch.Tensor, angles: list[float], zoom: float = 1.0, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    spacing = options.pop("spacing", (1.0,) * (images.ndim - 2))
    radians = torch.tensor([[math.radians(angle) for angle in angles]])
    matrices = affine_matrices(radians, ONE * zoom, spacing, **options)  # type: ignore[arg-type]
    return warp(images, labels, sampling_grid(matrices[0], images.shape[2:])[None])


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_quarter_turns_equal_rot90(axis: int, plane: tuple[int, int]) -> None:
    images = noise_image(9, 9, 9)
    labels = torch.randint(0, 5, (1, 9, 9, 9), generator=torch.Generator().manual_seed(1))
    angles = [0.0, 0.0, 0.0]
    angles[axis] = 90.0
    turned, turned_labels = move(images, labels, angles)
    expected = torch.rot90(images, -1, [p + 2 for p in plane])
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)
    assert torch.equal(turned_labels, torch.rot90(labels, -1, [p + 1 for p in plane]))


def test_quarter_turn_in_2d() -> None:
    images, labels = noise_image(8, 8), torch.arange(64).reshape(1, 8, 8)
    turned, turned_labels = move(images, labels, [90.0])
    torch.testing.assert_close(turned, torch.rot90(images, -1, [2, 3]), atol=1e-4, rtol=0)
    assert torch.equal(turned_labels, torch.rot90(labels, -1, [1, 2]))


@pytest.mark.parametrize("size", [(7, 10), (7, 10, 5)])
def test_no_rotation_and_zoom_one_is_the_identity(size: tuple[int, ...]) -> None:
    images, labels = noise_image(*size), torch.randint(-1, 4, (1, *size))
    same, same_labels = move(images, labels, [0.0] * (3 if len(size) == 3 else 1))
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)
    assert torch.equal(same_labels, labels)


def test_rotations_are_rotations_in_mm() -> None:
    """The image is its own position along the first axis; after a quarter turn, along the second, in mm."""
    size, spacing = (21, 11, 3), (1.0, 2.0, 1.0)
    offset = torch.arange(21.0) - 10
    images = offset[:, None, None].expand(1, 1, *size).contiguous()
    turned, _ = move(images, torch.zeros(1, *size, dtype=torch.int64), [0.0, 0.0, 90.0], spacing=spacing)
    expected = -2.0 * (torch.arange(11.0) - 5)  # mm along the second axis
    torch.testing.assert_close(turned[0, 0, 10, 1:-1, 1], expected[1:-1], atol=1e-4, rtol=0)


def test_rotation_matrices_are_orthogonal_in_mm() -> None:
    spacing = torch.tensor([0.8, 1.0, 2.5])
    angles = torch.tensor([[0.3, -0.4, 0.5], [0.0, 0.0, 1.0]])
    matrices = affine_matrices(angles, torch.ones(2), spacing.tolist())
    in_mm = matrices * spacing[:, None] / spacing[None, :]
    torch.testing.assert_close(in_mm @ in_mm.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.det(in_mm), torch.ones(2))
    assert in_mm[1, 0, 0].item() == pytest.approx(math.cos(1.0))


def test_zoom_above_one_enlarges() -> None:
    offset = torch.arange(9.0) - 4
    images = offset.reshape(1, 1, 1, 9).repeat(1, 1, 9, 1)
    labels = (offset.abs() <= 1).long().expand(1, 9, 9).contiguous()
    zoomed, zoomed_labels = move(images, labels, [0.0], zoom=2.0)
    torch.testing.assert_close(zoomed[0, 0, 4], offset / 2, atol=1e-5, rtol=0)
    assert 5 <= int(zoomed_labels[0, 4].sum()) <= 7  # 3 voxels wide before


def test_outside_looks_like_padding() -> None:
    images, labels = torch.full((1, 1, 8, 8), 5.0), torch.full((1, 8, 8), 2)
    zoomed, zoomed_labels = move(images, labels, [0.0], zoom=0.5)
    assert zoomed[0, 0, 0].abs().max() == 0
    assert (zoomed_labels[0, 0] == -1).all()
    assert (zoomed_labels[0, 2:6, 2:6] == 2).all()
    torch.testing.assert_close(zoomed[0, 0, 3:5, 3:5], torch.full((2, 2), 5.0))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64])
def test_labels_keep_type_and_values(dtype: torch.dtype) -> None:
    labels = torch.randint(-1, 120, (1, 12, 12, 12), generator=torch.Generator().manual_seed(0)).to(dtype)
    _, moved = move(noise_image(12, 12, 12), labels, [20.0, -10.0, 5.0], zoom=1.2)
    assert moved.dtype == dtype
    assert set(moved.unique().tolist()) <= {*labels.unique().tolist(), -1}


@pytest.mark.parametrize(
    ("size", "spacing", "axis"),
    [
        ((40, 56, 40), (1.0, 1.0, 1.0), None),
        ((128, 128, 48), (0.8, 0.8, 2.0), None),
        ((128, 128, 48), (0.8, 0.8, 5.0), 2),
        ((20, 256, 256), (5.0, 0.7, 0.7), 0),
        ((96, 30, 96), (1.0, 1.0, 1.0), 1),
        ((512, 64), (1.0, 5.0), None),
    ],
)
def test_coarse_axis(size: tuple[int, ...], spacing: tuple[float, ...], axis: int | None) -> None:
    assert coarse_axis(size, spacing) == axis


def test_a_fixed_axis_keeps_its_slices() -> None:
    slices = torch.arange(6.0).expand(1, 1, 20, 20, 6).contiguous()
    labels = slices[0].long()
    moved, moved_labels = move(slices, labels, [25.0, -30.0, 20.0], zoom=1.3, fixed=2)
    torch.testing.assert_close(moved[:, :, 6:14, 6:14], slices[:, :, 6:14, 6:14], atol=1e-4, rtol=0)
    assert torch.equal(moved_labels[:, 6:14, 6:14], labels[:, 6:14, 6:14])


def elastic(sigma: float, spacing: tuple[float, ...], count: int = 300, fixed: int | None = None) -> torch.Tensor:
    distances, size = control_distances(4.0, spacing), (9, 9, 9)
    control = draw_control(sigma, size, distances, spacing, BatchRandom(0, 0, range(count)), fixed)
    return elastic_displacement(control, size, distances)


def test_displacement_at_a_control_point_has_the_spline_s_share_of_the_sd() -> None:
    at_point = elastic(4.0, (1.0, 1.0, 1.0))[..., 4, 4, 4]
    # Weights 1/6, 2/3, 1/6 along each axis: SD 4 * (1/36 + 16/36 + 1/36)^(3/2).
    assert at_point.std().item() == pytest.approx(4.0 * 0.5**1.5, rel=0.1)


def test_displacement_covers_the_same_mm_along_every_axis() -> None:
    spread = elastic(4.0, (1.0, 1.0, 2.0), 600).std(dim=(0, 2, 3, 4))
    assert (spread[2] / spread[0]).item() == pytest.approx(0.5, rel=0.15)
    fixed = elastic(4.0, (1.0, 1.0, 5.0), 3, fixed=2)
    assert (fixed[:, 2] == 0).all()
    assert (fixed[:, :2] != 0).any()


def test_displacement_is_smooth_and_moves_the_samples() -> None:
    field = elastic(1.0, (1.0, 1.0, 1.0), 1)
    assert field.diff(n=2, dim=2).abs().max() < 0.5
    images = (torch.arange(9.0) - 4)[:, None, None].expand(1, 1, 9, 9, 9).contiguous()
    shift = torch.zeros(3, 9, 9, 9)
    shift[0] = 1.5
    grid = sampling_grid(torch.eye(3), (9, 9, 9), shift)
    moved, _ = warp(images, torch.zeros(1, 9, 9, 9, dtype=torch.int64), grid[None])
    torch.testing.assert_close(moved[0, 0, 2:6, 4, 4], torch.tensor([-0.5, 0.5, 1.5, 2.5]), atol=1e-4, rtol=0)


def test_sides_swap() -> None:
    labels = torch.tensor([-1, 0, 1, 2, 3, 4, 5], dtype=torch.int8)
    assert swap_sides(labels, [(1, 4), (3, 2)]).tolist() == [-1, 0, 4, 3, 2, 1, 5]
    assert swap_sides(labels, [(1, 4)]).dtype == torch.int8
    assert swap_sides(labels, []) is labels


# What of its surroundings a moved patch shows.


def turned(degrees: list[float], zoom: float = 1.0, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Move:
    radians = torch.tensor([[math.radians(angle) for angle in degrees]])
    return Move(affine_matrices(radians, ONE * zoom, spacing)[0])


@pytest.mark.parametrize(
    ("move", "size", "expected"),
    [
        (turned([0.0, 0.0, 0.0]), (8, 4, 5), [(0, 8), (0, 4), (0, 5)]),
        (turned([0.0], 0.5, (1.0, 1.0)), (8, 5), [(-4, 12), (-2, 7)]),  # 3.5 - 2 * 3.5 = -3.5 to 10.5, -2 to 6
        (turned([0.0], 2.0, (1.0, 1.0)), (8, 5), [(1, 7), (1, 4)]),  # 1.75 to 5.25, 1 to 3
        (turned([0.0], 0.25, (1.0, 1.0)), (9, 9), [(-9, 18), (-9, 18)]),  # 13 voxels beyond, but 8 times is enough
    ],
)
def test_the_box_is_what_the_patch_shows(move: Move, size: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert move.box(size) == expected


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.6, 2.0)])
def test_no_position_lies_outside_the_box_and_some_lie_at_its_border(spacing: tuple[float, float, float]) -> None:
    size = (12, 9, 10)
    distances = control_distances(4.0, spacing)
    control = draw_control(1.0, size, distances, spacing, BatchRandom(0, 0, [0]))[0]
    for bent in (False, True):
        for angles, zoom in (([20.0, -10.0, 5.0], 0.8), ([0.0, 90.0, 0.0], 1.0), ([30.0, 30.0, 30.0], 1.3)):
            move = turned(angles, zoom, spacing)
            field = elastic_displacement(control[None], size, distances)[0] if bent else None
            move = Move(move.matrix, control if bent else None, distances)
            positions = sampling_grid(move.matrix, size, field).flip(-1).flatten(0, 2)
            places = (positions + 1) / 2 * torch.tensor(size) - 0.5
            for axis, (first, end) in enumerate(move.box(size)):
                low, high = float(places[:, axis].min()), float(places[:, axis].max())
                assert first - 1e-3 < low
                assert high < end - 1 + 1e-3
                assert bent or (low < first + 1 + 1e-3 and high > end - 2 - 1e-3)


def test_a_part_of_the_volume_shows_what_all_of_it_does() -> None:
    images, labels = noise_image(30, 30, 30), torch.randint(-1, 5, (1, 30, 30, 30))
    move, size = turned([20.0, -10.0, 5.0], 0.8), (10, 8, 6)
    whole, whole_labels = warp(images, labels, sampling_grid(move.matrix, (30, 30, 30))[None])
    (i, j, k), begin = move.box(size), (10, 11, 12)  # the patch lies in the middle
    part = tuple(slice(b + low, b + high) for b, (low, high) in zip(begin, (i, j, k), strict=True))
    shown, shown_labels = move.show(images[0][:, *part], labels[0][part], size, [i[0], j[0], k[0]])
    torch.testing.assert_close(shown, whole[0, :, 10:20, 11:19, 12:18], atol=1e-4, rtol=0)
    assert (shown_labels == whole_labels[0, 10:20, 11:19, 12:18]).float().mean() > 0.999
    assert shown_labels.min() >= -1
