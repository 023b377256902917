"""Models trained by nnU-Net, imported: our masks against those of ``nnUNetv2_predict`` on the same images; a table.

    python benchmarks/nnunet_models.py --nnunet NNUNET_ENVIRONMENT/bin --work /tmp/models

Trains each kind of model a few steps with nnU-Net itself (an environment of its own, see ``helpers/nnunet_tool.py``) on
made-up volumes, predicts new volumes with it, mirrored and not, imports the model and predicts them again. ``--only``
chooses kinds. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from helpers.commands import run

from pipeline.interop.nnunet import import_nnunet
from pipeline.stages.predict import Predictor

TRAIN, NEW = 6, 2  # cases
ORIENTATIONS = ("LPS", "RAS", "SAR", "PIL")
"""Files lie in several ways; nnU-Net's networks see them as they lie."""


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Args:
        stages: Configurations, of a cascade both.
        folds: Folds to train, and to average in prediction.
        channels: Names, which choose the normalization.
        labels: As in ``dataset.json``.
        spacing: Of the files, about.
        planner: nnU-Net's planner.
        changes: Of patch, kernel and stride.
        steps: Of each training.
        more: Further keys of ``dataset.json``.
    """

    stages: tuple[str, ...] = ("3d_fullres",)
    folds: tuple[int | str, ...] = (0,)
    channels: tuple[str, ...] = ("MR",)
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "ball": 1, "box": 2})
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    planner: str = "ExperimentPlanner"
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int = 120
    more: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "plain 2D": Kind(stages=("2d",), steps=400),  # it needs longer to tell the organs apart
    "plain 3D": Kind(),
    "ResEnc 3D": Kind(planner="nnUNetPlannerResEncM"),
    "anisotropic": Kind(
        channels=("CT",),
        spacing=(1.0, 1.0, 4.0),
        changes={"patch_3d": [8, 32, 32], "kernel": [1, 3, 3], "stride": [1, 2, 2]},
    ),
    "regions": Kind(labels={"background": 0, "both": [1, 2], "box": [2]}, more={"regions_class_order": [1, 2]}),
    "ignore label": Kind(labels={"background": 0, "ball": 1, "box": 2, "ignore": 3}),
    "cascade": Kind(stages=("3d_lowres", "3d_cascade_fullres"), folds=("all",)),
    "two channels": Kind(channels=("MR", "rescale_to_0_1")),
    "five folds": Kind(folds=(0, 1, 2, 3, 4), steps=80),
}


def case(index: int, kind: Kind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright ball and a brighter box in a body of noise, zeros around it: channels, labels, spacing."""
    rng = np.random.default_rng(index)
    spacing = np.array(kind.spacing) * rng.uniform(0.85, 1.15, 3)
    shape = tuple(round(float(n)) for n in rng.integers(42, 50, 3) / np.array(kind.spacing) ** 0.5)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * np.array(kind.spacing)
    size = np.array(shape) * np.array(kind.spacing)
    labels, array = np.zeros(shape, np.uint8), rng.normal(1.0, 0.25, shape)
    ball = ((places - size * rng.uniform(0.3, 0.4, 3)) ** 2).sum(-1) <= (size.min() * rng.uniform(0.18, 0.24)) ** 2
    box = (abs(places - size * rng.uniform(0.62, 0.7, 3)) <= size * rng.uniform(0.12, 0.18, 3)).all(-1)
    for value, mask, shift in ((1, ball, 1.2), (2, box, 2.6)):
        labels[mask] = value
        array[mask] += shift
    if "ignore" in kind.labels:
        labels[:, :, : shape[2] // 8] = 3
    body = ((places / size - 0.5) ** 2).sum(-1) <= 0.24
    channels = [array, 0.5 * array + rng.normal(0, 0.2, shape)][: len(kind.channels)]
    if "CT" in kind.channels:  # air of a CT is not 0
        return np.stack([np.where(body, 400 * c - 350, -1000) for c in channels]), labels * body, spacing
    return np.stack([np.where(body, 100 * c.clip(0.01), 0) for c in channels]), labels * body, spacing


def write(array: np.ndarray, spacing: np.ndarray, codes: str, path: Path) -> None:
    """A file whose axes run as the codes say."""
    one, other = (nib.orientations.axcodes2ornt(axes) for axes in ("RAS", codes))
    plain = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
    nib.save(plain.as_reoriented(nib.orientations.ornt_transform(one, other)), path)


def write_cases(raw: Path, kind: Kind) -> None:
    """The raw dataset of nnU-Net, and new images in ``imagesTs``."""
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    for index in range(TRAIN + NEW):
        channels, labels, spacing = case(index, kind)
        name, part = f"case_{index:02}", "imagesTr" if index < TRAIN else "imagesTs"
        codes = ORIENTATIONS[index % 4] if kind.spacing[2] == 1 else "LPS"
        for number, channel in enumerate(channels):
            write(channel.astype(np.float32), spacing, codes, raw / part / f"{name}_{number:04}.nii.gz")
        if index < TRAIN:
            write(labels, spacing, codes, raw / "labelsTr" / f"{name}.nii.gz")
    content = {
        "channel_names": {str(n): name for n, name in enumerate(kind.channels)},
        "labels": kind.labels,
        "numTraining": TRAIN,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content | kind.more))


def make(name: str, kind: Kind, nnunet: Path, work: Path) -> None:
    """Let nnU-Net train the model and predict with it."""
    folders = {part: work / part for part in ("raw", "preprocessed", "results")}
    raw = folders["raw"] / f"Dataset900_{name.replace(' ', '_')}"
    write_cases(raw, kind)
    environment = {**os.environ, **{f"nnUNet_{part}": str(folder) for part, folder in folders.items()}}
    environment |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    wanted = {
        "id": 900,
        "planner": kind.planner,
        "stages": kind.stages,
        "folds": kind.folds,
        "steps": kind.steps,
        "changes": {"patch_3d": [24, 24, 24]} | kind.changes,
        "images": str(raw / "imagesTs"),
        "out": str(work / "theirs"),
    }
    script = str(Path(__file__).parent / "helpers" / "nnunet_made.py")
    run([str(nnunet / "python"), script, json.dumps(wanted)], environment)


def ours(name: str, kind: Kind, work: Path, views: str) -> Path:
    """Masks of the imported model."""
    import_nnunet(next((work / "results").glob(f"*/*__{kind.stages[-1]}")), work / "model")
    raw, out = next((work / "raw").iterdir()), work / "ours" / views
    words = [f"infer.mirror={str(views == 'mirrored').lower()}"]
    batch = Predictor.load(work / "model", device="cpu", settings=words).predict_files(raw / "imagesTs", out)
    if batch.failed:
        raise SystemExit(f"{name}: {batch.failed}")
    return out


def compare(name: str, kind: Kind, work: Path) -> None:
    """Print a line for mirrored and one for plain prediction: equal voxels, and Dice of both organs over all cases."""
    for views in ("mirrored", "plain"):
        theirs, found = work / "theirs" / views / kind.stages[-1], ours(name, kind, work, views)
        pairs = []
        for file in sorted(theirs.glob("*.nii.gz")):
            (mine,) = found.glob(f"{file.name.removesuffix('.nii.gz')}*.nii.gz")
            pairs.append([np.asanyarray(nib.load(path).dataobj) for path in (file, mine)])
        voxels = sum(one.size for one, _ in pairs)
        wrong = sum(int((one != other).sum()) for one, other in pairs)
        dice, sizes = [], []
        for value in (1, 2):
            both = sum(int(((one == value) & (other == value)).sum()) for one, other in pairs)
            all_of = sum(int((one == value).sum() + (other == value).sum()) for one, other in pairs)
            dice.append(f"{2 * both / all_of:.5f}" if all_of else "none found")
            sizes.append(sum(int((one == value).sum()) for one, _ in pairs))
        share = f"{100 * (voxels - wrong) / voxels:9.4f} % {wrong:5} of {voxels}"
        print(f"{name:14} {views:9} {share}  Dice {' '.join(dice)}  of {sizes} voxels", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet", type=Path, required=True, help="Folder of the programs of nnU-Net's environment.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    chosen = parser.parse_args()
    for name in chosen.only:
        home = chosen.work.resolve() / name.replace(" ", "_")
        if not (home / "theirs" / "plain").is_dir():
            make(name, KINDS[name], chosen.nnunet.resolve(), home)
        compare(name, KINDS[name], home)


if __name__ == "__main__":
    main()
