from __future__ import annotations

import numpy as np
import pytest

from pipeline.core import DataError, LabelTable
from pipeline.core.selection import keep_values, select_organs

ORGANS = LabelTable({1: "liver", 2: "spleen", 7: "aorta"}, ignore_label=255)
EYE = LabelTable({1: "rim", 2: "cup_value", 5: "vessel"}, regions={"disc": (1, 2), "cup": (2,), "vessels": (5,)})


def test_organs_keep_their_values() -> None:
    assert select_organs(ORGANS, ["aorta", "liver"]) == LabelTable({1: "liver", 7: "aorta"})


def test_a_region_stands_for_its_values_and_those_within_it() -> None:
    assert select_organs(EYE, ["disc"]) == LabelTable({1: "rim", 2: "cup_value"}, regions={"disc": (1, 2), "cup": (2,)})
    assert select_organs(EYE, ["cup"]) == LabelTable({2: "cup_value"}, regions={"cup": (2,)})


def test_an_organ_that_is_left_in_no_region_becomes_one() -> None:
    assert select_organs(EYE, ["rim", "vessels"]) == LabelTable(
        {1: "rim", 5: "vessel"}, regions={"vessels": (5,), "rim": (1,)}
    )


def test_crossing_regions_keep_the_values_they_are_painted_with() -> None:
    table = LabelTable({1: "a_only", 2: "b_only", 3: "both"}, regions={"a": (1, 3), "b": (2, 3)})
    chosen = select_organs(table, ["a"])
    assert (chosen.regions, chosen.painted) == ({"a": (1, 3)}, (1,))


def test_an_unknown_name_lists_the_known_ones() -> None:
    message = r"^organs: expected some of liver, spleen, aorta, got livr, Spleen\. Correct the names\.$"
    with pytest.raises(DataError, match=message):
        select_organs(ORGANS, ["livr", "aorta", "Spleen"])
    with pytest.raises(DataError, match="expected some of rim, cup_value, vessel, disc, cup, vessels, got none"):
        select_organs(EYE, [])


def test_other_values_become_background() -> None:
    labels = np.array([0, 1, 2, 7, 255], np.uint8)
    found = keep_values(labels, (1, 7))
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 1, 0, 7, 0]
