"""Arithmetic per second, and what is possible."""

import torch

from pipeline.train.resources import convolution_ceiling


def test_the_ceiling_is_the_speed_of_a_convolution() -> None:
    cpu = torch.device("cpu")
    found = convolution_ceiling(cpu, torch.float32, 3), convolution_ceiling(cpu, torch.float32, 2)
    assert all(1e8 < speed < 1e14 for speed in found)
