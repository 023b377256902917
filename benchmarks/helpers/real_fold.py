"""One fold of a real set in its work folder: without its test cases, prepared for a tool, its masks scored."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.nnunet_tool import NnUNet
from helpers.scores import (
    exchanged,
    image_scores,
    membrane_scores,
    organ_scores,
    read_labels,
    read_probability,
    renumbered,
    require_same_grid,
)
from helpers.splits import SETS, case_id, hold_out, label_names, split_of, write_folds
from helpers.volseg import history, timed

MEASURED_STEPS = 20

Cases = dict[str, dict[str, float]]
"""Case → score → value."""


class RealFold:
    """One fold of a set.

    Args:
        name: Of the set.
        dataset: All of it.
        number: Which of its folds tests.
        work: Folder of the set's folds.
    """

    def __init__(self, name: str, dataset: Path, number: int, work: Path) -> None:
        self.kind, self.number, self.work = SETS[name].scores, number, work / f"fold_{number}"
        self.split, self.names = split_of(name, dataset, number), label_names(dataset)
        self.dataset = self.work / "dataset"
        noted, split = self.work / "split.json", json.dumps(vars(self.split))
        if not noted.is_file():
            hold_out(dataset, self.split.test, self.dataset)
            noted.write_text(split)  # last: all of it is there
        elif noted.read_text() != split:
            sys.exit(f"{noted}: expected the split of this set, got another one. Give another --work.")
        self.references = {case_id(file): file for file in (self.dataset / "labelsTs").iterdir()}
        self._prepared: set[Path] = set()

    def prepared(self, config: Path | None) -> Path:
        """The dataset as volseg prepares it by a config, or without one."""
        folder = self.work / f"prepared_{config.stem if config else 'no_config'}"
        if folder not in self._prepared:
            timed("preprocess", self.dataset, "-o", folder, *(("-c", config) if config else ()))
            write_folds(self.split, folder)
            self._prepared.add(folder)
        return folder

    def volseg(self, config: Path | None, folder: Path, *keys: str) -> dict[str, Any]:
        """Train volseg in a folder or go on with it, predict the test cases, and score the masks.

        Args:
            config: Its recipe.
            folder: Where model and masks go.
            keys: Settings over those of the recipe, ``section.key=value``.

        Returns:
            ``steps``, ``trained_s`` (validations left out) and ``cases``.
        """
        prepared, model = self.prepared(config), folder / "model"
        words = [*(("-c", config) if config else ()), *(word for key in keys for word in ("--set", key))]
        timed("train", prepared, "-o", model, *words)
        epochs = history(model)
        seconds = sum(float(epoch["seconds"]) for epoch in epochs)
        return {"steps": int(epochs[-1]["iteration"]), "trained_s": seconds, "cases": self.predicted(model, folder)}

    def step_s(self, config: Path | None, folder: Path, *keys: str) -> float:
        """Seconds of a step of volseg, without those of the first epoch."""
        shutil.rmtree(folder, ignore_errors=True)
        lengths = ("train.epochs=2", f"train.iterations_per_epoch={MEASURED_STEPS}", "train.validate_every=2")
        words = [*(("-c", config) if config else ())]
        words += [word for key in (*keys, *lengths, "train.validation_cases=1") for word in ("--set", key)]
        timed("train", self.prepared(config), "-o", folder, *words)
        return float(history(folder)[-1]["seconds"]) / MEASURED_STEPS

    def predicted(self, model: Path, folder: Path) -> Cases:
        """Scores of the test cases as a model of volseg predicts them into a folder."""
        masks = folder / "masks"
        shutil.rmtree(masks, ignore_errors=True)
        soft = ("--probabilities", self.names[1]) if self.kind == "membranes" else ()
        timed("predict", model, self.dataset / "imagesTs", "-o", masks, *soft)
        return self.score(masks, {})

    def nnunet(self, commands: Path, folder: Path, workers: int, **clock: Any) -> dict[str, Any]:
        """Train nnU-Net in a folder, predict the test cases, and score the masks; as :meth:`volseg`.

        Args:
            commands: Folder of nnU-Net's commands.
            folder: Where model and masks go.
            workers: Processes that augment.
            clock: As ``nnunet_training.py`` takes it.
        """
        tool, noted, masks = self.prepared_nnunet(commands, folder / "results"), folder / "noted", folder / "masks"
        for place in (noted, masks):
            shutil.rmtree(place, ignore_errors=True)
        noted.mkdir(parents=True)
        tool.train(noted, workers, **clock)
        words = ["--save_probabilities"] if self.kind == "membranes" else []
        tool.predict(tool.raw / "imagesTs", masks, "-npp", "1", "-nps", "1", *words)
        record = tool.raw / "conversion.json"
        changed = json.loads(record.read_text()).get("renumbered_labels", {}) if record.is_file() else {}
        last = (noted / "iterations.csv").read_text().splitlines()[-1].split(",")
        found: dict[str, Any] = {"steps": int(last[0]), "trained_s": float(last[1])}
        return found | {"cases": self.score(masks, {new: int(old) for old, new in changed.items()})}

    def prepared_nnunet(self, commands: Path, results: Path) -> NnUNet:
        """nnU-Net with the dataset planned and prepared, and a folder for its models."""
        configuration = "3d_fullres" if self.kind == "organs" else "2d"
        tool = NnUNet(commands, self.work / "nnunet", results=results, configuration=configuration)
        if self.kind == "organs":
            tool.convert(self.dataset)
        else:
            colour = read_labels(next((self.dataset / "imagesTs").iterdir())).ndim == 3
            tool.convert_pictures(self.dataset, ("R", "G", "B") if colour else ("grey",))
        tool.plan(processes=1)
        tool.write_folds([(self.split.train, self.split.validation)])
        return tool

    def score(self, masks: Path, values: Mapping[int, int]) -> Cases:
        """Scores of every test case; ``values`` are those that a tool calls otherwise: its own → the reference's."""
        found: Cases = {}
        for case, file in sorted(self.references.items()):
            mask = masks / file.name
            if not mask.is_file():
                sys.exit(f"{mask}: expected a mask of every test case, got none.")
            require_same_grid(mask, file)
            prediction, reference = renumbered(read_labels(mask), values), read_labels(file)
            if self.kind == "organs":
                own = organ_scores(prediction, reference, self.names)
                sides = exchanged(prediction, reference, self.names)
                found[case] = {f"dice {name}": value for name, value in own.items()}
                found[case] |= {f"exchanged {name}": value for name, value in sides.items()}
            elif self.kind == "membranes":
                found[case] = membrane_scores(prediction, read_probability(masks, case), reference)
            else:
                found[case] = image_scores(prediction, reference)
        return found
