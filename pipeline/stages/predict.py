"""From images to label maps on their own grids: load a model once, segment images and files."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.config.settings import InferSettings
from pipeline.config.yaml_file import load_settings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import text_hash
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable, keep_values
from pipeline.core.machine import keep_freed_memory, large_pages
from pipeline.core.signals import STOPS, Progress, silent
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.prediction_inputs import DicomWanted, Inputs, find_inputs
from pipeline.data.volume_file import volume_suffix
from pipeline.engine.local import Batch
from pipeline.engine.overlapped import overlapped
from pipeline.infer.accumulate import MANY_CLASSES
from pipeline.infer.cleaning import Cleaning, read_cleaning
from pipeline.infer.parts import joined_regions, paint_over, require_known_organs, settings_of_part
from pipeline.infer.probability_maps import SoftPrediction, SoftWanted
from pipeline.infer.segment import Prepared, SearchRegion, prepare_for, segment, segment_region, segment_softly
from pipeline.infer.trained_model import TrainedModel, with_room
from pipeline.model.device import choose_devices
from pipeline.model.folder import ModelCard, labels_of, member_folders, provenance, read_card, read_parts
from pipeline.model.zoo import model_folder
from pipeline.stages.prediction_files import (
    Output,
    case_paths,
    chosen_labels,
    prediction_entry,
    soft_organs,
    why_failed,
)
from pipeline.stages.prediction_folder import CaseRead, CaseSegmented, PredictionFolder, image_notes, notes_in_short


class Predictor:
    """A trained model, an ensemble of several, or one of several parts, ready to segment images and files.

    It may be used by several threads at the same time.

    Example:
        >>> predictor = Predictor.load("hippocampus")                 # doctest: +SKIP
        >>> label_map = predictor.predict(read_image("scan.nii.gz"))  # doctest: +SKIP
        >>> batch = predictor.predict_files(["scans"], "masks")       # doctest: +SKIP

    Args:
        models: At least one, all with the same channels; of several the probabilities are averaged, unless they are the
            parts of one, and so they have the same labels.
        extra: The further MONAI transforms that training data went through, if any.
        learnt: Cleaning of the masks that cross-validation found to help, beside what the settings ask for.
        folder: Where the models were loaded from.
        whole: If the models are parts of one, all its organs: a part's are those of the same names. The parts run one
            after the other, and later ones are painted over earlier ones.

    Raises:
        ConfigError: If the further transforms are not those of training.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        extra: Sequence[Any] = (),
        learnt: Cleaning | None = None,
        folder: Path | None = None,
        whole: LabelTable | None = None,
    ) -> None:
        self.models, self.extra, self.folder, self.whole = tuple(models), tuple(extra), folder, whole
        names = tuple(type(transform).__name__ for transform in extra)
        self.cleaning = learnt or Cleaning()
        for model in self.models:
            if names != model.card.plan.extra:
                rule, got = (", ".join(found) or "none" for found in (model.card.plan.extra, names))
                rule, advice = f"those of training ({rule})", "Give them as extra=[…]"
                raise ConfigError([sentence("further transforms", rule, got, advice)])
            self.cleaning = Cleaning.of(model.settings) | self.cleaning
        # Models whose plans prepare alike share the prepared image: for each model the first one like it.
        # In a cascade what is prepared is also what its own first stage finds.
        plans = [model.card.plan for model in self.models]
        if whole is not None:  # of parts: what each finds in an image changes nothing in it
            plans = [plan.model_copy(update={"labels": {}}) for plan in plans]
        recipes = [plan.content_hash for plan in plans] if len(plans) > 1 else [""]
        recipes = [recipe + f" {n}" * (self.models[n].first_stage is not None) for n, recipe in enumerate(recipes)]
        self._alike = [recipes.index(recipe) for recipe in recipes]

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        folds: Sequence[int] | None = None,
        device: str | None = None,
        settings: InferSettings | Sequence[str] | None = None,
        extra: Sequence[Any] = (),
        max_memory_gb: float | None = None,
    ) -> Self:
        """Load a model folder, also of an ensemble or of several parts, or a model that comes with volseg.

        What cross-validation found to help (``postprocessing.json`` in the folder) is done to every mask, unless
        ``settings.postprocessing`` is off.

        Args:
            folder: What ``volseg train`` or ``volseg choose`` wrote, or the name of a model that comes with volseg,
                as ``volseg models`` lists them. A folder of that name goes first.
            folds: Folds to average; by default all that are trained.
            device: Name of the device; by default the best there is. Over several (``cuda:0,cuda:1`` or ``cuda:all``)
                the folds, and the models of an ensemble, are spread.
            settings: Section ``infer``, of an ensemble or several parts for all; or overrides (``infer.key=value``) of
                the first model's own. By default each model's own.
            extra: The further MONAI transforms that training data went through, if any.
            max_memory_gb: Memory, in units of 1e9 bytes, that the logits of an image, or the image at the model's
                spacing, may take; by default what is free. An image that needs more is refused before the first window.

        Raises:
            VolsegError: If the folder holds no trained model, or not the folds asked for.
            ConfigError: If a key or value of the overrides is wrong, or is not of this section.
        """
        folder = model_folder(folder)
        homes = member_folders(folder)
        cards = [read_card(home) for home in homes]
        labels = labels_of(folder, cards)
        whole = labels if read_parts(folder) else None
        # With few classes memory is kept for its next use, and large pages would only take more of it.
        large_pages(max(card.network.out_channels for card in cards) > MANY_CLASSES)
        if settings is not None and not isinstance(settings, InferSettings):
            settings = _overridden(cards[0].settings.infer, settings, folder)
        if settings is not None and whole is not None:
            require_known_organs(settings, whole)
        devices = deque(choose_devices(device))
        most = None if max_memory_gb is None else int(max_memory_gb * 1e9)
        models: list[TrainedModel] = []
        for home, card in zip(homes, cards, strict=True):
            own = settings if settings is None or whole is None else settings_of_part(settings, card.plan.label_table)
            models.append(TrainedModel.load(home, card, tuple(devices), folds, own, most))
            devices.rotate(-len(models[-1].networks))  # the next network goes to the next device
        wanted = all(model.settings.postprocessing for model in models)
        return cls(models, extra, read_cleaning(folder, labels) if wanted else None, folder, whole)

    @property
    def card(self) -> ModelCard:
        """Description of the model, of an ensemble that of its first model."""
        return self.models[0].card

    @property
    def settings(self) -> InferSettings:
        """Section ``infer``, of an ensemble that of its first model."""
        return self.models[0].settings

    @property
    def networks(self) -> list[nn.Module]:
        """All networks, of a cascade those of its second stage."""
        return [network for model in self.models for network in model.networks]

    @property
    def labels(self) -> LabelTable:
        """Label table of the masks."""
        return self.whole or self.models[0].labels

    def predict(self, image: Image, case: str = "image") -> LabelMap:
        """Segment one image.

        Args:
            image: (C, I, J, K) on any grid, channels in the order of the training data.
            case: Name used in error messages.

        Returns:
            Label values on exactly the image's grid.

        Raises:
            DataError: If the number of channels is wrong or intensities are not finite.
            VolsegError: If the memory is too small, before the first window.
        """
        return self.predict_with_region(image, case)[0]

    def predict_with_region(
        self,
        image: Image,
        case: str = "image",
        *,
        prepared: Sequence[Prepared] | None = None,
        organs: Sequence[str] = (),
    ) -> tuple[LabelMap, SearchRegion | None]:
        """Segment one image as :meth:`predict` does, and tell where the model looked.

        Args:
            image: As for :meth:`predict`.
            case: Name used in error messages.
            prepared: What :meth:`prepared` gave for this image; by default it is prepared here.
            organs: Those that are wanted: of a model of several parts only the parts that find one of them are run. By
                default all.

        Returns:
            The label map, and the region; None if ``infer.roi`` is none, or of an ensemble, which looks at everything.
        """
        if self.whole is not None:
            return self._of_parts(image, case, prepared, organs)
        prepared, region = prepared or self.prepared(image, case), None
        if len(self.models) > 1 or self.settings.roi == "none":
            index = with_room(self.models, lambda models: segment(models, prepared))
        else:
            index, region = with_room(self.models, lambda models: segment_region(models[0], *prepared[0]))
        return self._cleaned(index, image.grid), region

    def predict_soft(
        self,
        image: Image,
        organs: Sequence[str] = (),
        *,
        entropy: bool = True,
        case: str = "image",
        scratch: Path | None = None,
        prepared: Sequence[Prepared] | None = None,
    ) -> SoftPrediction:
        """Segment one image and tell how sure the networks are; the label map is that of :meth:`predict`.

        Args:
            image: As for :meth:`predict`.
            organs: Organs or regions whose probabilities are wanted, e.g. ``predictor.labels.targets`` for all.
            entropy: Whether the entropy of all classes is wanted.
            case: Name used in error messages.
            scratch: Folder for temporary files, so that what is wanted need not be held in memory: the arrays are then
                maps of files that vanish with them.
            prepared: What :meth:`prepared` gave for this image; by default it is prepared here.

        Raises:
            ConfigError: If ``infer.roi`` is not none, or the model has several parts.
            DataError: As :meth:`predict`, or if the networks find no such organ or region.
            VolsegError: As :meth:`predict`, or if the disk is full.
        """
        self.require_whole_images()
        wanted = SoftWanted(tuple(organs), entropy, scratch)
        wanted.channels(self.labels)  # names are checked before the work, not after it
        parts = prepared or self.prepared(image, case)
        index, maps = with_room(self.models, lambda models: segment_softly(models, parts, wanted))
        return maps.finished(self._cleaned(index, image.grid))

    def predict_files(
        self,
        inputs: Path | str | Sequence[Path | str],
        out: Path | str,
        *,
        output: Output | None = None,
        series: Sequence[str] = (),
        allow_gaps: bool = False,
        progress: Progress = silent,
        on_stop: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """Segment files, folders, patterns and lists, as ``volseg predict`` does, with the model that is loaded.

        Every mask keeps its input's name. Beside the masks stand ``labels.json`` (what the values mean, and their
        colours; also as tables for ITK-SNAP, 3D Slicer and FreeSurfer) and ``predictions.json``: for each mask its
        image, how it came about and on which grid it is. A mask made from the same image by the same model is kept. The
        next image is read, and the last mask written, while one is computed.

        Args:
            inputs: One or several; see :func:`~pipeline.data.prediction_inputs.find_inputs`.
            out: Folder for the masks; several calls, also of other processes, may write to one at the same time.
            output: What to write; by default a mask per case in its image's format.
            series: Which series of DICOM inputs to take, one per channel, by number or modality; by default the only
                one of the modality that the model's channel is named after.
            allow_gaps: Interpolate missing and uneven slices of DICOM inputs, which are refused otherwise.
            progress: Called after every case that was computed; those that are kept do not count.
            on_stop: Called with what became of the cases when Ctrl-C or SIGTERM ends the work.

        Returns:
            Which cases were done, kept and failed; a case that fails ends no other.

        Raises:
            VolsegError: If the predictor has no folder, there is nothing to segment, two inputs would be written to one
                file, an organ is not known, or a file is in the way.
            AllFailedError: If no case could be predicted.
            KeyboardInterrupt, Stopped: If someone ended the work. What is finished is noted, and no file half written.
        """
        # A text alone would be taken for a list of its letters.
        several = [inputs] if isinstance(inputs, (str, Path)) else inputs
        dicom = DicomWanted(self.card.plan.channels, tuple(series), allow_gaps)
        folder, found = _planned(self, several, Path(out), output or Output(), dicom)
        if not found.cases:
            return Batch((), (), tuple(sorted(found.failed)), found.notes).require_some()
        # Memory that one case has freed serves the next one.
        with folder.opened() as runs, keep_freed_memory():
            batch, stopped = _predict_cases(self, folder, runs.shared(found.cases), progress)
        failed = tuple(sorted((*found.failed, *batch.failed)))
        batch = Batch(batch.done, batch.kept, failed, (*found.notes, *batch.notes, *runs.notes))
        if stopped is not None:
            if on_stop is not None:
                on_stop(batch)
            raise stopped
        return batch.require_some()

    def require_whole_images(self) -> None:
        """Make sure that every window is looked at, as probabilities need it: where none was, there are no logits.

        Raises:
            ConfigError: If ``infer.roi`` is not none, or the model has several parts.
        """
        if self.whole is not None:
            rule = "a model of one part with probabilities, entropy or confidence"
            advice = "Predict with the folder of one part; each is sure of its own organs alone"
            raise ConfigError([sentence("model", rule, f"one of {len(self.models)}", advice)])
        if self.settings.roi != "none":
            rule = "none with probabilities, entropy or confidence"
            raise ConfigError([sentence("infer.roi", rule, self.settings.roi, "Leave one of them out")])

    def prepared(self, image: Image, case: str = "image") -> list[Prepared]:
        """The image as every model sees it, cropped, normalized and resampled; on the processor, in any thread.

        Raises:
            DataError: If the number of channels is wrong or intensities are not finite.
        """
        alike = {number: self.models[number] for number in self._alike}
        found = {number: prepare_for(model, image, case=case, extra=self.extra) for number, model in alike.items()}
        return [found[number] for number in self._alike]

    @property
    def prepares_once(self) -> bool:
        """Whether one prepared image serves all models."""
        return len(set(self._alike)) == 1

    def needed(self, organs: Sequence[str] = ()) -> tuple[int, ...]:
        """Which models find some organs: of a model of several parts those that know one, else all."""
        wanted = set(organs or self.labels.organs)
        return tuple(
            number
            for number, model in enumerate(self.models)
            if self.whole is None or wanted.intersection(model.labels.organs)
        )

    def _of_parts(
        self, image: Image, case: str, prepared: Sequence[Prepared] | None, organs: Sequence[str]
    ) -> tuple[LabelMap, SearchRegion | None]:
        """Segment an image part by part: held are one part's prepared image, logits and labels, and the result."""
        labels, regions = self.labels, list[SearchRegion]()
        index = np.zeros(image.grid.shape, dtype=np.min_scalar_type(labels.classes - 1))
        one, ready = None, -1
        for number in self.needed(organs):
            model = self.models[number]
            if prepared is not None:
                one = prepared[number]
            elif one is None or ready != self._alike[number]:
                one = None  # gone before the next one is made
                one, ready = prepare_for(model, image, case=case, extra=self.extra), self._alike[number]
            found, region = with_room([model], partial(_one_segmented, prepared=one))
            if region is not None:
                regions.append(region)
            classes = [0, *(labels.organs.index(name) + 1 for name in model.labels.organs)]
            paint_over(index, found, classes)
        return self._cleaned(index, image.grid), joined_regions(regions)

    def _cleaned(self, index: NDArray[np.integer[Any]], grid: Grid) -> LabelMap:
        """Label values of class indices, cleaned."""
        index = np.asarray(self.cleaning.apply(index, self.labels, grid.voxel_volume_ml), dtype=index.dtype)
        return LabelMap(self.labels.from_index(index), grid)


def _one_segmented(
    models: Sequence[TrainedModel], prepared: Prepared
) -> tuple[NDArray[np.unsignedinteger[Any]], SearchRegion | None]:
    """Class indices by one model on the grid of the image, and where it looked, if not everywhere."""
    if models[0].settings.roi == "none":
        return segment(models, [prepared]), None
    return segment_region(models[0], *prepared)


def _overridden(own: InferSettings, overrides: Sequence[str], folder: Path) -> InferSettings:
    """Section ``infer`` of a model, some of its keys overridden."""
    changed = load_settings(None, overrides)
    others = [text for text in overrides if not text.startswith("infer.")]
    if others:
        rule, got, advice = "infer.key=value", "another section", "Only these can change after training"
        raise ConfigError([sentence(f"--set {text}", rule, got, advice) for text in others], str(folder))
    names = {text.partition("=")[0].removeprefix("infer.").strip() for text in overrides}
    return own.model_copy(update={name: getattr(changed.infer, name) for name in names})


def predict(
    model: Path | str,
    inputs: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    folds: Sequence[int] | None = None,
    device: str | None = None,
    settings: InferSettings | Sequence[str] | None = None,
    max_memory_gb: float | None = None,
    output: Output | None = None,
    series: Sequence[str] = (),
    allow_gaps: bool = False,
    progress: Progress = silent,
    on_stop: Callable[[Batch], None] | None = None,
) -> Batch:
    """Load a model and segment files, folders, patterns and lists with it.

    The model and ``folds`` to ``max_memory_gb`` are those of :meth:`Predictor.load`, all else is that of
    :meth:`Predictor.predict_files`, and so are the errors. An image that needs more memory fails alone.
    """
    predictor = Predictor.load(model, folds=folds, device=device, settings=settings, max_memory_gb=max_memory_gb)
    return predictor.predict_files(
        inputs, out, output=output, series=series, allow_gaps=allow_gaps, progress=progress, on_stop=on_stop
    )


def _planned(
    predictor: Predictor, inputs: Sequence[Path | str], out: Path, output: Output, dicom: DicomWanted
) -> tuple[PredictionFolder, Inputs]:
    """What is to be done, checked before anything is written."""
    if predictor.folder is None:
        rule, got = "one that was loaded from a model folder", "one of networks in memory"
        raise VolsegError(sentence("predictor", rule, got, "Take Predictor.load, or call predict for each image"))
    if volume_suffix(out) and not out.is_dir():
        got, advice = "the name of a file", "Give a folder: every mask has the name of its image"
        raise VolsegError(sentence("output", "a folder", got, advice, file=out))
    labels, channels = chosen_labels(predictor.labels, output.organs), predictor.card.plan.channels
    if output.soft:
        predictor.require_whole_images()
    organs = soft_organs(predictor.labels, labels.table, output.probabilities)
    output = replace(output, probabilities=organs)
    found = find_inputs(inputs, len(channels), dicom)
    paths = case_paths(found.cases, out, output, labels.table, predictor.labels)
    model, model_hash = predictor.folder, _model_hash(predictor, output.organs)
    return PredictionFolder(out, model, model_hash, output, labels, channels, paths), found


def _model_hash(predictor: Predictor, organs: Sequence[str]) -> str:
    """Hash of all that a mask depends on beside its image."""
    # The bytes of this text decide whether masks of earlier versions are kept: its form must stay as it is.
    parts = [json.dumps(predictor.cleaning.to_json())]
    for model in (predictor.models[number] for number in predictor.needed(organs)):
        parts += [*model.sources, model.settings.model_dump_json()]
    parts += [] if predictor.whole is None else [json.dumps(predictor.whole.to_json())]
    return text_hash(*parts, *([json.dumps(sorted(organs))] if organs else []))


def _predict_cases(
    predictor: Predictor, folder: PredictionFolder, cases: Sequence[CaseFiles], progress: Progress
) -> tuple[Batch, BaseException | None]:
    """Take all cases through reading, segmenting and writing; also what ended it early, if something did."""
    done: list[str] = []
    kept: list[str] = []
    failed: list[tuple[str, str]] = []
    told: dict[str, dict[str, str]] = {}
    count = {"seen": 0, "kept": 0}
    stopped: BaseException | None = None

    # A GPU would wait for the processor to prepare an image, so the next one is prepared while one is computed. Without
    # a GPU both are work for the same processors, and a second prepared image would only take memory; of a cascade,
    # preparing is work for the GPU, as the first stage takes part.
    ahead = (predictor.whole is None or predictor.prepares_once) and all(
        model.first_stage is None and all(device.type == "cuda" for device in model.devices)
        for model in predictor.models
    )

    def read(files: CaseFiles) -> tuple[CaseRead, list[Prepared] | None]:
        found = folder.read_case(files)
        if not ahead or found.kept or found.image is None:
            return found, None
        return found, predictor.prepared(found.image, files.id)

    def segment(given: tuple[CaseRead, list[Prepared] | None]) -> CaseSegmented:
        found, prepared = given
        count["kept"] += found.kept
        return segment_case(predictor, folder, found, prepared)

    def write(made: CaseSegmented) -> None:
        folder.write_case(made)
        (kept if made.read.kept else done).append(made.read.files.id)
        told[made.read.files.id] = made.entry.get("notes", {})

    def fail(files: CaseFiles, error: Exception) -> None:
        failed.append((files.id, why_failed(files.id, error)))

    def computed() -> None:  # cases that are kept take no time, and would make the time left look short
        count["seen"] += 1
        progress(count["seen"] - count["kept"], len(cases) - count["kept"], "predict")

    try:
        overlapped(cases, read, segment, write, failed=fail, done=computed)
    except STOPS as error:
        stopped = error
    left = len(cases) - len(done) - len(kept) - len(failed)
    notes = [*([f"{left} of {len(cases)} cases were not reached."] if left else []), *notes_in_short(told)]
    # Also after a stop: the statistics of the masks that were finished are not lost.
    try:
        folder.finish()
    except VolsegError as error:
        failed.append(("statistics", str(error)))
    return Batch(tuple(done), tuple(kept), tuple(failed), tuple(notes)), stopped


def segment_case(
    predictor: Predictor, folder: PredictionFolder, read: CaseRead, prepared: Sequence[Prepared] | None = None
) -> CaseSegmented:
    """Segment a case that has no mask yet; its image may have been prepared before.

    Raises:
        DataError: If the image does not suit the model.
    """
    mask, output, case = folder.paths[read.files.id].mask.name, folder.output, read.files.id
    if read.kept or read.image is None:
        return CaseSegmented(read, dict(folder.entries[mask]))
    origin, began = _origin(predictor), time.monotonic()
    soft, region = None, None
    if output.soft:
        organs, entropy = output.probabilities, output.entropy
        soft = predictor.predict_soft(
            read.image, organs, entropy=entropy, case=case, scratch=folder.out, prepared=prepared
        )
        label_map = soft.label_map
    else:
        label_map, region = predictor.predict_with_region(read.image, case, prepared=prepared, organs=output.organs)
    if output.organs:
        label_map = LabelMap(keep_values(label_map.array, folder.labels.table.values), label_map.grid)
    grid = label_map.grid
    cleaning = predictor.cleaning.to_json() if predictor.cleaning else None
    entry = prediction_entry(read.files, mask, cleaning) | {
        "organs": list(output.organs) or None,
        "inputs": dict(zip(map(str, read.files.files), read.hashes, strict=True)),
        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
        "model": {"folder": str(folder.model.resolve()), "hash": folder.model_hash},
        "roi": None if region is None else region.to_json(),
        "settings": [model.settings.model_dump(mode="json") for model in predictor.models],
        "provenance": origin | {"seconds": round(time.monotonic() - began, 3)},
    }
    notes = image_notes(read.image, read.files.images[0], predictor.card.plan, case)
    if notes:
        entry["notes"] = notes
    if soft is not None:
        entry["confidence"] = {name: soft.confidence.get(name) for name in folder.labels.table.targets}
    image = read.image if output.statistics or read.series is not None else None
    return CaseSegmented(replace(read, image=image, label_map=label_map), entry, soft)


def _origin(predictor: Predictor) -> dict[str, str]:
    """Versions, device and date; of several devices all."""
    devices = dict.fromkeys(str(device) for model in predictor.models for device in model.devices)
    several = {"devices": ", ".join(devices)} if len(devices) > 1 else {}
    return provenance(predictor.models[0].device) | several
