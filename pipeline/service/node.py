"""The node: one folder, its queue, its workers, and the ways in and out, from start to stop."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pydicom

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import why_not_written
from pipeline.core.locks import NO_LOCKS, lock
from pipeline.service.audit import AuditLog, where
from pipeline.service.dicom_node import Receiver, SendError, send
from pipeline.service.dicomweb import FetchError, Poller, store
from pipeline.service.http import HttpServer, Places
from pipeline.service.queue import RefusedError, Study, StudyQueue
from pipeline.service.settings import NodeSettings, secret
from pipeline.service.work import WorkerError, Workers, command_of

_TICK_S = 0.2
_CLEAN_S = 60.0
_DAY_S = 86400.0
_LEFT_S = 3600.0  # after which a file on its way is one that a caller broke off


class Node:
    """A node at work; a context that starts and stops it.

    Args:
        model: Model folder, or the name of a model that comes with volseg.
        folder: Where it keeps its queue and files; one node at a time.
        settings: What it does.
        command: What starts a worker, in place of volseg's own.

    Raises:
        VolsegError: If the folder is another node's, or cannot be written to.
    """

    def __init__(
        self, model: Path | str, folder: Path, settings: NodeSettings, command: Sequence[str] | None = None
    ) -> None:
        self.model, self.folder, self.settings = Path(model).name, folder, settings
        self.studies, self.results, self.incoming = (folder / name for name in ("studies", "results", "incoming"))
        try:
            for place in (self.studies, self.results, self.incoming):
                place.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # files of patients lie there
            self._lock = _locked(folder / "node.lock")
        except BlockingIOError:
            advice = "Stop it first, or use another folder"
            raise VolsegError(
                sentence("node", "a folder of its own", "one of a node at work", advice, file=folder)
            ) from None
        except OSError as error:
            raise why_not_written(error, folder) from error
        self.audit = AuditLog(folder)
        self.queue = StudyQueue(folder / "queue.sqlite", settings.limits.queue)
        work = settings.work
        told = {
            "model": str(model),
            "device": work.device,
            "objects": work.objects,
            "seg_type": work.seg_type,
            "series": work.series,
            "allow_gaps": work.allow_gaps,
        }
        command = command or command_of(told)
        self.workers = Workers(self.queue, command, work.workers, self._task, self._finished, work.limit_s)
        self.receiver = Receiver(
            settings.listen, settings.limits, self.queue, self.studies, self.incoming, self.audit, self.full
        )
        places = Places(
            model=self.model,
            settings=settings,
            queue=self.queue,
            audit=self.audit,
            studies=self.studies,
            results=self.results,
            token=secret(settings.listen.token_file),
            full=self.full,
            ready=lambda: sum(self.workers.ready),
        )
        self.http = HttpServer(places)
        self.dicom_port: int | None = None
        self._poller = Poller(settings.archive, self.queue, work.quiet_s) if settings.archive.poll else None
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=step, daemon=True) for step in self._steps()]

    def __enter__(self) -> Self:
        """Start: what was at work when the last node was killed is begun again."""
        _silence_libraries()
        for number in self.queue.restart():
            self._remove(number)
        for path in self.incoming.iterdir():
            path.unlink(missing_ok=True)
        self.http.start()
        if self.settings.listen.dicom_port is not None:
            self.dicom_port = self.receiver.start()
        self.workers.start()
        for thread in self._threads:
            thread.start()
        self.audit.note("node_started", model=self.model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: take nothing more, and leave the rest to the next start."""
        self._ending.set()
        self.receiver.stop()
        self.http.stop()
        self.workers.end()
        for thread in self._threads:
            thread.join(5)
        self.audit.note("node_stopped")
        self.queue.close()
        if self._lock is not None:
            os.close(self._lock)

    def wait(self) -> None:
        """Work until a signal comes.

        Raises:
            VolsegError: If the model cannot be loaded.
        """
        while not self.workers.refusal:
            time.sleep(_TICK_S)
        raise VolsegError(self.workers.refusal)

    def full(self) -> str:
        """Why nothing may be taken now; empty if it may."""
        least = self.settings.limits.disk_mb
        if shutil.disk_usage(self.folder).free < least << 20:
            return f"at least {least} MB of free disk"
        return ""

    # Steps that are repeated, each in a thread of its own; true if there was something to do.

    def _steps(self) -> list[tuple[Callable[[], bool], float]]:
        """Each with the pause after one that found nothing to do."""
        found: list[tuple[Callable[[], bool], float]] = [(self._settle, _TICK_S), (self._clean, _CLEAN_S)]
        if self.settings.archive.to:
            found.append((self._deliver, _TICK_S))
        if self._poller is not None:
            found += [(self._look, self.settings.archive.every_s), (self._fetch, _TICK_S)]
        return found

    def _repeat(self, step: Callable[[], bool], pause_s: float) -> None:
        told = ""
        while not self._ending.is_set():
            try:
                busy, reason = step(), ""
            except FetchError as error:
                busy, reason = False, str(error)
            except Exception as error:  # a full disk below the queue, say: the next time it may go well
                busy, reason = False, where(error)
            if reason and reason != told:  # once, not at every try
                self.audit.note("step_failed", step=step.__name__.strip("_"), reason=reason)
            told = reason
            if not busy:
                self._ending.wait(pause_s)

    def _settle(self) -> bool:
        """Let studies begin of which nothing came for some time."""
        for study in self.queue.settle(self.settings.work.quiet_s):
            self.audit.note("study_complete", study.id, files=study.files, bytes=study.bytes)
        return False

    def _deliver(self) -> bool:
        """Send a result; what does not arrive is sent again later."""
        archive, study = self.settings.archive, self.queue.take("sending")
        if study is None:
            return False
        files = [self.results / study.name / name for name in study.about["files"]]
        try:
            if archive.peer is not None:
                send(files, archive, self.settings.listen.ae_title)
            else:
                store(files, archive)
        except Exception as error:
            got = str(error) if isinstance(error, SendError) else where(error)
            self._later(study, sentence("delivery", "an archive that takes the result", got, "Check archive.to"))
            return True
        self.queue.sent(study)
        self.audit.note("delivered", study.id, objects=len(files))
        self._remove(study.id, picture=False)
        return True

    def _look(self) -> bool:
        """Ask a DICOMweb service for new studies."""
        assert self._poller is not None  # else this is no step
        if self.full():
            raise FetchError(self.full())
        for study in self._poller.look():
            self.audit.note("study_began", study.id, origin="dicomweb", uid=study.key)
        return False

    def _fetch(self) -> bool:
        """Fetch a study that was noted."""
        assert self._poller is not None  # else this is no step
        study = None if self.full() else self.queue.take("fetching")
        if study is None:
            return False
        folder = self.studies / study.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            sizes = self._poller.fetch(study, folder, self.settings.limits)
        except FetchError as error:
            self._later(study, sentence("study", "one that can be fetched", str(error), "Check archive.poll"))
        except RefusedError as error:
            advice = "Raise limits.study_mb or limits.study_files"
            self._aside(study, sentence("study", str(error), "more", advice))
        else:
            self.queue.fetched(study, sizes)
            self.audit.note("study_complete", study.id, files=len(sizes), bytes=sum(sizes.values()))
        return True

    def _later(self, study: Study, reason: str) -> None:
        """Try a step again, or give it up if it has failed for too long."""
        if study.step_began is not None and time.time() - study.step_began > self.settings.archive.give_up_h * 3600:
            self._aside(study, reason)
        else:
            self.queue.retry(study, reason)
            if study.tries == 0:  # once, not at every try
                self.audit.note("tried_again", study.id, reason=reason)

    def _aside(self, study: Study, reason: str) -> None:
        self.queue.fail(study, reason)
        self.audit.note("set_aside", study.id, reason=reason)

    # Between queue and workers.

    def _task(self, study: Study) -> dict[str, Any]:
        """What a worker is told."""
        source, limits = self.studies / study.name, self.settings.limits
        task = {"out": str(self.results / study.name), "most_bytes": limits.image_mb << 20}
        if study.origin == "http":
            about = study.about
            return {**task, "input": str(source / f"{study.name}.{about['file']}"), "mask": about["mask"]}
        return {**task, "input": str(source)}

    def _finished(self, study: Study, answer: Mapping[str, Any] | WorkerError) -> None:
        """What becomes of a study when its worker has answered, or ended."""
        if isinstance(answer, WorkerError) or not answer["done"]:
            failed = isinstance(answer, WorkerError) or answer["again"]
            reason = self._reason(str(answer) if isinstance(answer, WorkerError) else str(answer["reason"]), failed)
            late = isinstance(answer, WorkerError) and answer.late
            if failed and not late and study.tries + 1 < self.settings.work.tries:
                self.queue.retry(study, reason, becomes="waiting")
                self.audit.note("tried_again", study.id, reason=reason)
            else:
                self._aside(study, reason)
            return
        thumbnail = self.results / study.name / "thumbnail.jpg"
        if thumbnail.exists():
            thumbnail.replace(self.results / f"{study.name}.jpg")
        send_it = study.origin != "http" and bool(self.settings.archive.to)
        about = {name: answer[name] for name in ("seconds", "organs", "notes", "files")}
        about["notes"] = [self._reason(note, False) for note in about["notes"]]
        self.queue.segmented(study, about, send=send_it)
        self.audit.note("segmented", study.id, seconds=about["seconds"], organs=json.dumps(about["organs"]))
        if not send_it and study.origin != "http":
            shutil.rmtree(self.studies / study.name, ignore_errors=True)

    def _reason(self, text: str, unforeseen: bool) -> str:
        """A reason as the page shows it: without the folder of the node, and in the form of all sentences."""
        text = text.replace(f"{self.studies}{os.sep}", "")
        return (
            sentence("study", "one that can be segmented", text, "See the documents, or report it")
            if unforeseen
            else text
        )

    def _remove(self, number: int, *, picture: bool = True) -> None:
        """Remove the files of a study, and of its result."""
        name = f"{number:06d}"
        for folder in (self.studies, self.results):
            shutil.rmtree(folder / name, ignore_errors=True)
        if picture:
            (self.results / f"{name}.jpg").unlink(missing_ok=True)

    def _clean(self) -> bool:
        """Remove what nobody needs: files that were broken off, old studies, and pictures beyond the last ones."""
        for path in self.incoming.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= _LEFT_S:
                    path.unlink()
        for number in self.queue.forget(self.settings.keep.days * _DAY_S):
            self._remove(number)
        # Some may be of studies that ended the moment before a kill. What has no row is nobody's: rows come first.
        found = [(path, self._known(path.stem)) for path in (*self.studies.iterdir(), *self.results.iterdir())]
        shown = {study.name for study in self.queue.last(self.settings.keep.results, "done")}
        for path, study in found:
            if study is None or (study.state == "done" and not self._needed(path, study, shown)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return False

    def _known(self, name: str) -> Study | None:
        try:
            return self.queue.study(int(name))
        except (KeyError, ValueError):
            return None

    def _needed(self, path: Path, study: Study, shown: Collection[str]) -> bool:
        """Whether something of a study that is done stays: its picture, and a result that was sent nowhere."""
        if path.is_dir():
            return path.parent == self.results and not study.about.get("delivered")
        return study.name in shown


def _locked(path: Path) -> int | None:
    """The lock of a folder; None where the file system has none."""
    try:
        return lock(path, wait=False)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise


def _silence_libraries() -> None:
    """What libraries log and warn of may quote names of patients; the audit log tells what happened."""
    for name in ("pydicom", "pynetdicom", "dicomweb_client", "urllib3", "requests", "uvicorn", "asyncio", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    modes = pydicom.config.settings
    modes.reading_validation_mode = modes.writing_validation_mode = pydicom.config.IGNORE
