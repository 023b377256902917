"""Sliding-window inference to labels on a finer grid: time and memory of the streaming inferer and of MONAI's.

    python benchmarks/infer.py                      # against MONAI at the sizes it can hold, then large ones alone
    python benchmarks/infer.py --only images        # one part: images, peer, large, length, half
    python benchmarks/infer.py --only ct --data FOLDER   # the real CT; FOLDER holds ct_multiorgan
    python benchmarks/infer.py --device cuda

Every run is a process of its own, which calls the inferer as a library. The network is the same: a 3x3x3 convolution to
8 channels, ReLU, and a 1x1x1 convolution to the classes, its weights random; windows of 96³, half overlapping, Gaussian
blending, one per call. Images are smooth blobs and a little noise, where the classes of few neighbouring voxels differ,
or noise alone, where those of nearly all do. The CT is a whole torso at 1.8 mm; its network is a small U-Net that was
trained on it and its organs for 150 steps, when it was needed first. MONAI's logits are resampled linearly, then the
winner is taken, at once; its buffered mode keeps finished windows of one axis apart, which saves memory on a GPU. It
runs as it comes, and with the large pages that the streaming inferer has PyTorch ask for. Both give the same labels,
but for exact ties: the share that differs is in the table.

Memory is what the process took above its size before (image, network and libraries there), the labels it returns
included: the high-water mark that the kernel keeps, or what PyTorch allocated on the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from pipeline.infer.inferer import StreamingInferer
from pipeline.model.device import to_device
from pipeline.model.spec import build_network

# Image, its voxels, those of the labels, classes.
SMALL = ((200, 200, 200), (300, 300, 300))
PEER = [("smooth", *SMALL, classes) for classes in (105, 25, 3)]
IMAGES = [("smooth", *SMALL, 105), ("noise", *SMALL, 105), ("noise", *SMALL, 25), ("noise", *SMALL, 3)]
CT = [("ct", (200, 166, 184), (300, 249, 276), 105)]
LARGE = [("smooth", (273, 273, 267), (512, 512, 400), 105), ("smooth", (273, 273, 549), (512, 512, 824), 118)]
LENGTHS = [("smooth", (128, 128, slices), (192, 192, slices), 40) for slices in (400, 800)]
WINDOW, PATCH, STEPS = 96, 64, 150


class Memory:
    """The highest memory of the process since it was made, above what it was then, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins anew
            self.before = self.pages("VmRSS")

    def pages(self, name: str) -> int:
        """Bytes that the kernel counts."""
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        assert found is not None
        return int(found[1]) * 1024

    def peak(self) -> int:
        """The highest use above that at the start."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        return self.pages("VmHWM") - self.before


def input_of(
    name: str, shape: tuple[int, ...], classes: int, device: torch.device, data: Path, work: Path
) -> tuple[Tensor, nn.Module]:
    """An image (1, 1, *shape) and the network that sees it."""
    if name == "ct":
        image, labels = ct_of(shape, data)
        return image.to(device), trained(image, labels, classes, work).to(device)
    if name == "noise":
        image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    else:
        image = image_of(shape, device)
    return image, network_of(classes, device)


def ct_of(shape: tuple[int, ...], data: Path) -> tuple[Tensor, Tensor]:
    """The CT (1, 1, *shape), normalized, and its organs (1, *shape), numbered one after the other."""
    folder = data / "ct_multiorgan"
    image, labels = (
        torch.from_numpy(np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj, np.float32))[None, None]
        for name in ("example_ct", "example_ct_labels")
    )
    image = F.interpolate(image.clamp(-1000, 1000) / 500, size=shape, mode="trilinear")
    return image, F.interpolate(labels, size=shape, mode="nearest-exact")[0].unique(return_inverse=True)[1]


def trained(image: Tensor, labels: Tensor, classes: int, work: Path) -> nn.Module:
    """A small U-Net that knows the organs of one image; its weights are kept in the folder for work."""
    network = build_network("unet", dims=3, in_channels=1, out_channels=classes, features=(8, 16, 32), seed=0)
    file = work / "infer_ct_weights.pt"
    if not file.exists():
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(STEPS):
            first = [int(torch.randint(n - PATCH + 1, (), generator=generator)) for n in labels.shape[1:]]
            part = (slice(None), *(slice(start, start + PATCH) for start in first))
            logits = network(image[(slice(None), *part)])
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[part]).backward()
            optimizer.step()
        torch.save(network.state_dict(), file)
    network.load_state_dict(torch.load(file))
    return network.eval()


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


def child(method: str, case: tuple, device: torch.device, data: Path, work: Path) -> None:
    """Run one method, keep its labels and print what it took."""
    name, shape, target, classes = case
    image, network = input_of(name, shape, classes, device, data, work)
    with torch.no_grad():
        network(image[..., :WINDOW, :WINDOW, :WINDOW])  # what libraries do once
    memory, began, processor = Memory(device), time.monotonic(), time.process_time()
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
    seconds, processor = time.monotonic() - began, time.process_time() - processor
    peak = memory.peak()
    torch.save(labels.cpu(), work / "labels.pt")
    found = {"seconds": seconds, "processor_s": processor, "windows_s": windows_s, "peak": peak}
    sys.stdout.write(json.dumps(found) + "\n")


def measured(method: str, case: tuple, chosen: argparse.Namespace) -> dict[str, float] | str:
    """What a method took in a process of its own; why not, if it failed."""
    words = [sys.executable, __file__, "--child", json.dumps([method, case])]
    words += ["--device", chosen.device, "--data", str(chosen.data), "--work", str(chosen.work)]
    pages = {} if method.startswith("streaming") else {"THP_MEM_ALLOC_ENABLE": str(int(method.endswith("large pages")))}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | pages)
    if done.returncode:
        return "killed: too little memory" if done.returncode < 0 else done.stderr.strip().splitlines()[-1][:80]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(cases: list[tuple], methods: list[str], chosen: argparse.Namespace) -> None:
    """Print a table of cases and methods; ratios are those to the first method."""
    titles = ["image", "grid", "labels", "classes", "method", "s", "of it windows", "processor s", "GiB", "slabs"]
    print("| " + " | ".join([*titles, "labels that differ"]) + " |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        name, shape, target, classes = case
        slab = classes * min(WINDOW, min(shape)) * torch.Size(shape).numel() / max(shape) * 4
        own: Tensor | None = None
        for method in methods:
            found = measured(method, case, chosen)
            sizes = " | ".join(" x ".join(map(str, size)) for size in (shape, target))
            row = f"| {name} | {sizes} | {classes} | {method} "
            if isinstance(found, str):
                print(f"{row}| {found} | | | | | |", flush=True)
                continue
            labels = torch.load(chosen.work / "labels.pt")
            differ = "" if own is None else f"{(labels != own).float().mean().item():.1e}"
            own = labels if own is None else own
            windows = "" if found["windows_s"] is None else f"{found['windows_s']:.1f}"
            print(
                f"{row}| {found['seconds']:.1f} | {windows} | {found['processor_s']:.1f} | {found['peak'] / 2**30:.2f} "
                f"| {found['peak'] / slab:.2f} | {differ} |",
                flush=True,
            )


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp"), help="folder for labels and trained weights")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VOLSEG_TEST_DATA", ".")))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["images", "ct", "peer", "large", "length", "half"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        method, (name, shape, target, classes) = json.loads(chosen.child)
        case = (name, tuple(shape), tuple(target), classes)
        child(method, case, torch.device(chosen.device), chosen.data, chosen.work)
        return
    parts = {
        "images": (IMAGES, ["streaming", "monai", "monai large pages"]),
        "ct": (CT, ["streaming", "monai", "monai large pages"]),
        "peer": (PEER, ["streaming", "monai", "monai buffered"]),
        "large": (LARGE, ["streaming"]),
        "half": (LARGE[:1], ["streaming", "streaming half"]),
        "length": (LENGTHS, ["streaming"]),
    }
    for name, (cases, methods) in parts.items():
        if chosen.only in (None, name):
            compare(cases, methods, chosen)


if __name__ == "__main__":
    main()
