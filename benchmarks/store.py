"""Time reading random patches of a prepared case from a warm cache, by how the store compresses it and by others.

    python benchmarks/store.py prepared

Takes the largest case of a folder that ``volseg preprocess`` wrote. Medians of 50 patches each, one thread.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch

from pipeline.data.prepared_cases import prepared_ids
from pipeline.data.store import open_array, open_prepared, packed, step_of

PATCHES, EDGES = 50, (64, 128)


def read_ms(array: Any, shape: tuple[int, ...], edge: int) -> float:
    """Median milliseconds of reading a cube of so many voxels, as float32."""
    generator, seconds = np.random.default_rng(0), []
    for _ in range(PATCHES):
        starts = [int(generator.integers(0, max(1, n - edge + 1))) for n in shape[1:]]
        box = (slice(None), *(slice(start, start + edge) for start in starts))
        began = time.perf_counter()
        torch.as_tensor(array[box]).float()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def main() -> None:
    """Run the benchmark."""
    folder = Path(sys.argv[1])
    case = max(prepared_ids(folder), key=lambda name: open_prepared(folder, name)[0].nbytes)
    image = open_prepared(folder, case)[0][...]
    step = step_of(image)
    whole = image if step is None else np.rint(image / step).astype(np.int16)
    with tempfile.TemporaryDirectory() as place:
        ours, zstd = Path(place) / "ours.b2nd", Path(place) / "zstd.b2nd"
        ours.write_bytes(packed(image, step))
        chunks = (1, *(min(64, n) for n in whole.shape[1:]))
        blosc2.asarray(whole, chunks=chunks, cparams={"codec": blosc2.Codec.ZSTD, "clevel": 3}, urlpath=str(zstd))
        ways: dict[str, tuple[Any, float]] = {
            "the store": (open_array(ours), ours.stat().st_size),
            "Zstandard, chunks of 64": (blosc2.open(str(zstd), mode="r"), zstd.stat().st_size),
            "in memory": (open_array(ours).load(torch.device("cpu")), whole.nbytes),
        }
        print(f"{case}: {' x '.join(map(str, image.shape))}, {image.nbytes / 2**20:.0f} MB as float32")
        print("| from | MB | 64^3 ms | 128^3 ms |\n|---|---|---|---|")
        for name, (array, size) in ways.items():
            times = [f"{read_ms(array, image.shape, edge):.2f}" for edge in EDGES]
            print(f"| {name} | {size / 2**20:.1f} | {' | '.join(times)} |")


if __name__ == "__main__":
    blosc2.set_nthreads(1)
    torch.set_num_threads(1)
    main()
