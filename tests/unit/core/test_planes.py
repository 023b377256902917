"""Planes: the side that a letter names is where the letter is."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.planes import NEUROLOGICAL, RADIOLOGICAL, Plane, planes, shown_planes

SIDES = {"L": (0, 0), "R": (0, -1), "P": (1, 0), "A": (1, -1), "I": (2, 0), "S": (2, -1)}
"""Letter → axis of a volume in RAS order, and which end of it."""


def with_side(letter: str) -> np.ndarray:
    """A volume of which one face, the patient's side of that letter, is 1."""
    volume = np.zeros((5, 6, 7), int)
    axis, end = SIDES[letter]
    np.moveaxis(volume, axis, 0)[end] = 1
    return volume


@pytest.mark.parametrize("plane", [*RADIOLOGICAL, *NEUROLOGICAL], ids=lambda p: p.name + p.letters)
def test_a_letter_stands_at_the_edge_where_that_side_of_the_patient_is(plane: Plane) -> None:
    for letter, edge in zip(plane.letters, ("left", "right", "below", "above"), strict=True):
        shown = plane.slice(with_side(letter), 2)  # rows upwards
        edges = {"left": shown[:, 0], "right": shown[:, -1], "below": shown[0], "above": shown[-1]}
        assert edges[edge].all(), (letter, edge)
        assert shown.sum() == len(edges[edge])
    assert plane.slice(np.zeros((5, 6, 7)), 2).shape == ((5, 6, 7)[plane.up], (5, 6, 7)[plane.right])


def test_radiologists_have_the_left_on_the_right_and_the_nose_on_the_left() -> None:
    assert [plane.letters for plane in planes(neurological=False)] == ["RLPA", "RLIS", "APIS"]
    assert [plane.letters for plane in planes(neurological=True)] == ["LRPA", "LRIS", "PAIS"]


def test_planes_that_are_a_line_are_left_out() -> None:
    assert [plane.name for plane in shown_planes((5, 6, 1), neurological=False)] == ["Axial"]
    assert [plane.name for plane in shown_planes((1, 6, 7), neurological=True)] == ["Sagittal"]
    assert [plane.name for plane in shown_planes((1, 1, 7), neurological=True)] == ["Axial"]
