"""nnU-Net and volseg on one dataset, prepared by the same plan and trained for a given time; what ``train.py`` runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from helpers.commands import Cost, run
from helpers.nnunet_tool import WATCH_S, NnUNet

from pipeline.preprocess.plan_file import read_plan

VOLSEG = [sys.executable, "-m", "pipeline"]
CONFIG = Path(__file__).parents[2] / "configs" / "nnunet.yaml"
"""nnU-Net's network: instance norm, biases, strides, deep supervision, the plan's stages."""
RECIPE = (
    "train.optimizer=adamw",
    "train.learning_rate=2e-3",
    "train.weight_decay=1e-2",
    "train.schedule=onecycle",
    "train.ema_decay=0.98",
    "infer.mirror=false",
)
"""How volseg trains it: optimizer, schedule and moving average of configs/hippocampus.yaml."""


class Bench:
    """The two tools on one dataset.

    Args:
        dataset: Folder in any layout that ``volseg convert`` reads.
        nnunet: Folder of nnU-Net's commands.
        work: Folder of everything that is written; as preprocess.py makes it.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, dataset: Path, nnunet: Path, work: Path, device: str) -> None:
        self.dataset, self.work, self.device = dataset, work.resolve(), device
        self.tool = NnUNet(nnunet, self.work, device=device)
        self.environment, self.raw = self.tool.environment, self.tool.raw
        self.prepared, self.runs = self.work / "ours", self.work / "runs"

    @property
    def batch(self) -> int:
        """Patches per batch."""
        return read_plan(self.prepared / "plan.yaml").patch_3d.batch_size

    def prepare(self) -> None:
        """Prepare the dataset for both where that is not done; nnU-Net gets volseg's folds."""
        self.tool.convert(self.dataset)
        self.tool.plan()
        command = [*VOLSEG, "preprocess", str(self.raw), "-o", str(self.prepared), "--set", "preprocess.memory_gb=8"]
        run(command, self.environment)
        folds = json.loads((self.prepared / "splits.json").read_text())
        self.tool.write_folds((fold["train"], fold["validation"]) for fold in folds)
        planned = self.tool.planned
        own = read_plan(self.prepared / "plan.yaml").patch_3d
        turned = tuple(reversed(planned["patch_size"]))  # nnU-Net names the last axis of a file first
        if (tuple(own.patch_size), own.batch_size) != (turned, planned["batch_size"]):
            sys.exit(f"plans: expected the same patch and batch, got {own} and nnU-Net's {planned}.")

    def nnunet(self, name: str, workers: int, **clock: Any) -> tuple[Path, Cost]:
        """Train nnU-Net by the clock of ``nnunet_training.py``; the folder with what it noted, and its cost."""
        folder = self._fresh(name)
        return folder, self.tool.train(folder, workers, **clock)

    def volseg(self, name: str, *settings: str, prepared: Path | None = None) -> tuple[Path, Cost]:
        """Train volseg by ``RECIPE`` and further settings; the model folder and its cost."""
        folder = self._fresh(name)
        words = ["train", str(prepared or self.prepared), "-o", str(folder), "-c", str(CONFIG)]
        words += ["--device", self.device]
        words += [word for text in (*RECIPE, *settings) for word in ("--set", text)]
        return folder, run([*VOLSEG, *words], self.environment, every_s=WATCH_S)

    def facts(self, name: str) -> dict[str, Any]:
        """Parameters, patch and batch that one of nnU-Net's trainings had."""
        found: dict[str, Any] = json.loads((self.runs / name / "run.json").read_text())
        return found

    def validation_files(self) -> tuple[Path, Path]:
        """Folders with images and references of fold 0's validation cases."""
        cases = json.loads((self.prepared / "splits.json").read_text())[0]["validation"]
        images, references = self._fresh("images"), self._fresh("references")
        for case in cases:
            for image in (self.raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz"):
                shutil.copy(image, images)
            shutil.copy(self.raw / "labelsTr" / f"{case}.nii.gz", references)
        return images, references

    def score_checkpoints(self, images: Path, references: Path) -> dict[float, float]:
        """Seconds of training → Dice of every checkpoint of nnU-Net's last training."""
        found = {}
        for checkpoint in sorted(self.tool.results.glob("fold_0/checkpoint_[0-9]*.pth")):
            masks = self._fresh("masks")
            self.tool.predict(images, masks, "-chk", checkpoint.name, "--disable_tta")
            found[float(checkpoint.stem.removeprefix("checkpoint_"))] = self._dice(masks, references)
        return found

    def score_model(self, model: Path, images: Path, references: Path) -> float:
        """Dice of the masks of a model of volseg."""
        masks = self._fresh("masks")
        words = ["predict", str(model), str(images), "-o", str(masks), "--device", self.device]
        run([*VOLSEG, *words], self.environment)
        return self._dice(masks, references)

    def _dice(self, masks: Path, references: Path) -> float:
        """Mean over foreground classes of their mean over cases."""
        scores = self._fresh("scores")
        run([*VOLSEG, "evaluate", str(masks), str(references), "-o", str(scores)], self.environment)
        organs = json.loads((scores / "summary.json").read_text())["organs"].values()
        return float(sum(organ["dice"]["mean"] for organ in organs) / len(organs))

    def _fresh(self, name: str) -> Path:
        folder = self.runs / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder
