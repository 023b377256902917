"""nnU-Net as a tool beside volseg: its folders, its plan, its training by a clock, its masks.

Its commands are those of an environment of its own, with torch 2.13.0 and nnunetv2 2.8.1 (``pip install`` them there).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.commands import Cost, run

NAME = "Dataset900_benchmark"
WATCH_S = 5.0  # between two looks at memory: seldom enough to cost nothing
PLANS = "nnUNetPlans"


class NnUNet:
    """nnU-Net in folders of its own.

    Args:
        bin: Folder of its commands.
        work: Folder of its raw and its prepared data.
        results: Folder of its models; by default beside them.
        configuration: ``3d_fullres`` or ``2d``.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        bin: Path,
        work: Path,
        *,
        results: Path | None = None,
        configuration: str = "3d_fullres",
        device: str = "cpu",
    ) -> None:
        self.bin, self.configuration, self.device = bin.resolve(), configuration, device
        folders = {f"nnUNet_{part}": work.resolve() / part for part in ("raw", "preprocessed")}
        folders["nnUNet_results"] = (results or work / "results").resolve()
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        # What its compiler makes is for GPUs.
        own = {"nnUNet_compile": "f"} if device == "cpu" else {}
        self.environment = {**os.environ, **own, **{name: str(folder) for name, folder in folders.items()}}
        self.raw, self.preprocessed = (folders[f"nnUNet_{part}"] / NAME for part in ("raw", "preprocessed"))
        self.results = folders["nnUNet_results"] / NAME / f"nnUNetTrainer__{PLANS}__{configuration}"

    def convert(self, dataset: Path) -> None:
        """Write volumes as a raw dataset with ``volseg convert``, where that is not done."""
        if not (self.raw / "dataset.json").is_file():
            command = [sys.executable, "-m", "pipeline", "convert", str(dataset), "-o", str(self.raw)]
            run([*command, "--to", "nnunet"], self.environment)

    def convert_pictures(self, dataset: Path, channels: tuple[str, ...]) -> None:
        """Write PNG images as a raw dataset as they are, for nnU-Net's own reader of natural images."""
        for part, folder in (("Tr", "images"), ("Ts", "imagesTs")):
            (self.raw / f"images{part}").mkdir(parents=True, exist_ok=True)
            for image in (dataset / folder).glob("*.png"):
                # One file has all channels of a colour image.
                shutil.copy(image, self.raw / f"images{part}" / f"{image.stem}_0000.png")
        shutil.copytree(dataset / "labels", self.raw / "labelsTr", dirs_exist_ok=True)
        content = {
            "channel_names": dict(enumerate(channels)),
            "labels": json.loads((dataset / "labels.json").read_text())["labels"],
            "numTraining": len(list((dataset / "labels").iterdir())),
            "file_ending": ".png",
        }
        (self.raw / "dataset.json").write_text(json.dumps(content))

    def plan(self, processes: int | None = None) -> None:
        """Measure, plan and prepare the raw dataset where that is not done."""
        if not (self.preprocessed / f"{PLANS}_{self.configuration}").is_dir():
            command = [str(self.bin / "nnUNetv2_plan_and_preprocess"), "-d", NAME[7:10], "-c", self.configuration]
            command += ["-npfp", str(processes), "-np", str(processes)] if processes else []
            run(command, self.environment)

    @property
    def planned(self) -> dict[str, Any]:
        """What the plan says of the configuration."""
        plans = json.loads((self.preprocessed / f"{PLANS}.json").read_text())
        found: dict[str, Any] = plans["configurations"][self.configuration]
        return found

    def write_folds(self, folds: Iterable[tuple[Iterable[str], Iterable[str]]]) -> None:
        """Give it folds, each the cases that train and those that validate."""
        content = [{"train": list(train), "val": list(validation)} for train, validation in folds]
        (self.preprocessed / "splits_final.json").write_text(json.dumps(content))

    def train(self, folder: Path, workers: int, **clock: Any) -> Cost:
        """Train fold 0 anew by the clock of ``nnunet_training.py``, which notes what it does in the folder."""
        shutil.rmtree(self.results, ignore_errors=True)
        settings = {"dataset": NAME, "configuration": self.configuration, "device": self.device, "folder": str(folder)}
        script = str(Path(__file__).with_name("nnunet_training.py"))
        command = [str(self.bin / "python"), script, json.dumps(settings | clock)]
        return run(command, {**self.environment, "nnUNet_n_proc_DA": str(workers)}, every_s=WATCH_S)

    def predict(self, images: Path, masks: Path, *words: str) -> Cost:
        """Predict a folder of images by fold 0."""
        command = [str(self.bin / "nnUNetv2_predict"), "-i", str(images), "-o", str(masks), "-d", NAME[7:10]]
        command += ["-c", self.configuration, "-f", "0", "-device", self.device, *words]
        return run(command, self.environment)
