"""What computing all windows at once saves: the pixel classifier of 2012 window by window and dense, beside a U-Net.

    python benchmarks/ciresan.py
    python benchmarks/ciresan.py --region 256 --device cuda

All three give the logits of the same square of pixels in one image. The U-Net of 2015 takes the smallest legal input
that covers it. Weights are random; the largest difference between the first two is printed to show that they are one
network. Processor seconds are the steadier ones where a machine is shared; on a GPU only wall-clock ones count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.model.base import SegmentationNetwork
from pipeline.model.ciresan import scan
from pipeline.model.cost import multiply_adds
from pipeline.model.spec import build_network


def timed(predict: Callable[[], Tensor], device: torch.device) -> tuple[float, float, Tensor]:
    """Wall-clock and processor seconds of one run, and the logits."""
    began, busy = time.monotonic(), time.process_time()
    with torch.no_grad():
        logits = predict()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began, time.process_time() - busy, logits


def covering(network: SegmentationNetwork, region: int) -> tuple[int, ...]:
    """Smallest input whose logits cover a square region."""
    return network.legal_size([region + 2 * lost for lost in network.margin])


def main() -> None:
    """Print the table; the ratios are what holds on other machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", type=int, default=96, help="side of the square of pixels to classify")
    parser.add_argument("--batch-size", type=int, default=32, help="windows at a time")
    parser.add_argument("--runs", type=int, default=3, help="of each form, in turns")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    pixel, unet = (build_network(name, 2, 1, 2, seed=0).eval().to(device) for name in ("ciresan_n4", "unet2015"))
    torch.manual_seed(0)
    image, wide = (torch.randn(1, 1, *covering(network, given.region), device=device) for network in (pixel, unet))
    forms = {
        "ciresan_n4, window by window": lambda: scan(pixel, image, batch_size=given.batch_size),
        "ciresan_n4, all windows at once": lambda: pixel(image),
        "unet2015": lambda: unet(wide),
    }
    for predict in forms.values():
        timed(predict, device)  # the first call chooses and compiles kernels
    # In turns, so that whatever else the machine does meets all forms alike.
    rounds = [[timed(predict, device) for predict in forms.values()] for _ in range(given.runs)]
    columns = list(zip(*rounds, strict=True))
    wall, busy = ([statistics.median(run[n] for run in runs) for runs in columns] for n in (0, 1))
    difference = (rounds[-1][0][2] - rounds[-1][1][2]).abs().max()
    scan_cost = given.region**2 * multiply_adds(pixel, covering(pixel, 1), 1)
    costs = [scan_cost, multiply_adds(pixel, image.shape[2:], 1), multiply_adds(unet, wide.shape[2:], 1)]
    print(f"{given.region} x {given.region} pixels on {device}, medians of {given.runs} runs")
    print(f"Largest difference between the two forms of ciresan_n4: {difference:.1e}\n")
    print("| | input | multiply-adds | s | processor s | scan / this, s | scan / this, processor s |")
    print("|---|---|---|---|---|---|---|")
    for name, x, cost, seconds, used in zip(forms, (image, image, wide), costs, wall, busy, strict=True):
        size, ratios = " x ".join(str(n) for n in x.shape[2:]), f"{wall[0] / seconds:.1f} | {busy[0] / used:.1f}"
        print(f"| {name} | {size} | {cost:.2e} | {seconds:.3f} | {used:.3f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
