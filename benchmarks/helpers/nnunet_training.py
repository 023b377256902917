"""nnU-Net's training with a clock; ``nnunet_tool.py`` runs it with the Python of nnU-Net's environment.

    python nnunet_training.py '{"dataset": "Dataset900_x", "device": "cpu", "folder": ".", "seconds": 60}'

Nothing of nnU-Net is changed. The training ends after so many ``seconds`` or ``steps``. ``folder`` receives
``run.json``, ``iterations.csv`` and ``epochs.csv``, and nnU-Net's folder of results a checkpoint every ``every_s``
seconds of training, if that is given. ``iterations`` (per epoch) and ``epochs`` make another schedule than its own; so
does ``fall``, by which the learning rate falls as in its own, but within the seconds or steps. ``configuration`` is
``3d_fullres`` if it is not given, and ``seed`` that of the first weights and of what this process draws.

Only training counts as time: from the end of one step to the end of the next, waiting for the batch included. Saving
and nnU-Net's validation after each epoch do not count, though its workers go on filling the queue of batches meanwhile.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

POLY_POWER = 0.9  # of nnU-Net's poly schedule


class TimeIsUp(Exception):  # noqa: N818 - it is no error
    """The training has had its time."""


class TimedTrainer(nnUNetTrainer):
    """nnU-Net's own training, which notes every iteration and ends at the given time."""

    clock: ClassVar[dict[str, Any]] = {}
    """Set before a trainer is made; its own arguments must be those of nnU-Net's, which looks at their names."""

    def run_training(self) -> None:
        """Train until the time is up."""
        self.folder, self.every_s = Path(self.clock["folder"]), self.clock.get("every_s", math.inf)
        self.trained_s, self.done, self.saved = 0.0, 0, 0
        if "iterations" in self.clock:
            self.num_iterations_per_epoch, self.num_epochs = self.clock["iterations"], self.clock["epochs"]
            self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)  # as nnU-Net's 50 for 250
        self._note("iterations.csv", "iteration", "trained_s", "step_s", "wait_s", "loss")
        self._note("epochs.csv", "epoch", "trained_s", "pseudo_dice")
        try:
            super().run_training()
        except TimeIsUp:
            self.on_train_end()

    def on_train_start(self) -> None:
        """Say what is trained."""
        super().on_train_start()
        facts = {
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "patch": list(self.configuration_manager.patch_size),
            "batch": self.batch_size,
        }
        (self.folder / "run.json").write_text(json.dumps(facts))

    def on_train_epoch_start(self) -> None:
        """Start the clock again."""
        super().on_train_epoch_start()
        self.last = time.monotonic()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step, which fetches its loss and so has waited for the device."""
        began = time.monotonic()
        if self.clock.get("fall"):
            seconds, steps = (self.clock.get(key, math.inf) for key in ("seconds", "steps"))
            left = 1 - max(self.trained_s / seconds, self.done / steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * left**POLY_POWER
        result: dict[str, Any] = super().train_step(batch)
        ended = time.monotonic()
        self.trained_s, self.done = self.trained_s + ended - self.last, self.done + 1
        times = (f"{self.trained_s:.3f}", f"{ended - self.last:.4f}", f"{began - self.last:.4f}")
        self._note("iterations.csv", self.done, *times, f"{float(result['loss']):.5f}")
        if self.trained_s >= (self.saved + 1) * self.every_s:
            self.saved += 1
            self.save_checkpoint(str(Path(self.output_folder) / f"checkpoint_{self.trained_s:07.0f}.pth"))
        if self.trained_s >= self.clock.get("seconds", math.inf) or self.done >= self.clock.get("steps", math.inf):
            raise TimeIsUp
        self.last = time.monotonic()
        return result

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Note the pseudo Dice, that of validation patches."""
        super().on_validation_epoch_end(val_outputs)
        dice = self.logger.get_value("mean_fg_dice", step=-1)
        self._note("epochs.csv", self.current_epoch + 1, f"{self.trained_s:.1f}", f"{dice:.4f}")

    def _note(self, name: str, *cells: object) -> None:
        with (self.folder / name).open("a") as stream:
            stream.write(",".join(map(str, cells)) + "\n")


def main() -> None:
    """Train fold 0, as ``nnUNetv2_train`` does, which would look for the trainer among all that it can import."""
    clock = json.loads(sys.argv[1])
    TimedTrainer.clock = clock
    TimedTrainer.__name__ = nnUNetTrainer.__name__  # checkpoints name their trainer: nnU-Net predicts with its own
    home = Path(nnUNet_preprocessed) / clock["dataset"]
    plans = {**json.loads((home / "nnUNetPlans.json").read_text()), "continue_training": False}
    description = json.loads((home / "dataset.json").read_text())
    torch.backends.cudnn.benchmark = clock["device"] == "cuda"
    if "seed" in clock:
        torch.manual_seed(clock["seed"])
        random.seed(clock["seed"])
        np.random.seed(clock["seed"])  # noqa: NPY002 - what its augmentation draws from
    configuration, device = clock.get("configuration", "3d_fullres"), torch.device(clock["device"])
    TimedTrainer(plans, configuration, 0, description, device).run_training()


if __name__ == "__main__":
    main()
