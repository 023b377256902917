"""What a case of ``volseg predict`` costs beside its mask: its entry, in folders of 10 to 20,000 masks.

    python benchmarks/prediction_record.py

An entry is written twice per case. Until version 1 the whole of ``predictions.json`` was, which :meth:`write` still
does, once per run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config.settings import InferSettings
from pipeline.data.prediction_record import PredictionRecord

_REPEATED = 11


def entry(number: int) -> dict[str, object]:
    """An entry as large as those of a model of five folds."""
    scan = f"/data/hospital/study_{number:06d}/scan_{number:06d}_0000.nii.gz"
    return {
        "case": f"scan_{number:06d}",
        "images": [scan],
        "prediction": f"scan_{number:06d}.nii.gz",
        "postprocessing": None,
        "organs": None,
        "inputs": {scan: "0" * 32},
        "grid": {"shape": [512, 512, 150], "affine": [[0.78, 0.0, 0.0, -200.5]] * 4},
        "model": {"folder": "/data/models/torso", "hash": "0" * 16},
        "settings": [InferSettings().model_dump(mode="json")],
        "provenance": {"volseg": "1.0", "device": "cuda (NVIDIA H200)", "started": "2026-11-30T12:00:00+00:00"},
        "hash": "0" * 16,
    }


def seconds(work: Callable[[], object]) -> float:
    """Median of several runs."""
    found = []
    for _ in range(_REPEATED):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    """Print a table."""
    print("| masks in the folder | entry ms | whole file ms |")
    print("|---|---|---|")
    for masks in (10, 200, 2_000, 20_000):
        with tempfile.TemporaryDirectory() as folder:
            record = PredictionRecord(Path(folder))
            record.entries = {str(each["prediction"]): each for each in map(entry, range(masks))}
            record.write()

            def note(record: PredictionRecord = record) -> None:
                record.note(entry(7))
                record.refresh()

            small, whole = seconds(note), seconds(record.write)
        print(f"| {masks:,} | {small * 1e3:.2f} | {whole * 1e3:.1f} |")


if __name__ == "__main__":
    main()
