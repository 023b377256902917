"""Fingerprint, plan and preprocess a dataset with nnU-Net and with volseg, one after the other; compare the results.

    python benchmarks/preprocess.py /data/Task04_Hippocampus --nnunet /opt/nnunet/bin --work /tmp/preprocess
    python benchmarks/preprocess.py /tmp/ct --phantoms 12 --nnunet /opt/nnunet/bin --work /tmp/preprocess

nnU-Net (``nnunetv2``) may live in an environment of its own, whose ``bin`` is given. Both get the same number of worker
processes and plan for 8 GB; nnU-Net prepares 3d_fullres only. Memory is that of all processes together, what they share
counted once. Times are of this machine; the ratios carry over.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from itertools import count
from pathlib import Path

import blosc2
import numpy as np
from helpers.commands import measured, run
from nibabel.orientations import apply_orientation, io_orientation

from pipeline.core.volume import LabelMap
from pipeline.data.prepared_cases import prepared_ids, read_info
from pipeline.data.store import open_prepared
from pipeline.data.volumes import write_label_map, write_voxels
from pipeline.phantom.torso import phantom_case, phantom_labels
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.plan_file import read_plan, write_plan

NAME = "Dataset900_benchmark"
SLICES = 150  # of a phantom


def write_phantoms(folder: Path, cases: int) -> None:
    """CT phantoms of 512 x 512 x 150 voxels, turned to RAS because nnU-Net leaves axes as they lie."""
    there = sorted((folder / "labelsTr").glob("*.nii.gz"))
    written = len(there)
    for index in count(int(there[-1].name[3:6]) + 1 if there else 0):
        if written >= cases:
            break
        case = phantom_case(index, size="full")
        image, label = case.image.reoriented("RAS"), case.reference.reoriented("RAS")
        shape, start = image.grid.shape, (image.grid.shape[2] - SLICES) // 2
        if start < 0:
            continue
        grid = image.grid.cropped((0, 0, start), (*shape[:2], start + SLICES))
        part = slice(start, start + SLICES)
        voxels = image.array[0, ..., part].astype(np.int16)  # as scanners store them
        write_voxels(voxels, grid, folder / "imagesTr" / f"ct_{index:03d}_0000.nii.gz")
        write_label_map(LabelMap(label.array[..., part], grid), folder / "labelsTr" / f"ct_{index:03d}.nii.gz")
        written += 1
    names = phantom_labels().names
    labels = {"background": 0, **{name: value for value, name in names.items()}}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def with_their_statistics(ours: Path, preprocessed: Path) -> Path | None:
    """Our plan with nnU-Net's CT statistics, as both tools look at randomly chosen voxels; None if there is no CT."""
    plan = read_plan(ours / "plan.yaml")
    if all(entry.scheme != "ct" for entry in plan.normalization):
        return None
    found = json.loads((preprocessed / "nnUNetPlans.json").read_text())["foreground_intensity_properties_per_channel"]
    chosen = []
    for channel, entry in enumerate(plan.normalization):
        names = {"mean": "mean", "sd": "std", "low": "percentile_00_5", "high": "percentile_99_5"}
        values = {name: found[str(channel)][theirs] for name, theirs in names.items()}
        chosen.append(entry.model_copy(update=values) if entry.scheme == "ct" else entry)
    path = ours.with_name("same_plan.yaml")
    write_plan(plan.model_copy(update={"normalization": tuple(chosen)}), path)
    return path


def differences(preprocessed: Path, ours: Path) -> str:
    """The largest difference of the images and the share of equal labels over all cases, as a sentence."""
    back = np.argsort(json.loads((preprocessed / "nnUNetPlans.json").read_text())["transpose_forward"])
    worst, beyond, equal, voxels, unequal_shapes = 0.0, 0, 0, 0, 0
    for case in prepared_ids(ours):
        image, label = open_prepared(ours, case)
        turns = io_orientation(GridHistory.from_json(read_info(ours, case)["trace"]).source.affine)
        files = (preprocessed / "nnUNetPlans_3d_fullres" / f"{case}{end}.b2nd" for end in ("", "_seg"))
        their_image, their_label = (
            np.stack([apply_orientation(part.transpose(back).T, turns) for part in stored(path)]) for path in files
        )
        if their_image.shape != image.shape:
            unequal_shapes += 1
            continue
        difference = np.abs(image[...] - their_image)
        worst, beyond = max(worst, float(difference.max())), beyond + int((difference > 1e-3).sum())
        equal += int((label[...] == np.maximum(their_label[0], 0)).sum())  # theirs marks the border it masks with -1
        voxels += their_label.size
    return (
        f"images differ by at most {worst:.1e}, {beyond} values by more than 1e-3; {equal / voxels:.4%} of labels are "
        f"equal; {unequal_shapes} cases differ in shape"
    )


def stored(path: Path) -> np.ndarray:
    """An array of nnU-Net's store, its first axis the channel."""
    return np.asarray(blosc2.open(str(path), mode="r")[...])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--nnunet", type=Path, default=Path(sys.executable).parent, help="folder of its commands")
    parser.add_argument("--work", type=Path, default=Path("preprocess_benchmark"))
    parser.add_argument("--phantoms", type=int, default=0, help="first write so many CT phantoms as the dataset")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    work = chosen.work.resolve()
    if chosen.phantoms:
        write_phantoms(chosen.dataset, chosen.phantoms)
    folders = {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
    volseg = [sys.executable, "-m", "pipeline"]
    environment = {**os.environ, **folders}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    raw, preprocessed, ours = work / "raw" / NAME, work / "preprocessed" / NAME, work / "ours"
    shutil.rmtree(raw, ignore_errors=True)
    run([*volseg, "convert", str(chosen.dataset), "-o", str(raw), "--to", "nnunet"], environment)
    command = [str(chosen.nnunet / "nnUNetv2_plan_and_preprocess"), "-d", NAME[7:10], "-c", "3d_fullres"]
    theirs = measured([*command, "-np", str(chosen.jobs)], environment, preprocessed)
    command = [*volseg, "preprocess", str(raw), "-o", str(ours), "--jobs", str(chosen.jobs)]
    mine = measured([*command, "--set", "preprocess.memory_gb=8"], environment, ours)
    print(f"{chosen.dataset.name}, {len(prepared_ids(ours))} cases, {chosen.jobs} processes")
    print("| tool | wall s | CPU s | peak MB |\n|---|---|---|---|")
    for name, cost in (("nnU-Net", theirs), ("volseg", mine)):
        print(f"| {name} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_mb:.0f} |")
    ratios = [theirs.wall_s / mine.wall_s, theirs.cpu_s / mine.cpu_s, theirs.peak_mb / mine.peak_mb]
    print("| ratio | " + " | ".join(f"{ratio:.1f}" for ratio in ratios) + " |")
    plan = with_their_statistics(ours, preprocessed)
    if plan is not None:
        ours = work / "same_plan"
        shutil.rmtree(ours, ignore_errors=True)
        run([*volseg, "preprocess", str(raw), "-o", str(ours), "--plan", str(plan)], environment)
    print(differences(preprocessed, ours))


if __name__ == "__main__":
    main()
