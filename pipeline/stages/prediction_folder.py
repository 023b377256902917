"""A folder of masks while a model predicts into it: what is there, what a case still needs, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, sentence
from pipeline.core.files import OutputFolder, remove_leftovers, text_hash
from pipeline.core.grid import Box
from pipeline.core.together import RunsTogether
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles, content_hashes
from pipeline.data.dicom import is_dicom, open_series
from pipeline.data.organ_masks import write_organs
from pipeline.data.prediction_record import Entries, PredictionRecord
from pipeline.data.volume_file import split_source, volume_stem
from pipeline.data.volumes import position_doubts, read_image, read_label_map, write_label_map
from pipeline.export.dicom_objects import write_objects
from pipeline.export.dicom_source import Maker, Segmented, SourceSeries
from pipeline.infer.probability_maps import SoftPrediction
from pipeline.preprocess.fingerprint import foreground_box
from pipeline.preprocess.plan_file import Plan
from pipeline.stages.prediction_files import (
    DICOM,
    ENTROPY,
    LABEL_FILES,
    PROBABILITIES,
    STATISTICS_FILES,
    CasePaths,
    Entry,
    Labels,
    Output,
    earlier_statistics,
    measure,
    require_own_files,
    write_labels,
    write_soft,
    write_statistics,
)

_LARGER = 2.0  # times the median training case along every axis: no set of whole images varies so much


@dataclass(frozen=True)
class CaseRead:
    """A case before it is segmented.

    Args:
        files: Its files.
        hashes: Of their content.
        mask_hash: Hash of all that its mask depends on.
        image: None if nothing is to be done with it.
        label_map: Its mask, if there is one already but not all that is to be made of it.
        kept: Whether its mask is there already, and what else only the network gives.
        series: What DICOM objects take from its series, if some are to be written.
    """

    files: CaseFiles
    hashes: tuple[str, ...]
    mask_hash: str
    image: Image | None
    label_map: LabelMap | None
    kept: bool
    series: SourceSeries | None = None


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


@dataclass
class PredictionFolder:
    """The folder that a prediction writes into, and what its cases share. Other runs may be at work in it, too.

    Args:
        out: Folder of the masks.
        model: Folder of the model.
        model_hash: Hash of all that a mask depends on beside its image.
        output: What to write.
        labels: Names and colours of it.
        channels: Name of every channel of the images.
        paths: Case id → where its files go.
        statistics: Entries of ``statistics.json`` by file name; kept up to date.
    """

    out: Path
    model: Path
    model_hash: str
    output: Output
    labels: Labels
    channels: Sequence[str]
    paths: Mapping[str, CasePaths]
    statistics: Entries = field(default_factory=dict)

    @contextmanager
    def opened(self) -> Iterator[RunsTogether]:
        """Mark the folder as ours, and remove what a run that was killed left half written.

        Raises:
            VolsegError: If it cannot be written to, a file is in the way, or another run writes other organs there.
        """
        organs = text_hash(json.dumps(self.labels.table.to_json()))
        with RunsTogether(self.out, "predictions") as self.runs:
            with self.runs.alone():
                # All is read here: a mask that another run has written since would be taken for a stranger's file.
                self.record = PredictionRecord(self.out, Entry)
                self.statistics = earlier_statistics(self.out) if self.entries else {}
                others = self.runs.others()
                rule, advice = "masks of the same organs", "Use another output folder"
                self.runs.require(rule, "others being written", advice, organs=organs)
                files = (*LABEL_FILES, *(STATISTICS_FILES if self.output.statistics else ()))
                require_own_files(self.out, self.paths.values(), files, self.entries, self.labels.table)
                if not others:
                    # What a killed run was writing lies beside the masks under temporary names.
                    remove_leftovers(self.out)
                    for name in (PROBABILITIES, ENTROPY, DICOM):
                        remove_leftovers(self.out / name, deep=True)
                self.record.write(alone=not others)
                write_labels(self.out, self.labels)
                # Only now: of two that come at once, the second is refused.
                self.runs.tell(organs=organs)
            yield self.runs

    @property
    def entries(self) -> Entries:
        """Entries of ``predictions.json`` by file name."""
        return self.record.entries

    def read_case(self, files: CaseFiles) -> CaseRead:
        """Read a case, as far as something is to be done.

        Raises:
            VolsegError: If a file cannot be used.
        """
        self.record.refresh()  # another run may have made it meanwhile
        paths, hashes = self.paths[files.id], tuple(content_hashes(files))
        mask_hash, entry = text_hash(self.model_hash, *hashes), self.entries.get(paths.mask.name, {})
        # Three questions: is the mask that of this image and model, is all there that only the network gives, and is
        # all there that is made of the mask? The image is read only where the answer to one of them is no.
        same = paths.mask.is_file() and entry.get("hash") == mask_hash
        kept = same and self._soft_there(paths, entry)
        there = all((paths.folder / name).is_file() for name in paths.organ_files.values())
        split = not paths.organ_files or (entry.get("organ_files") == list(paths.organ_files.values()) and there)
        measured = self.statistics.get(paths.mask.name, {}).get("hash") == mask_hash or not self.output.statistics
        sendable = not paths.dicom or (same and self._objects_there(paths, entry))
        # Before the work, not after it: a series may have no identifiers that an object could refer to.
        series = None if sendable else _source(files)
        image = None if kept and measured and sendable else read_image(files.images, case=files.id)
        unmade = kept and not (split and measured and sendable)
        label_map = read_label_map(paths.mask, case=files.id) if unmade else None
        return CaseRead(files, hashes, mask_hash, image, label_map, kept, series)

    def write_case(self, made: CaseSegmented) -> None:
        """Write what a case gave: its mask, a file per organ, its statistics and its entry.

        Raises:
            VolsegError: If something cannot be written.
        """
        if made.read.label_map is None:
            return
        # No other run between the first file and the entry: they would be those of two models.
        with self.runs.alone():
            self.record.refresh()
            self._write_case(made, made.read.label_map)

    def _write_case(self, made: CaseSegmented, label_map: LabelMap) -> None:
        read, paths = made.read, self.paths[made.read.files.id]
        earlier = self.entries.get(paths.mask.name, {})
        same = earlier.get("hash") == read.mask_hash and paths.mask.is_file()
        if read.kept and not same:
            got, advice = "another run that replaced it", "Run again when the other has ended"
            raise DataError(sentence("mask", "one that stays", got, advice, case=read.files.id, file=paths.mask))
        like, organ_files = split_source(read.files.images[0])[0], list(paths.organ_files.values())
        kinds = ("organ_files", "soft_files", "dicom_files", "seg_type")
        beside = {name: earlier[name] for name in kinds if same and name in earlier}
        entry = dict(earlier) if read.kept else made.entry | beside
        entry |= {"organ_files": organ_files} if organ_files else {}
        if made.soft is not None:
            files = {file.relative_to(self.out).as_posix() for file in paths.soft.files}
            entry["soft_files"] = sorted(files.union(entry.get("soft_files", ())))
            self._take_over(paths.mask.name, files, "soft_files")
        if read.series is not None:
            files = {file.relative_to(self.out).as_posix() for file in paths.dicom.values()}
            stem = volume_stem(paths.mask)
            outdated = {f"{DICOM}/{path.name}" for path in self.output.objects.outdated(self.out / DICOM, stem)}
            OutputFolder(self.out).remove(outdated.intersection(entry.get("dicom_files") or ()))
            entry["dicom_files"] = sorted(files.union(entry.get("dicom_files") or ()) - outdated)
            entry |= {"seg_type": self.output.objects.seg_type} if "seg" in paths.dicom else {}
            self._take_over(paths.mask.name, files, "dicom_files")
        if not same:
            self._remove_earlier(paths)
        # First without its hash, so that a run that was killed knows its own file; with it once all is written. How
        # segments are stored is known once they are, too.
        begun = {name: value for name, value in entry.items() if name != "seg_type" or "seg" not in paths.dicom}
        self.record.note(begun if same else {**begun, "hash": ""})
        if not read.kept:
            write_label_map(label_map, paths.mask, like=like, legend=self.labels.legend)
        if paths.organ_files:
            write_organs(label_map, self.labels.table, paths.folder, paths.organ_files, self.labels.colors, like=like)
        if made.soft is not None:
            write_soft(made.soft, paths.soft, like=like)
        if read.series is not None:
            maker = Maker(serial=self.model_hash)
            case = Segmented(read.series, label_map, self.labels.table, self.labels.colors, read.image, maker)
            write_objects(case, paths.dicom, self.output.objects)
        if self.output.statistics and read.image is not None:
            organs = measure(label_map, self.labels.table, read.image, self.channels)
            about = {"case": read.files.id, "prediction": paths.mask.name, "hash": read.mask_hash}
            self.statistics[paths.mask.name] = {**about, "organs": organs}
        self.record.note({**entry, "hash": read.mask_hash})

    def finish(self) -> None:
        """Write the entries and statistics of all masks in the folder, also of those that other runs made.

        Statistics of masks that were replaced since are dropped.

        Raises:
            VolsegError: If something cannot be written.
        """
        with self.runs.alone():
            self.record.refresh()
            # One that has come to here as well, and has not left yet, reads nothing any more.
            self.record.write(alone=all(other.get("finished") for other in self.runs.others()))
            self.runs.tell(finished=True)
            there = earlier_statistics(self.out)
            current = {
                name: _with_confidence(entry, self.entries[name].get("confidence", {}))
                for entries in (there, self.statistics)
                for name, entry in entries.items()
                if entry.get("hash") and self.entries.get(name, {}).get("hash") == entry["hash"]
            }
            if self.output.statistics or current != there:
                write_statistics(self.out, current, self.channels)

    def _soft_there(self, paths: CasePaths, entry: Mapping[str, Any]) -> bool:
        """Whether an earlier run wrote all that is wanted beside the winner of every voxel."""
        if not self.output.soft:
            return True
        known = set(entry.get("soft_files", ()))
        there = all(file.is_file() and file.relative_to(self.out).as_posix() in known for file in paths.soft.files)
        return there and "confidence" in entry

    def _objects_there(self, paths: CasePaths, entry: Mapping[str, Any]) -> bool:
        """Whether an earlier run wrote all DICOM objects that are wanted."""
        known = set(entry.get("dicom_files") or ())
        there = all(file.is_file() and file.relative_to(self.out).as_posix() in known for file in paths.dicom.values())
        return there and ("seg" not in paths.dicom or entry.get("seg_type") == self.output.objects.seg_type)

    def _remove_earlier(self, paths: CasePaths) -> None:
        """Remove what was made of a mask of another image or model."""
        entry = self.entries.get(paths.mask.name, {})
        home = paths.folder.relative_to(self.out)
        organ_files = ((home / Path(name).name).as_posix() for name in entry.get("organ_files") or ())
        others = (name for kind in ("soft_files", "dicom_files") for name in entry.get(kind) or ())
        OutputFolder(self.out).remove((*organ_files, *others))

    def _take_over(self, mask: str, files: set[str], kind: str) -> None:
        """No other entry may say that these files are its own, as that of a mask in another format would."""
        for name, entry in list(self.entries.items()):
            if name != mask and files.intersection(entry.get(kind) or ()):
                self.record.note({**entry, kind: sorted(set(entry[kind]) - files)})


def _source(files: CaseFiles) -> SourceSeries:
    """What DICOM objects take from the series of a case, of several channels from that of the first.

    Raises:
        VolsegError: If it is none, or it has no identifiers.
    """
    source = files.images[0]
    if split_source(source)[1] != "series" and not is_dicom(source):
        rule, got, advice = "a DICOM series, as DICOM objects need", "another file", "Give the series, or ask for none"
        raise DataError(sentence("input", rule, got, advice, case=files.id, file=source))
    return SourceSeries.of(open_series(source, case=files.id))


def image_notes(image: Image, source: Path, plan: Plan, case: str) -> dict[str, str]:
    """What whoever looks at a mask should know of its image, by kind: one sentence each; empty for most."""
    notes = {
        doubt.code: sentence(doubt.what, doubt.expected, doubt.got, doubt.advice, case=case)
        for doubt in position_doubts(source)
        if doubt.severity == "warning"
    }
    values = [(float(channel.min()), float(channel.max())) for channel in image.array]
    flat = [number for number, (low, high) in enumerate(values) if low == high]
    if flat:
        every = len(flat) == image.channels
        what = "image" if every else f"channel {', '.join(plan.channels[n] for n in flat)}"
        got = f"{', '.join(f'{n:g}' for n in dict.fromkeys(values[n][0] for n in flat))} everywhere"
        advice = "The mask means nothing; check the file" if every else "Check the file"
        notes["constant"] = sentence(f"{what} intensities", "more than one value", got, advice, case=case)
    orientation = plan.orientation_of(image.grid)
    grid = image.grid.reoriented(orientation)
    extent = [n * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True)]
    small = any(n > 1 and mm < step for n, mm, step in zip(grid.shape, extent, plan.spacing_mm, strict=True))
    if small and plan.shape is None:
        got, wanted = (" x ".join(f"{mm:.3g}" for mm in numbers) for numbers in (extent, plan.spacing_mm))
        rule = f"more than one voxel of the model ({wanted} mm) along every axis"
        advice = "Check the spacing and its unit in the header"
        notes["extent"] = sentence("image size", rule, f"{got} mm", advice, case=case)
    usual = [n * mm for n, mm in zip(plan.median_shape, plan.spacing_mm, strict=True)]
    if plan.shape is None and _much_larger(extent, usual):
        box = foreground_box(image.array) if plan.crop == "nonzero" else Box.whole(image.grid.shape)
        part = image.grid.cropped(box.start, box.stop).reoriented(orientation)
        extent = [n * mm for n, mm in zip(part.shape, part.spacing_mm, strict=True)]
        if _much_larger(extent, usual):
            got, wanted = (" x ".join(f"{mm:.3g}" for mm in numbers) for numbers in (extent, usual))
            advice = "Crop it around the organs, or expect some where there are none"
            rule = f"about {wanted} mm, as the training cases have it"
            notes["field of view"] = sentence("image size", rule, f"{got} mm", advice, case=case)
    return notes


def _much_larger(extent_mm: Sequence[float], usual_mm: Sequence[float]) -> bool:
    """Whether an image shows much that training cases do not, as a whole head does to a model of crops."""
    return all(mm > _LARGER * usual for mm, usual in zip(extent_mm, usual_mm, strict=True))


def notes_in_short(notes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Case id → its notes by kind, as :func:`image_notes` gave them: of every kind the first, and how many more."""
    found: dict[str, list[str]] = {}
    for kinds in notes.values():
        for kind, text in kinds.items() if isinstance(kinds, Mapping) else ():  # those of earlier runs may be anything
            found.setdefault(kind, []).append(str(text))
    more = " {} more like it, see predictions.json."
    return [texts[0] + (more.format(len(texts) - 1) if len(texts) > 1 else "") for texts in found.values()]


def _with_confidence(entry: Mapping[str, Any], known: Mapping[str, float | None]) -> dict[str, Any]:
    """The statistics of a mask, and how sure the networks were of its organs."""
    organs = {
        name: dict(organ) | ({"confidence": known[name]} if name in known else {})
        for name, organ in entry["organs"].items()
    }
    return {**entry, "organs": organs}
