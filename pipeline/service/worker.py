"""A worker: a process that loads the model once and segments one study after the other.

It is told what to do by lines of JSON on standard input, and answers on standard output. A study that kills it, or
takes too long, costs the node no more than this process. What it answers holds no text of a patient's file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image as Picture

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.files import atomic_path, text_hash
from pipeline.core.machine import bytes_in_words, keep_freed_memory
from pipeline.data.dicom import is_dicom, open_series
from pipeline.data.prediction_inputs import DicomWanted, find_inputs
from pipeline.data.volume_file import split_source
from pipeline.data.volumes import open_header, read_image, write_label_map
from pipeline.evaluate.organ_statistics import organ_statistics
from pipeline.export.dicom_objects import DicomOutput, write_objects
from pipeline.export.dicom_source import Maker, Segmented, SourceSeries
from pipeline.export.overview import picture
from pipeline.service.audit import where
from pipeline.stages.predict import Predictor
from pipeline.stages.prediction_files import chosen_labels
from pipeline.stages.prediction_folder import image_notes

RESULT = "result"
"""Stem of the files that a worker writes."""

THUMBNAIL = "thumbnail.jpg"
_WIDTH = 750


def main(words: Sequence[str]) -> None:
    """Serve; the only word is JSON: ``model``, ``device``, ``objects``, ``seg_type``, ``series`` and ``allow_gaps``."""
    settings = json.loads(words[0])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Nothing but answers goes where answers go, and what libraries say of files goes nowhere: it may quote names.
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    tasks: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        predictor = Predictor.load(settings["model"], device=settings["device"])
    except VolsegError as error:
        answer(ready=False, reason=str(error))
        return
    answer(ready=True, channels=list(predictor.card.plan.channels), organs=len(predictor.labels.targets))
    with keep_freed_memory():
        while True:
            task = tasks.get()
            began = time.monotonic()
            try:
                told = segment(predictor, settings, task)
                answer(done=True, seconds=round(time.monotonic() - began, 2), **told)
            except VolsegError as error:  # it would be the same another time
                answer(done=False, reason=str(error), again=False)
            except MemoryError:
                answer(done=False, reason="one that needs more memory than there is", again=True)
            except Exception as error:
                answer(done=False, reason=where(error), again=True)


def _listen(tasks: SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(0)  # the node has ended: nobody waits for what is being computed


def segment(predictor: Predictor, settings: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """Segment what a task names, and write what is to be sent.

    Args:
        predictor: The model.
        settings: As given to :func:`main`.
        task: ``input``, the folder of a study or a file; ``out``, the folder to write to; ``most_bytes`` of the image;
            ``mask``, of an uploaded file: ``seg``, ``sr`` or the format of the mask.

    Returns:
        ``organs``: name → mL of those that were found; ``notes``: what was corrected; ``files``: what was written.

    Raises:
        VolsegError: If the images cannot be used.
    """
    channels, source, out = predictor.card.plan.channels, Path(task["input"]), Path(task["out"])
    found = find_inputs(
        [source], len(channels), DicomWanted(channels, tuple(settings["series"]), settings["allow_gaps"])
    )
    if found.failed:
        raise DataError(found.failed[0][1])
    if len(found.cases) != 1:
        raise DataError(sentence("input", "one image", f"{len(found.cases)}", "Send one at a time", file=source))
    images, case = found.cases[0].images, found.cases[0].id
    _require_size(images, int(task["most_bytes"]), case)
    wanted = task.get("mask")
    kinds = settings["objects"] if wanted is None else [wanted] if wanted in ("seg", "sr") else []
    # Before the work, not after it: a series may have no identifiers that an object could refer to.
    series = _series(images[0], case) if kinds else None
    image = read_image(images, case=case)
    label_map = predictor.predict(image, case)
    labels = chosen_labels(predictor.labels, ())
    notes = list(image_notes(image, images[0], predictor.card.plan, case).values())
    organs = {
        organ.name: round(organ.volume_ml, 3)
        for organ in organ_statistics(label_map, labels.table, image)
        if organ.voxels
    }
    out.mkdir(parents=True, exist_ok=True)
    if series is None:
        path = out / f"{RESULT}.{wanted}"
        write_label_map(label_map, path, legend=labels.legend)
        return {"organs": organs, "notes": notes, "files": [path.name]}
    maker = Maker(serial=text_hash(*(source for model in predictor.models for source in model.sources)))
    segmented = Segmented(series, label_map, labels.table, labels.colors, image, maker)
    output = DicomOutput(tuple(kinds), settings["seg_type"])
    files = output.files(out, RESULT)
    write_objects(segmented, files, output)
    names = [path.name for path in files.values()]
    if wanted is None:
        _write_thumbnail(segmented, out / THUMBNAIL)
    else:
        names = [files[wanted].name]
    return {"organs": organs, "notes": notes, "files": names}


def _require_size(images: Sequence[Path], most_bytes: int, case: str) -> None:
    """Refuse an image by its headers, before memory is taken for its voxels."""
    total = 0
    # The channels of a 4D file are one file, the series of a study are not.
    for source in dict.fromkeys(
        split_source(image)[0] if split_source(image)[1] == "channel" else image for image in images
    ):
        header = open_header(source, case=case)
        size = header.volumes
        for voxels in header.grid.shape:
            size *= voxels
        total += 4 * size
        if total > most_bytes:
            rule, advice = f"at most {bytes_in_words(most_bytes)} unpacked", "Crop it, or raise limits.image_mb"
            raise DataError(sentence("image", rule, bytes_in_words(total), advice, case=case))


def _series(source: Path, case: str) -> SourceSeries:
    """What DICOM objects take from the series of an image, of several channels from that of the first."""
    if split_source(source)[1] != "series" and not is_dicom(source):
        advice = "Ask for another format of the mask"
        raise DataError(sentence("input", "a DICOM series, as DICOM objects need", "another file", advice, case=case))
    return SourceSeries.of(open_series(source, case=case))


def _write_thumbnail(segmented: Segmented, path: Path) -> None:
    shown = Picture.fromarray(picture(segmented))
    size = _WIDTH, max(1, round(shown.height * _WIDTH / shown.width))
    with atomic_path(path) as temporary:
        shown.resize(size, Picture.Resampling.LANCZOS).save(temporary, "JPEG", quality=85)


if __name__ == "__main__":
    main(sys.argv[1:])
