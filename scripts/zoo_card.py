"""``python scripts/zoo_card.py NAME WORK``: put what ``make_zoo.sh`` made into ``pipeline/zoo``, with its model card.

The card is ``scripts/zoo/NAME.md`` with the numbers filled in.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from string import Template
from typing import Any

from pipeline.model.manifest import write_manifest

ROOT = Path(__file__).parents[1]
FILES = ("model.json", "fold_0/model.safetensors")
EXAMPLE = {"hippocampus": "hippocampus_149.nii.gz"}
"""Name of a model → the held-out case that ships with it."""


def main(name: str, work: Path) -> None:
    """Replace the folder of a model."""
    template = Template((ROOT / "scripts" / "zoo" / f"{name}.md").read_text(encoding="utf-8"))
    card = template.substitute(numbers(work, EXAMPLE[name]))
    target, model = ROOT / "pipeline" / "zoo" / name, work / "share_16"
    shutil.rmtree(target, ignore_errors=True)
    for file in FILES:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model / file, target / file)
    for part in ("images", "labels"):
        (target / part).mkdir()
        shutil.copy(work / "dataset" / f"{part}Ts" / EXAMPLE[name], target / part)
    (target / "README.md").write_text(card, encoding="utf-8")
    write_manifest(target, FILES)
    for path in target.rglob("*"):  # the source may have been read-only
        path.chmod(0o755 if path.is_dir() else 0o644)


def numbers(work: Path, example: str) -> dict[str, str]:
    """What the placeholders of a card stand for."""
    half, full = (json.loads((work / f"scores_{bits}" / "summary.json").read_text()) for bits in (16, 32))
    fold = json.loads((work / "prepared" / "splits.json").read_text())[0]
    card = json.loads((work / "share_16" / "model.json").read_text())
    progress = (work / "model" / "fold_0" / "history.csv").read_text().splitlines()
    last = dict(zip(progress[0].split(","), progress[-1].split(","), strict=True))
    return {
        "dice": f"{half['overall']['dice']['mean']:.4f}",
        "full_dice": f"{full['overall']['dice']['mean']:.4f}",
        "cases": str(half["overall"]["n_cases"]),
        "held_out": ", ".join(path.name.split("_")[-1][:-7] for path in sorted((work / "dataset/imagesTs").iterdir())),
        "train": str(len(fold["train"])),
        "watched": str(len(fold["validation"])),
        "scores": "\n".join(f"| {organ} | {cells(entry)} |" for organ, entry in half["organs"].items()),
        "iterations": last["iteration"],
        "batch": str(card["settings"]["sample"]["batch_size"]),
        "versions": ", ".join(f"{name} {version}" for name, version in card["provenance"].items()),
        "example": example,
    }


def cells(entry: dict[str, Any]) -> str:
    """An organ's scores: Dice with its interval, the worst case, and distances."""
    dice, low, high = entry["dice"]["mean"], *entry["dice"]["interval_95"]
    worst, hd95, nsd = entry["dice"]["min"], entry["hd95_mm"]["mean"], entry["nsd"]["mean"]
    return f"{dice:.3f} | {low:.3f} to {high:.3f} | {worst:.3f} | {hd95:.2f} | {nsd:.3f}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
