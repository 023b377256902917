"""Intensities in 16 bits, on disk and in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.prepared_array import StepTensor, open_array, packed, step_of


@pytest.mark.parametrize(
    ("largest", "step"),
    [
        (1.0, 2.0**-14),  # 1 / 2^-14 = 16384 fits into 32767, 1 / 2^-15 does not
        (-6.4, 2.0**-12),
        (63.99, 2.0**-9),
        (64.0, None),  # steps of 2^-8 would be off by up to 0.002
        (0.0, 2.0**-9),
    ],
)
def test_the_step_is_the_smallest_power_of_two_that_holds_the_largest(largest: float, step: float | None) -> None:
    assert step_of(np.array([[[[0.0, largest]]]], np.float32)) == step


def test_intensities_come_back_within_half_a_step_and_zero_exactly(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 3, (2, 40, 70, 33)).astype(np.float32)
    image[0, :5] = 0.0
    step = step_of(image)
    assert step is not None
    (tmp_path / "image.b2nd").write_bytes(packed(image, step))
    array = open_array(tmp_path / "image.b2nd")
    assert (array.shape, array.step, array.nbytes) == (image.shape, step, 2 * image.size)
    back = array[...]
    assert back.dtype == np.float32
    assert np.abs(back - image).max() <= step / 2 < 0.001
    assert not back[0, :5].any()
    box = (slice(None), slice(3, 9), slice(60, 70), slice(2, 4))
    assert np.array_equal(array[box], back[box])
    held = array.load(torch.device("cpu"))
    assert isinstance(held, StepTensor)
    assert held.values.dtype == torch.int16
    assert held.shape == image.shape
    assert torch.equal(held[box], torch.from_numpy(back[box]))


def test_whole_numbers_are_stored_as_they_are(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(-1, 3, (20, 70, 9)).astype(np.int8)
    (tmp_path / "label.b2nd").write_bytes(packed(label))
    array = open_array(tmp_path / "label.b2nd")
    assert array.step is None
    assert np.array_equal(array[...], label)
    assert array[...].dtype == np.int8
    held = array.load(torch.device("cpu"))
    assert isinstance(held, torch.Tensor)
    assert np.array_equal(held.numpy(), label)


def test_wide_intensities_are_stored_as_they_are(tmp_path: Path) -> None:
    image = np.array([[[[0.5, 1e6]]]], np.float32)
    (tmp_path / "image.b2nd").write_bytes(packed(image, step_of(image)))
    assert open_array(tmp_path / "image.b2nd")[...].tolist() == image.tolist()
