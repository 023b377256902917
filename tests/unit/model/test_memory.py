"""The peak is that of the work in between, whatever was there before and after."""

import sys
import threading
import time

import pytest
import torch

from pipeline.model.memory import watch_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_of_the_cpu_is_above_the_start_and_begins_anew_when_asked():
    kept = torch.ones(64 * MIB, dtype=torch.uint8)
    with watch_memory(torch.device("cpu")) as peak:
        high = torch.ones(96 * MIB, dtype=torch.uint8)
        time.sleep(0.1)
        del high
        assert 90 <= (peak() or 0) / MIB <= 110
        assert (peak() or 0) / MIB <= 10
        high = torch.ones(32 * MIB, dtype=torch.uint8)
        assert 28 <= (peak() or 0) / MIB <= 42  # what is there when asked needs no sample
    assert kept.numel() + high.numel() == 96 * MIB
    assert "memory" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_what_was_allocated():
    device = torch.device("cuda")
    kept = torch.ones(64 * MIB, dtype=torch.uint8, device=device)
    with watch_memory(device) as peak:
        torch.ones(96 * MIB, dtype=torch.uint8, device=device)
        assert peak() == 96 * MIB
        assert peak() == 0
    assert kept.numel() == 64 * MIB


def test_elsewhere_nothing_is_claimed():
    with watch_memory(torch.device("meta")) as peak:
        assert peak() is None
