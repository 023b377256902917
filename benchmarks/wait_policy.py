"""What waiting threads cost: a training step with OMP_WAIT_POLICY active and passive, alone and beside a busy process.

    python benchmarks/wait_policy.py

The command line sets the policy to passive unless the environment says otherwise; this is why.
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
BUSY = "while True: pass"


def step_s(policy: str, busy: bool) -> float:
    """Median seconds of a training step in a process of its own."""
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        environment = {**os.environ, "OMP_WAIT_POLICY": policy}
        done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    finally:
        if other:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    """Print the table; the ratios are what holds on other machines."""
    print("| | active s | passive s | active / passive |")
    print("|---|---|---|---|")
    for name, busy in (("alone", False), ("beside a busy process", True)):
        pairs = [(step_s("ACTIVE", busy), step_s("PASSIVE", busy)) for _ in range(3)]
        active, passive = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {active:.2f} | {passive:.2f} | {active / passive:.1f} |", flush=True)


if __name__ == "__main__":
    main()
