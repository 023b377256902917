"""What ``volseg check`` and ``volseg plan`` take per case, and whether memory grows with the number of cases.

    python benchmarks/many_cases.py --work /tmp/many_cases

Volumes of 8 x 8 x 8 voxels show what a case costs by itself, 200 of them what a command costs without any. Memory is
the largest sum of the resident memory of all processes of the command, looked at 20 times a second (Linux only); pages
that processes share count once for each. Times are of processors, because others may use the machine, and per case
more than in the row above, which leaves the start out.
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np

EDGE = 8


def write_cases(folder: Path, cases: int) -> Path:
    """Write a dataset of images/ and labels/: noise that is different in every case, and a box of one organ."""
    if (folder / "labels.json").is_file():
        return folder
    generator = np.random.default_rng(cases)
    labels = np.zeros((EDGE,) * 3, np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    reference = packed(labels)
    for number in range(cases):
        noise = generator.integers(0, 200, labels.shape).astype(np.int16)
        (folder / "images" / f"case_{number:06d}.nii.gz").write_bytes(packed(noise))
        (folder / "labels" / f"case_{number:06d}.nii.gz").write_bytes(reference)
    (folder / "labels.json").write_text('{"1": "box"}')
    return folder


def packed(array: np.ndarray) -> bytes:
    """A compressed NIfTI file."""
    image = nib.Nifti1Image(array, np.diag((1.5, 1.5, 3.0, 1.0)))
    image.set_sform(image.affine, 1)
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def measure(words: list[str]) -> tuple[float, float, float]:
    """Wall-clock and processor seconds of a command, and the most memory that its processes held together, in MiB."""
    began, before, most = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen([sys.executable, "-m", "pipeline", *words], stdout=output, stderr=output)
        while running.poll() is None:
            most = max(most, resident_bytes(running.pid))
            time.sleep(0.05)
        if running.returncode:
            output.seek(0)
            sys.exit(f"volseg {' '.join(words)}: exit code {running.returncode}\n{output.read().decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu_s, most / 2**20


def resident_bytes(root: int) -> int:
    """Resident memory of a process and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    sizes: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                sizes[int(entry.name)] = (entry / "statm").read_text()
            except (OSError, IndexError):  # it has ended meanwhile
                continue
            children[parent].append(int(entry.name))
    found, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        found += int(sizes.get(process, "0 0").split()[1])
        # one of equal size has just been started and still is in its parent's memory (vfork)
        waiting += [child for child in children[process] if sizes[child] != sizes.get(process)]
    return found * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("many_cases"))
    parser.add_argument("--cases", type=int, nargs="+", default=[200, 2_000, 20_000])
    parser.add_argument("--jobs", type=int, default=2, help="Worker processes.")
    chosen = parser.parse_args()
    folders = {cases: write_cases(chosen.work / f"{cases}", cases) for cases in chosen.cases}
    print("| command | cases | s | processor s | ms per further case | memory MiB | to the row above |")
    print("|---|---|---|---|---|---|---|")
    for name in ("check", "plan"):
        above: tuple[int, float, float] | None = None
        for cases, folder in folders.items():
            out = ["--out", str(chosen.work / f"plan_{cases}")] if name == "plan" else []
            seconds, cpu_s, memory = measure([name, str(folder), *out, "--jobs", str(chosen.jobs)])
            cells = [name, f"{cases:,}", f"{seconds:.1f}", f"{cpu_s:.1f}", "", f"{memory:.0f}", ""]
            if above:
                cells[4] = f"{1000 * (cpu_s - above[1]) / (cases - above[0]):.2f}"
                cells[6] = f"{memory / above[2]:.2f}"
            above = cases, cpu_s, memory
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
