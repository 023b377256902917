"""What waiting threads cost: a training step with OpenMP's default wait policy and with the passive one.

    python benchmarks/wait_policy.py

Measured alone and beside another training on the same processors. The command line sets the policy to passive unless
the environment says otherwise; this is why, and what it costs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

STEP = """
import statistics, time, torch
from pipeline.model.device import choose_dtype, autocast, to_device
from pipeline import build_network
device = torch.device("cpu")
network = to_device(build_network("unet", 3, 1, 3, seed=0, features=(16, 32, 64, 128), deep_supervision=False), device)
x = torch.randn(6, 1, 40, 56, 40).contiguous(memory_format=torch.channels_last_3d)
seconds = []
for _ in range(8):
    began = time.monotonic()
    with autocast(device, choose_dtype(device)):
        y = network(x)
    y.float().square().mean().backward()
    seconds.append(time.monotonic() - began)
print(statistics.median(seconds[2:]))
"""
BUSY = """
import torch
layer, x = torch.nn.Conv3d(16, 16, 3, padding=1), torch.randn(2, 16, 40, 56, 40)
while True:
    layer(x).sum().backward()
"""
PAIRS = 3


def step_s(policy: str | None, busy: bool) -> float:
    """Median seconds of a training step in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    other = subprocess.Popen([sys.executable, "-c", BUSY], env=environment) if busy else None
    try:
        environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
        done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    finally:
        if other:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    """Print the table; the ratios are what holds on other machines."""
    print("| | default s | passive s | default / passive |")
    print("|---|---|---|---|")
    for name, busy in (("alone", False), ("beside another training", True)):
        pairs = [(step_s(None, busy), step_s("PASSIVE", busy)) for _ in range(PAIRS)]
        default, passive = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {default:.2f} | {passive:.2f} | {default / passive:.2f} |", flush=True)


if __name__ == "__main__":
    main()
