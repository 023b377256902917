import pytest
import torch
import torch.nn.functional as F

from pipeline.sample.intensity import blur_operator, low_resolution_operator
from pipeline.sample.spatial import along_axis, spline_operator


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_axis_multiplies_every_line(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    arrays = torch.randn(2, 4, 5, 6, generator=generator)
    operator = torch.randn(2, 3, arrays.shape[axis + 1], generator=generator)
    letters = "ijk"[axis]
    expected = torch.einsum(f"nijk,nm{letters}->n{'ijk'.replace(letters, 'm')}", arrays, operator)
    torch.testing.assert_close(along_axis(arrays, operator, axis), expected)


def test_blur_of_a_point_is_a_gaussian() -> None:
    row = blur_operator(21, torch.tensor([0.8]))[0, 10]
    expected = torch.exp(-0.5 * (torch.arange(-10, 11) / 0.8) ** 2)
    torch.testing.assert_close(row, expected / expected.sum(), atol=1e-7, rtol=0)


def test_blur_without_width_is_the_identity_and_rows_sum_to_one() -> None:
    operators = blur_operator(9, torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(operators[0], torch.eye(9))
    torch.testing.assert_close(operators.sum(2), torch.ones(2, 9))


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_low_resolution_equals_down_and_up_sampling(length: int) -> None:
    zoom = torch.tensor([0.5, 0.63, 0.8, 1.0])
    line = torch.randn(1, 1, length, generator=torch.Generator().manual_seed(0))
    operators = low_resolution_operator(length, zoom)
    for operator, share in zip(operators, zoom, strict=True):
        kept = max(1, int(torch.round(length * share)))
        coarse = F.interpolate(line, size=kept, mode="nearest-exact")
        expected = F.interpolate(coarse, size=length, mode="linear", align_corners=False)
        torch.testing.assert_close(operator @ line[0, 0], expected[0, 0])


@pytest.mark.parametrize(("length", "distance"), [(20, 8.0), (33, 32.0), (5, 32.0), (10, 1.5)])
def test_spline_reproduces_constants_and_lines(length: int, distance: float) -> None:
    operator = spline_operator(length, distance, torch.device("cpu"))[0]
    torch.testing.assert_close(operator.sum(1), torch.ones(length))
    points = (torch.arange(operator.shape[1]) - 1) * distance
    torch.testing.assert_close(operator @ points, torch.arange(length, dtype=torch.float32), atol=1e-4, rtol=0)


def test_spline_weights_at_a_control_point() -> None:
    row = spline_operator(9, 4.0, torch.device("cpu"))[0, 4]
    torch.testing.assert_close(row, torch.tensor([0, 1 / 6, 2 / 3, 1 / 6, 0, 0]))
