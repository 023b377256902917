"""Sliding-window inference to labels on a finer grid: time and memory of the streaming inferer and of MONAI's.

    python benchmarks/infer.py                      # against MONAI at the sizes it can hold, then large ones alone
    python benchmarks/infer.py --only peer          # one part: peer, large, length, half
    python benchmarks/infer.py --device cuda

Every run is a process of its own. The network is the same: a 3x3x3 convolution to 8 channels, ReLU, and a 1x1x1
convolution to the classes, its weights random; windows of 96³, half overlapping, Gaussian blending, one per call. The
image is smooth blobs and a little noise. MONAI's logits are resampled linearly, then the winner is taken, at once; its
buffered mode keeps finished windows of one axis apart, which saves memory on a GPU. Both give the same labels, but for
exact ties: the share that differs is in the table.

Memory is what the process took above its size before (image, network and libraries there), the labels it returns
included: the highest of samples every 10 ms of its own pages, or what PyTorch allocated on the GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from pipeline.infer.inferer import StreamingInferer
from pipeline.model.device import to_device

PEER = [((200, 200, 200), (300, 300, 300), classes) for classes in (105, 25, 3)]
LARGE = [((273, 273, 267), (512, 512, 400), 105), ((273, 273, 549), (512, 512, 824), 118)]
LENGTHS = [((128, 128, slices), (192, 192, slices), 40) for slices in (400, 800)]
WINDOW = 96


class Memory:
    """The highest memory of the process since it was made, above what it was then, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.highest, self.stop = device, 0, threading.Event()
        self.before = self.now()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def now(self) -> int:
        """Bytes in use: own pages, or what is allocated on the GPU."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        words = Path("/proc/self/statm").read_text(encoding="ascii").split()
        return (int(words[1]) - int(words[2])) * 4096

    def watch(self) -> None:
        """Sample until told to stop."""
        while not self.stop.wait(0.01):
            self.highest = max(self.highest, self.now())

    def peak(self) -> int:
        """The highest use above that at the start."""
        self.stop.set()
        self.thread.join()
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        return max(self.highest, self.now()) - self.before


def image_of(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Smooth blobs of about 20 voxels and a little noise, (1, 1, *shape)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1, *(max(2, n // 16) for n in shape), generator=generator)
    image = F.interpolate(coarse, size=shape, mode="trilinear")
    return image.add_(torch.randn(image.shape, generator=generator), alpha=0.02).to(device)


def network_of(classes: int, device: torch.device) -> nn.Module:
    """Two layers, channels last as all networks here."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, classes, 1))
    return to_device(network, device).eval()


def child(method: str, shape: tuple[int, ...], target: tuple[int, ...], classes: int, device: torch.device) -> None:
    """Run one method and print what it took; the labels' sum stands for the labels."""
    image, network = image_of(shape, device), network_of(classes, device)
    with torch.no_grad():
        network(image[..., :WINDOW, :WINDOW, :WINDOW])  # what libraries do once
    memory, began = Memory(device), time.monotonic()
    windows_s = None
    if method.startswith("streaming"):
        sums = "float16" if method.endswith("half") else "float32"
        inferer = StreamingInferer((WINDOW,) * 3, 0.5, accumulate=sums)
        labels = inferer.label_map(image, network, target)
    else:
        buffered = {"buffer_steps": 1, "buffer_dim": -1} if method == "monai buffered" else {}
        with torch.no_grad():
            logits = sliding_window_inference(image, (WINDOW,) * 3, 1, network, 0.5, mode="gaussian", **buffered)
            windows_s = time.monotonic() - began
            labels = F.interpolate(logits, size=target, mode="trilinear").argmax(1).to(torch.uint8)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, peak = time.monotonic() - began, memory.peak()
    torch.save(labels.cpu(), sys.argv[-1])
    sys.stdout.write(json.dumps({"seconds": seconds, "windows_s": windows_s, "peak": peak}) + "\n")


def measured(method: str, case: tuple, device: str, out: Path) -> dict[str, float] | str:
    """What a method took in a process of its own; why not, if it failed."""
    words = [sys.executable, __file__, "--child", json.dumps([method, *case, device]), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return "killed: too little memory" if done.returncode < 0 else done.stderr.strip().splitlines()[-1][:80]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(cases: list[tuple], methods: list[str], device: str, work: Path) -> None:
    """Print a table of cases and methods; ratios are those to the first method."""
    print("| grid | labels | classes | method | s | of it windows | GiB | slabs | labels that differ |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        shape, target, classes = case
        slab = classes * min(WINDOW, min(shape)) * torch.Size(shape).numel() / max(shape) * 4
        own: Tensor | None = None
        for method in methods:
            found = measured(method, case, device, work / "labels.pt")
            row = f"| {' x '.join(map(str, shape))} | {' x '.join(map(str, target))} | {classes} | {method} "
            if isinstance(found, str):
                print(f"{row}| {found} | | | | |", flush=True)
                continue
            labels = torch.load(work / "labels.pt")
            differ = "" if own is None else f"{(labels != own).float().mean().item():.1e}"
            own = labels if own is None else own
            windows = "" if found["windows_s"] is None else f"{found['windows_s']:.1f}"
            gib = found["peak"] / 2**30
            print(
                f"{row}| {found['seconds']:.1f} | {windows} | {gib:.2f} | {found['peak'] / slab:.2f} | {differ} |",
                flush=True,
            )


def main() -> None:
    """Read the command line and print the tables."""
    if len(sys.argv) > 2 and sys.argv[1] == "--child":
        method, shape, target, classes, device = json.loads(sys.argv[2])
        child(method, tuple(shape), tuple(target), classes, torch.device(device))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp"), help="folder for the labels of a run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["peer", "large", "length", "half"])
    chosen = parser.parse_args()
    parts = {
        "peer": (PEER, ["streaming", "monai", "monai buffered"]),
        "large": (LARGE, ["streaming"]),
        "half": (LARGE[:1], ["streaming", "streaming half"]),
        "length": (LENGTHS, ["streaming"]),
    }
    for name, (cases, methods) in parts.items():
        if chosen.only in (None, name):
            compare(cases, methods, chosen.device, chosen.work)


if __name__ == "__main__":
    main()
