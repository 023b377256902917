"""Texts that name a value the same way in every process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import RandGaussianNoised, ScaleIntensityd

from pipeline.preprocess.identity import identity


class Plain:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (1.5, "1.5"),
        ((1, "a"), "[1, 'a']"),
        ({"b": 1, "a": [2]}, "{a: [2], b: 1}"),
        ({3, 1, 2}, "{1, 2, 3}"),
        (torch.float16, "torch.float16"),
        (Plain(size=3, inner=Plain(x="y")), "Plain{inner: Plain{x: 'y'}, size: 3}"),
        (np.linalg.norm, "numpy.linalg.norm"),
        (object(), "object"),
    ],
)
def test_values_by_hand(value: object, expected: str) -> None:
    assert identity(value) == expected


def test_arrays_are_named_by_type_shape_and_content() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert identity(array) == identity(array.copy())
    assert len({identity(x) for x in (array, array + 1, array.T.copy(), array.astype(np.float32))}) == 4
    assert identity(torch.ones(3)) != identity(torch.zeros(3))


def test_an_object_that_holds_itself_has_a_name() -> None:
    loop = Plain()
    loop.__dict__["itself"] = loop
    assert identity(loop).startswith("Plain{itself: Plain{")


def test_transforms_differ_by_their_parameters_alone() -> None:
    assert identity(ScaleIntensityd(["image"], minv=0.0)) == identity(ScaleIntensityd(["image"], minv=0.0))
    assert identity(ScaleIntensityd(["image"], minv=0.0)) != identity(ScaleIntensityd(["image"], minv=0.5))
    assert identity(RandGaussianNoised(["image"], std=0.1)) == identity(RandGaussianNoised(["image"], std=0.1))
    assert identity(RandGaussianNoised(["image"], std=0.1)) != identity(RandGaussianNoised(["image"], std=0.2))
