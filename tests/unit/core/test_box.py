"""Boxes of voxels."""

from __future__ import annotations

import numpy as np

from pipeline.core.box import Box


def test_the_smallest_box_around_a_mask() -> None:
    mask = np.zeros((4, 5, 6), dtype=bool)
    assert Box.around(mask) is None
    mask[1, 2:4, 5] = True
    found = Box.around(mask)
    assert found == Box((1, 2, 5), (2, 4, 6))
    assert found.shape == (1, 2, 1)
    assert mask[found.slices].all()


def test_a_union_holds_all_boxes() -> None:
    assert Box.union([]) is None
    assert Box.union([Box((1, 2), (3, 4)), Box((0, 3), (2, 9))]) == Box((0, 2), (3, 9))


def test_a_margin_ends_where_the_volume_ends() -> None:
    assert Box((1, 4), (2, 6)).grown(2, (8, 7)) == Box((0, 2), (4, 7))
    assert Box((1, 4), (2, 6)).grown((0, 1), (8, 7)) == Box((1, 3), (2, 7))


def test_an_index_and_a_box_say_the_same() -> None:
    box = Box((1, 4), (2, 6))
    assert Box.of(box.slices) == box
    assert Box.whole((3, 4)) == Box((0, 0), (3, 4))
