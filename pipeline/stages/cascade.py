"""The first stage of a cascade: where it lies, and what it found in the cases that its second stage trains on.

``PREPARED/low_resolution`` is a prepared dataset and ``MODEL/low_resolution`` a model folder, each in its own right.
``MODEL/low_resolution/stage_maps`` holds the first stage's labels of every case on the second stage's grid, each made
by the fold that did not train on the case: on cases it knows, a network is better than it will be on new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import file_hash, remove_leftovers, text_hash
from pipeline.data.prepared_cases import prepared_ids, read_info
from pipeline.data.store import open_prepared, stage_map_hash, write_stage_map
from pipeline.infer.segment import labels_on
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import choose_device
from pipeline.model.folder import ModelCard, fold_folder, read_card, trained_folds
from pipeline.preprocess.plan_file import FIRST_STAGE, Plan
from pipeline.sample.folds import Fold
from pipeline.stages.model_files import PreparedFolds, alone_in, trained_on_others


@dataclass(frozen=True)
class FirstStage:
    """The first stage of a cascade, beside the second.

    Args:
        prepared: Prepared dataset of the second stage.
        out: Model folder of the second stage.
    """

    prepared: Path
    out: Path

    @property
    def data(self) -> Path:
        """Its prepared dataset."""
        return self.prepared / FIRST_STAGE

    @property
    def model(self) -> Path:
        """Its model folder."""
        return self.out / FIRST_STAGE

    @property
    def maps(self) -> Path:
        """Folder of what it found."""
        return self.model / "stage_maps"

    @cached_property
    def card(self) -> ModelCard:
        """Description of its model."""
        return read_card(self.model)

    @cached_property
    def fold_of(self) -> dict[str, int]:
        """Case → the fold that did not train on it; of several the first. Cases that only ever train are in none."""
        folds = PreparedFolds.read(self.data).folds
        return {case: n for n, fold in reversed(list(enumerate(folds))) for case in fold.validation}

    def require_same_folds(self, plan: Plan) -> None:
        """Refuse first-stage cases of another plan or with other folds than those of the second stage.

        Raises:
            VolsegError: If so, or if a training case is validated by no fold.
        """
        advice = "Run `volseg preprocess` again"
        if not prepared_ids(self.data):
            raise VolsegError(sentence("first stage", "prepared cases", "none", advice, file=self.data))
        first, second = PreparedFolds.read(self.data), PreparedFolds.read(self.prepared)
        if first.folds != second.folds:
            rule = f"the folds of {self.prepared / 'splits.json'}"
            raise VolsegError(sentence("splits.json", rule, "others", advice, file=self.data))
        others = first.prepared_by_others(first.folds, plan.first_stage())
        if others:
            rule, got = "cases prepared by low_resolution of plan.yaml", f"{len(others)} others, e.g. {others[0]}"
            raise VolsegError(sentence("first stage", rule, got, advice, file=self.data))
        alone = sorted({case for fold in first.folds for case in fold.train} - set(self.fold_of))
        if alone:
            rule, got = "every training case in some fold's validation", f"{len(alone)} in none, e.g. {alone[0]}"
            advice = "What the first stage found must come from a fold that did not train on the case: add folds"
            raise VolsegError(sentence("splits.json", rule, got, advice, file=self.prepared))

    def write_maps(self, plan: Plan, device: str | None, log: Callable[[str], None] = lambda text: None) -> None:
        """Predict every case by the fold that did not train on it, unless that is there already and unchanged.

        Args:
            plan: Of the second stage.
            device: Name of the device; by default the best there is.
            log: Called with a line if there is something to do.

        Raises:
            VolsegError: If a fold of the first stage is not trained to its end, or with another plan or other cases,
                its cases or folds are not those of the second stage, or a case is damaged.
        """
        self.require_same_folds(plan)
        wanted = sorted(set(self.fold_of.values()))
        there = trained_folds(self.model)
        if not set(wanted) <= set(there):  # weights are written when a training has ended
            asked, got = f"folds {', '.join(map(str, wanted))} to be trained", ", ".join(map(str, there)) or "none"
            advice = f"Run `volseg train {self.prepared} -o {self.out} --fold all`, which begins with it"
            raise VolsegError(sentence("first stage", asked, got, advice, file=self.model))
        if self.card.plan.content_hash != plan.first_stage().content_hash:  # it would see cases unlike those it knows
            rule, got = f"the plan of {self.data}", "another"
            raise VolsegError(sentence("first stage", rule, got, "Choose another model folder", file=self.model))
        others = trained_on_others(self.model, PreparedFolds.read(self.data), wanted)
        if others:
            rule, got = "folds trained on the cases as they are now", f"{', '.join(map(str, others))} trained on others"
            advice = f"Train it anew: `volseg train {self.data} -o {self.model} --fold all --restart`"
            raise VolsegError(sentence("first stage", rule, got, advice, file=self.model))
        with alone_in(self.maps, wait=True):  # trainings of several folds may begin at once
            self._write_maps(wanted, device, log)

    def _write_maps(self, wanted: Sequence[int], device: str | None, log: Callable[[str], None]) -> None:
        remove_leftovers(self.maps)
        hashes = {fold: self._model_hash(fold) for fold in wanted}
        wanted_hash = {case: self._map_hash(case, hashes[fold]) for case, fold in self.fold_of.items()}
        stale = {case for case, content_hash in wanted_hash.items() if stage_map_hash(self.maps, case) != content_hash}
        if stale:
            log(f"first stage: {len(stale)} cases are predicted, each by the fold that did not train on it")
        place = choose_device(device)
        for fold in sorted({self.fold_of[case] for case in stale}):
            network = TrainedModel.load(self.model, self.card, place, [fold])
            for case in sorted(case for case in stale if self.fold_of[case] == fold):
                shape = open_prepared(self.prepared, case)[1].shape
                image = np.asarray(open_prepared(self.data, case)[0][...])
                write_stage_map(self.maps, case, labels_on(network, image, shape), wanted_hash[case])

    def contents(self, split: Fold) -> str:
        """Content hash of what it found in the cases of a split."""
        return text_hash(*(str(stage_map_hash(self.maps, case)) for case in (*split.train, *split.validation)))

    def _model_hash(self, fold: int) -> str:
        weights = file_hash(fold_folder(self.model, fold) / "model.safetensors")
        card = self.card
        return text_hash(weights, card.network.model_dump_json(), card.settings.infer.model_dump_json())

    def _map_hash(self, case: str, model_hash: str) -> str:
        """Of the network, of the case as it sees it, and of the grid of the second stage."""
        return text_hash(
            model_hash, *(str(read_info(folder, case).get("hash")) for folder in (self.data, self.prepared))
        )


def first_stage(plan: Plan, prepared: Path, out: Path) -> FirstStage | None:
    """The first stage of what a plan describes; None if it is no cascade."""
    return FirstStage(prepared, out) if plan.cascade else None
