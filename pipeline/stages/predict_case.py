"""One case of a prediction: read and compared with what is there, segmented, written with all that belongs to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.core.files import text_hash
from pipeline.core.selection import keep_values
from pipeline.core.volume import Image, LabelMap
from pipeline.data.case_files import CaseFiles, content_hashes
from pipeline.data.organ_files import write_organs
from pipeline.data.volume_file import split_source
from pipeline.data.volumes import read_image, read_label_map, write_label_map
from pipeline.infer.predictor import Predictor
from pipeline.infer.roi import Region
from pipeline.infer.soft_maps import SoftPrediction
from pipeline.stages.prediction_output import Labels, Output, Place
from pipeline.stages.prediction_soft import write_soft
from pipeline.stages.prediction_statistics import measure
from pipeline.stages.predictions import note_prediction, prediction_entry
from pipeline.stages.training_identity import provenance

__all__ = ["CaseRead", "CaseSegmented", "Prediction", "read_case", "segment_case", "write_case"]


@dataclass(frozen=True)
class Prediction:
    """What all cases of a prediction share.

    Args:
        predictor: The model.
        model: Its folder.
        identity: Hash of all that a mask depends on beside its image.
        output: What to write.
        labels: Names and colours of it.
        places: Case id → where.
        out: Folder of the masks.
        entries: Entries of ``predictions.json`` by file name; kept up to date.
        statistics: Entries of ``statistics.json`` by file name; kept up to date.
    """

    predictor: Predictor
    model: Path
    identity: str
    output: Output
    labels: Labels
    places: Mapping[str, Place]
    out: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseRead:
    """A case before it is segmented.

    Args:
        files: Its files.
        hashes: Of their content.
        digest: Of all that its mask depends on.
        image: None if nothing is to be done with it.
        label_map: Its mask, if there is one already but not all that is to be made of it.
        kept: Whether its mask is there already, and what else only the network gives.
        same: Whether what is there is of the same image and model.
    """

    files: CaseFiles
    hashes: tuple[str, ...]
    digest: str
    image: Image | None
    label_map: LabelMap | None
    kept: bool
    same: bool


@dataclass(frozen=True)
class CaseSegmented:
    """A case to be written.

    Args:
        read: What was read, without what is no longer needed.
        entry: Its entry of ``predictions.json``.
        soft: Probabilities and entropy, where they are wanted.
    """

    read: CaseRead
    entry: dict[str, Any]
    soft: SoftPrediction | None = None


def read_case(run: Prediction, files: CaseFiles) -> CaseRead:
    """Read a case, as far as something is to be done.

    Raises:
        VolsegError: If a file cannot be used.
    """
    place, hashes = run.places[files.id], tuple(content_hashes(files))
    digest, entry = text_hash(run.identity, *hashes), run.entries.get(place.mask.name, {})
    same = place.mask.is_file() and entry.get("hash") == digest
    kept = same and _soft_there(run, place, entry)
    there = all((place.folder / name).is_file() for name in place.organ_files.values())
    split = not place.organ_files or (entry.get("organ_files") == list(place.organ_files.values()) and there)
    measured = run.statistics.get(place.mask.name, {}).get("hash") == digest or not run.output.statistics
    wanted = not (kept and measured)
    image = read_image(files.images, case=files.id) if wanted else None
    label_map = read_label_map(place.mask, case=files.id) if kept and not (split and measured) else None
    return CaseRead(files, hashes, digest, image, label_map, kept, same)


def segment_case(run: Prediction, read: CaseRead) -> CaseSegmented:
    """Segment a case that has no mask yet.

    Raises:
        DataError: If the image does not suit the model.
    """
    place = run.places[read.files.id]
    if read.kept or read.image is None:
        return CaseSegmented(read, dict(run.entries[place.mask.name]))
    origin, began = _origin(run.predictor), time.monotonic()
    label_map, soft, region = _segmented(run, read.image, read.files.id)
    if run.output.organs:
        label_map = LabelMap(keep_values(label_map.array, run.labels.table.values), label_map.grid)
    grid = label_map.grid
    cleaning = run.predictor.cleaning.to_json() if run.predictor.cleaning else None
    entry = prediction_entry(read.files, place.mask.name, cleaning) | {
        "organs": list(run.output.organs) or None,
        "inputs": dict(zip(map(str, read.files.files), read.hashes, strict=True)),
        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
        "model": {"folder": str(run.model.resolve()), "hash": run.identity},
        "roi": None if region is None else region.to_json(),
        "settings": [member.settings.model_dump(mode="json") for member in run.predictor.members],
        "provenance": origin | {"seconds": round(time.monotonic() - began, 3)},
    }
    if soft is not None:
        entry["confidence"] = {name: soft.confidence.get(name) for name in run.labels.table.targets}
    if read.same:
        earlier = run.entries[place.mask.name]
        entry |= {name: earlier[name] for name in ("organ_files", "soft_files") if name in earlier}
    image = read.image if run.output.statistics else None
    return CaseSegmented(replace(read, image=image, label_map=label_map), entry, soft)


def write_case(run: Prediction, made: CaseSegmented) -> None:
    """Write what a case gave: its mask, a file per organ, its statistics and its entry.

    The entry is written first without its hash, so that a killed run knows its own file, and last with it.

    Raises:
        VolsegError: If something cannot be written.
    """
    read, place = made.read, run.places[made.read.files.id]
    if read.label_map is None:
        return
    like, organ_files = split_source(read.files.images[0])[0], list(place.organ_files.values())
    entry = made.entry | ({"organ_files": organ_files} if organ_files else {})
    if made.soft is not None:
        files = {file.relative_to(run.out).as_posix() for file in place.soft.files}
        entry["soft_files"] = sorted(files.union(entry.get("soft_files", ())))
        _take_over(run, place.mask.name, files)
    if not read.same:
        _remove_earlier(run, place)
    note_prediction(run.out, run.entries, entry)
    if not read.kept:
        write_label_map(read.label_map, place.mask, like=like, legend=run.labels.legend)
    if place.organ_files:
        write_organs(read.label_map, run.labels.table, place.folder, place.organ_files, run.labels.colors, like=like)
    if made.soft is not None:
        write_soft(made.soft, place.soft, like=like)
    if run.output.statistics and read.image is not None:
        organs = measure(read.label_map, run.labels.table, read.image, run.predictor.card.plan.channels)
        about = {"case": read.files.id, "prediction": place.mask.name, "hash": read.digest}
        run.statistics[place.mask.name] = {**about, "organs": organs}
    note_prediction(run.out, run.entries, {**entry, "hash": read.digest})


def _soft_there(run: Prediction, place: Place, entry: Mapping[str, Any]) -> bool:
    """Whether an earlier run wrote all that is wanted beside the winner of every voxel."""
    if not run.output.soft:
        return True
    known = set(entry.get("soft_files", ()))
    there = all(file.is_file() and file.relative_to(run.out).as_posix() in known for file in place.soft.files)
    return there and "confidence" in entry


def _segmented(run: Prediction, image: Image, case: str) -> tuple[LabelMap, SoftPrediction | None, Region | None]:
    """The mask, how sure the model is if that is wanted, and where it looked if that was not everywhere."""
    output, regions = run.output, list[Region]()
    if not output.soft:
        label_map = run.predictor.predict(image, case, regions.append)
        return label_map, None, regions[0] if regions else None
    soft = run.predictor.predict_soft(image, output.probabilities, entropy=output.entropy, case=case, scratch=run.out)
    return soft.label_map, soft, None


def _origin(predictor: Predictor) -> dict[str, str]:
    """Versions, device and date; of several devices all."""
    devices = dict.fromkeys(str(device) for member in predictor.members for device in member.devices)
    several = {"devices": ", ".join(devices)} if len(devices) > 1 else {}
    return provenance(predictor.members[0].device) | several


def _remove_earlier(run: Prediction, place: Place) -> None:
    """Remove what was made of a mask of another image or model."""
    entry = run.entries.get(place.mask.name, {})
    for name in entry.get("organ_files") or ():
        (place.folder / Path(name).name).unlink(missing_ok=True)
    for name in entry.get("soft_files") or ():
        path = run.out / name
        if path.resolve().is_relative_to(run.out.resolve()):  # the file can be edited
            path.unlink(missing_ok=True)


def _take_over(run: Prediction, mask: str, files: set[str]) -> None:
    """No other entry may say that these are its soft outputs, as that of a mask in another format would."""
    for name, entry in run.entries.items():
        if name != mask and files.intersection(entry.get("soft_files", ())):
            run.entries[name] = {**entry, "soft_files": sorted(set(entry["soft_files"]) - files)}
