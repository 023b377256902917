"""The studies of a node and what has become of them, in a file that survives a kill at any moment.

A study goes one way: ``receiving`` (or ``fetching``) → ``waiting`` → ``running`` → ``sending`` → ``done``, or aside as
``failed`` with its reason. Each step is one transaction, so that a study is never in two states, and one that was at
work when the node was killed is begun again. What came once, by whatever way, is known by the hash of its identifier
and not taken again. The same object sent twice has the same identifiers (:mod:`pipeline.export.dicom_source`), so that
a kill between sending and noting it leaves one in the archive, too.

Identifiers of studies are kept as long as they are needed to fetch or show them, and no other text of a file at all.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import text_hash

State = Literal["receiving", "fetching", "waiting", "running", "sending", "done", "failed"]
STATES: tuple[State, ...] = ("receiving", "fetching", "waiting", "running", "sending", "done", "failed")
OPEN: tuple[State, ...] = STATES[:5]
"""States of studies that something is still to be done for."""

TOTALS = (
    *("received_files", "duplicate_files", "refused_files", "retries"),
    *("studies_done", "studies_failed", "uploads_done", "uploads_failed"),
)
"""Counts since the node's folder was made."""

_RETRY_S, _LONGEST_RETRY_S = 2.0, 600.0
_VERSION = 1
_TOO_LARGE = "Send fewer series, or raise limits.study_mb and limits.study_files"
_SCHEMA = """
CREATE TABLE studies (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, uid TEXT NOT NULL, origin TEXT NOT NULL,
    state TEXT NOT NULL, files INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, began REAL NOT NULL,
    changed REAL NOT NULL, due REAL NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0, step_began REAL,
    reason TEXT NOT NULL DEFAULT '', about TEXT NOT NULL DEFAULT '{}');
CREATE INDEX studies_by_state ON studies (state, due);
CREATE INDEX studies_by_key ON studies (key);
CREATE TABLE files (key TEXT NOT NULL, name TEXT NOT NULL, study INTEGER NOT NULL, PRIMARY KEY (key, name))
    WITHOUT ROWID;
CREATE INDEX files_by_study ON files (study);
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class RefusedError(Exception):
    """A study or file that is not taken; the text is the rule that it breaks."""


@dataclass(frozen=True)
class Study:
    """A study, or an uploaded file, as the queue knows it.

    Args:
        id: Its number in the node.
        key: Hash of its identifier; of an uploaded file empty.
        uid: StudyInstanceUID.
        origin: ``dicom``, ``dicomweb`` or ``http``.
        state: One of STATES.
        files: Files that came.
        bytes: Their size.
        began: When the first came, in seconds since 1970.
        changed: When it last changed.
        tries: How often the present step was tried in vain.
        step_began: When the present step was tried first.
        reason: Why it was set aside, or is tried again.
        about: What its worker told: ``seconds``, ``organs``, ``notes``; of an uploaded file what was asked for.
    """

    id: int
    key: str
    uid: str
    origin: str
    state: State
    files: int
    bytes: int
    began: float
    changed: float
    tries: int
    step_began: float | None
    reason: str
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What its folders and files are called: a number, nothing of the patient."""
        return f"{self.id:06d}"

    @property
    def too_large(self) -> bool:
        """Whether it was set aside because more of it came than may."""
        return self.reason.endswith(f"{_TOO_LARGE}.")

    @property
    def can_begin_again(self) -> bool:
        """Whether there is all that it needs to begin again, if it was set aside."""
        return self.origin != "http" and not self.too_large

    @property
    def kind(self) -> str:
        """``studies`` or ``uploads``."""
        return "uploads" if self.origin == "http" else "studies"


def study_key(uid: str) -> str:
    """Hash of an identifier."""
    return text_hash("study", uid)


class StudyQueue:
    """The queue in its file; for all threads of one process.

    Args:
        path: SQLite file, made if it is not there.
        most_open: Studies that may be open at a time.
        clock: Seconds since 1970.

    Raises:
        VolsegError: If the file is none of a queue, or of a later version.
    """

    def __init__(self, path: Path, most_open: int = 1000, clock: Callable[[], float] = time.time) -> None:
        self.most_open, self._clock, self._lock = most_open, clock, threading.RLock()
        self.changed = threading.Condition()
        """Notified when a study has become due for some step."""
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")  # what was confirmed to a sender survives a power cut
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._base.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_VERSION};COMMIT;")
        except sqlite3.Error as error:
            advice = "Restore the file, or begin with a new folder"
            raise VolsegError(sentence("queue", "a readable file", f"an error ({error})", advice, file=path)) from None
        if version > _VERSION:
            advice = "Run the version of volseg that wrote it, or begin with a new folder"
            raise VolsegError(sentence("queue", f"version {_VERSION}", f"version {version}", advice, file=path))

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or nothing."""
        with self._lock:
            before = self._base.total_changes
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")
            changed = self._base.total_changes > before
        if changed:
            with self.changed:
                self.changed.notify_all()

    # Studies that come file by file.

    def place(self, uid: str, name: str, size: int, origin: str, most_bytes: int, most_files: int) -> Study | None:
        """The study that a file of it goes to, whose quiet time begins again; None if the file is known already.

        A file that comes when its study is at work, or done, begins a further study, which notes the first.

        Args:
            uid: StudyInstanceUID.
            name: What tells the file from others of the study.
            size: Its bytes.
            origin: How it came.
            most_bytes: Of all files of the study.
            most_files: Of the study.

        Raises:
            RefusedError: If the queue is full, or the study too large.
        """
        key, now = study_key(uid), self._clock()
        limit = f"a study of at most {most_bytes >> 20} MB and {most_files} files"
        with self._writing() as base:
            if base.execute("SELECT 1 FROM files WHERE key=? AND name=?", (key, name)).fetchone():
                self._count(base, "duplicate_files")
                return None
            row = base.execute("SELECT * FROM studies WHERE key=? ORDER BY id DESC LIMIT 1", (key,)).fetchone()
            last = None if row is None else _study(row)
            here = last if last is not None and last.state in ("receiving", "waiting") else None
            fits = here is None or (here.bytes + size <= most_bytes and here.files < most_files)
            if here is not None and not fits:
                # As a whole: a mask of the part that fits would look like one of the study.
                self._step(base, here.id, "failed", reason=sentence("study", limit, "more", _TOO_LARGE))
                self._count(base, "studies_failed")
            elif last is None or here is None:
                fits = last is None or not last.too_large
                about = {} if last is None else {"part_of": last.id}
                number = self._new(base, key, uid, origin, "receiving", about) if fits else 0
            else:
                number = here.id
                base.execute("UPDATE studies SET state='receiving', changed=? WHERE id=?", (now, number))
        if not fits:
            raise RefusedError(limit)
        return self.study(number)

    def placed(self, study: Study, name: str, size: int) -> bool:
        """Note that a file lies in its place; False if its study has begun meanwhile, so that it needs another."""
        with self._writing() as base:
            done = base.execute(
                "UPDATE studies SET files=files+1, bytes=bytes+?, changed=?, state='receiving' "
                "WHERE id=? AND state IN ('receiving', 'waiting')",
                (size, self._clock(), study.id),
            )
            if done.rowcount == 0:
                return False
            base.execute("INSERT OR IGNORE INTO files VALUES (?, ?, ?)", (study.key, name, study.id))
            self._count(base, "received_files")
            return True

    def fetch(self, uid: str, about: Mapping[str, Any]) -> Study | None:
        """Note a study that is to be fetched; None if it is known.

        Raises:
            RefusedError: If the queue is full.
        """
        key = study_key(uid)
        with self._writing() as base:
            if base.execute("SELECT 1 FROM studies WHERE key=?", (key,)).fetchone():
                return None
            number = self._new(base, key, uid, "dicomweb", "fetching", about)
        return self.study(number)

    def knows(self, uid: str) -> bool:
        """Whether a study came before, by whatever way."""
        with self._lock:
            found = self._base.execute("SELECT 1 FROM studies WHERE key=?", (study_key(uid),)).fetchone()
        return found is not None

    def fetched(self, study: Study, sizes: Mapping[str, int]) -> None:
        """Note that all files of a study lie in their place."""
        with self._writing() as base:
            base.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?)", [(study.key, n, study.id) for n in sizes])
            self._count(base, "received_files", len(sizes))
            self._step(base, study.id, "waiting", files=len(sizes), bytes=sum(sizes.values()))

    def upload(self, about: Mapping[str, Any]) -> Study:
        """A place for a file that somebody waits for; it begins with :meth:`uploaded`.

        Raises:
            RefusedError: If the queue is full.
        """
        with self._writing() as base:
            number = self._new(base, "", "", "http", "receiving", about)
        return self.study(number)

    def uploaded(self, study: Study, size: int) -> None:
        """Note that a file has come whole."""
        with self._writing() as base:
            self._step(base, study.id, "waiting", files=1, bytes=size)

    # The steps.

    def settle(self, quiet_s: float) -> list[Study]:
        """Let studies begin of which nothing came for some time; those without a file are given up."""
        with self._writing() as base:
            before = self._clock() - quiet_s
            where = "state='receiving' AND origin<>'http' AND changed<=?"
            base.execute(f"DELETE FROM studies WHERE {where} AND files=0", (before,))
            found = [row["id"] for row in base.execute(f"SELECT id FROM studies WHERE {where}", (before,))]
            for number in found:
                self._step(base, number, "waiting")
        return [self.study(number) for number in found]

    def take(self, state: State, becomes: State | None = None) -> Study | None:
        """The next study that is due in a state, uploaded files first; it is in another state from now on, if told."""
        with self._writing() as base:
            row = base.execute(
                "SELECT id FROM studies WHERE state=? AND due<=? ORDER BY origin='http' DESC, due, id LIMIT 1",
                (state, self._clock()),
            ).fetchone()
            if row is None:
                return None
            if becomes is not None:
                base.execute("UPDATE studies SET state=?, changed=? WHERE id=?", (becomes, self._clock(), row["id"]))
            return self.study(row["id"])

    def segmented(self, study: Study, about: Mapping[str, Any], *, send: bool) -> None:
        """Note what a worker made of a study, which is sent next or done."""
        with self._writing() as base:
            told = json.dumps({**study.about, **about})
            self._step(base, study.id, "sending" if send else "done", about=told)
            if not send:
                self._count(base, f"{study.kind}_done")

    def sent(self, study: Study) -> None:
        """Note that a result was delivered."""
        with self._writing() as base:
            self._step(base, study.id, "done", about=json.dumps({**study.about, "delivered": True}))
            self._count(base, "studies_done")

    def retry(self, study: Study, reason: str, *, becomes: State | None = None) -> None:
        """Try a step again later: after 2 s, and each time twice as long, up to 10 minutes."""
        with self._writing() as base:
            wait_s = min(_LONGEST_RETRY_S, _RETRY_S * 2.0 ** min(study.tries, 30))
            now = self._clock()
            base.execute(
                "UPDATE studies SET tries=tries+1, step_began=coalesce(step_began, ?), due=?, changed=?, reason=?, "
                "state=? WHERE id=?",
                (now, now + wait_s, now, reason, becomes or study.state, study.id),
            )
            self._count(base, "retries")

    def fail(self, study: Study, reason: str) -> None:
        """Set a study aside."""
        with self._writing() as base:
            self._step(base, study.id, "failed", reason=reason)
            self._count(base, f"{study.kind}_failed")

    def again(self, number: int) -> bool:
        """Let a study that was set aside begin again where it failed; False if it is not there."""
        with self._writing() as base:
            row = base.execute("SELECT * FROM studies WHERE id=? AND state='failed'", (number,)).fetchone()
            study = None if row is None else _study(row)
            if study is None or not study.can_begin_again:
                return False
            unfetched = study.origin == "dicomweb" and not study.files
            step: State = "sending" if "seconds" in study.about else "fetching" if unfetched else "waiting"
            self._step(base, number, step)
            return True

    def drop(self, number: int) -> None:
        """Forget an uploaded file: it was answered, or nobody waits any more."""
        with self._writing() as base:
            base.execute("DELETE FROM studies WHERE id=? AND origin='http'", (number,))

    def restart(self) -> list[int]:
        """After a kill: what was at work waits again; numbers of uploads, for which nobody waits any more."""
        with self._writing() as base:
            base.execute("UPDATE studies SET state='waiting', due=0 WHERE state='running' AND origin<>'http'")
            base.execute("UPDATE studies SET due=0 WHERE state IN ('sending', 'fetching')")
            gone = [row["id"] for row in base.execute("SELECT id FROM studies WHERE origin='http'")]
            base.execute("DELETE FROM studies WHERE origin='http'")
        return gone

    def forget(self, older_than_s: float) -> list[int]:
        """Drop all that is known of studies that ended so long ago; their numbers."""
        with self._writing() as base:
            where = "state IN ('done', 'failed') AND changed<?"
            before = self._clock() - older_than_s
            gone = [row["id"] for row in base.execute(f"SELECT id FROM studies WHERE {where}", (before,))]
            for number in gone:
                base.execute("DELETE FROM files WHERE study=?", (number,))
                base.execute("DELETE FROM studies WHERE id=?", (number,))
        return gone

    # Looking.

    def study(self, number: int) -> Study:
        """A study by its number.

        Raises:
            KeyError: If it is not there.
        """
        with self._lock:
            row = self._base.execute("SELECT * FROM studies WHERE id=?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        return _study(row)

    def last(self, count: int, *states: State) -> list[Study]:
        """The studies in some states that changed last, the newest first."""
        marks = ",".join("?" * len(states))
        with self._lock:
            rows = self._base.execute(
                f"SELECT * FROM studies WHERE state IN ({marks}) AND origin<>'http' ORDER BY changed DESC, id DESC "
                "LIMIT ?",
                (*states, count),
            ).fetchall()
        return [_study(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """How many studies and uploads are in each state."""
        with self._lock:
            found = dict(self._base.execute("SELECT state, count(*) FROM studies GROUP BY state").fetchall())
        return {state: int(found.get(state, 0)) for state in STATES}

    def totals(self) -> dict[str, int]:
        """What was counted, see TOTALS."""
        with self._lock:
            found = dict(self._base.execute("SELECT name, value FROM totals").fetchall())
        return {name: int(found.get(name, 0)) for name in TOTALS}

    def count(self, name: str) -> None:
        """Count something of TOTALS."""
        with self._writing() as base:
            self._count(base, name)

    def _new(
        self, base: sqlite3.Connection, key: str, uid: str, origin: str, state: State, about: Mapping[str, Any] = {}
    ) -> int:
        marks = ",".join("?" * len(OPEN))
        there = base.execute(f"SELECT count(*) FROM studies WHERE state IN ({marks})", OPEN).fetchone()[0]
        if there >= self.most_open:
            raise RefusedError(f"at most {self.most_open} studies that wait")
        now = self._clock()
        values = (key, uid, origin, state, now, now, json.dumps(about))
        made = base.execute(
            "INSERT INTO studies (key, uid, origin, state, began, changed, about) VALUES (?, ?, ?, ?, ?, ?, ?)", values
        )
        return int(made.lastrowid or 0)

    def _step(self, base: sqlite3.Connection, number: int, state: State, **values: Any) -> None:
        """The next step of a study begins: its tries are counted anew."""
        now = self._clock()
        values = {"reason": "", **values, "state": state, "changed": now, "due": now, "tries": 0, "step_began": None}
        names = ", ".join(f"{name}=?" for name in values)
        base.execute(f"UPDATE studies SET {names} WHERE id=?", (*values.values(), number))

    def _count(self, base: sqlite3.Connection, name: str, by: int = 1) -> None:
        base.execute(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value=value+excluded.value", (name, by)
        )


def _study(row: sqlite3.Row) -> Study:
    content = {name: row[name] for name in row.keys() if name != "due"}  # noqa: SIM118  # a row is no mapping
    return Study(**{**content, "about": json.loads(row["about"])})
