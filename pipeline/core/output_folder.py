"""The output folder of one run: what the run may overwrite there, what it refuses and what it removes.

All commands follow one policy:

1. **The record comes first.** A command that fills a folder keeps a record in it: a JSON file of a fixed name that says
   what the files were made from (the origin) and which files there are. It is written before any other file, so that a
   run that follows a killed one knows its own files.
2. **Only a folder of its own.** Such a folder is new, empty (hidden files do not count), or holds a record of the same
   origin. Any other folder is refused before anything is written.
3. **Only files of its own.** Where the files of others may stand beside (masks of ``predict``), a run overwrites only
   files that its record names, and refuses to begin if another file is in the way. Pages and tables of fixed names
   (``scores.csv``, ``plan.yaml``) are always replaced.
4. **A damaged record is none.** A record that is missing, cannot be read, or is no JSON object counts as none: all is
   made anew, or by rule 2 refused.
5. **What is unchanged is kept.** The entry of a case holds the content hash of all that its files depend on. It is
   entered when the files are complete; until then it is empty.
6. **What is stale is removed**: files that the record names and this run does not make, and temporary files of a killed
   run. The file that makes the folder usable (a dataset's description, ``model.json``) is removed first and written
   last. Nothing outside the folder is touched, whatever a record says, because it can be edited.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json


def read_record(path: Path) -> dict[str, Any]:
    """The record of an earlier run; empty if it is missing, cannot be read or is no JSON object."""
    try:
        content = read_json(path)
    except VolsegError:
        return {}
    return content if isinstance(content, dict) else {}


class OutputFolder:
    """The folder that one run writes.

    Args:
        path: The folder; it need not exist.
        record: File name of its record; empty where the layout of the folder has no place for one.
        origin: Keys and values that the record of an earlier run must have for its files to be those of this run.

    Attributes:
        record: Path of the record.
        earlier: The record of an earlier run, of whatever origin; empty if there is none.
    """

    def __init__(self, path: Path, record: str = "", origin: Mapping[str, Any] | None = None) -> None:
        self.path, self.record, self.origin = path, path / record, dict(origin or {})
        self.earlier = read_record(self.record) if record else {}

    def require_own(self, earlier_run: str) -> None:
        """Refuse a folder that holds anything but what an earlier run of the same origin wrote.

        ``earlier_run`` says whose files may be there, e.g. ``an earlier repair of this dataset``.

        Raises:
            VolsegError: If other files are there, or the path is that of a file.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.glob("[!.]*"))):
            return
        # Only the keys of the origin: what else a record says may change from run to run.
        origin = {key: self.earlier.get(key) for key in self.origin}
        if self.earlier and origin == self.origin:
            return
        got = "a file" if self.path.is_file() else "other files"
        if self.earlier:
            got = f"one with {', '.join(f'{key} {value}' for key, value in origin.items())}"
        self.refuse(f"a new folder, or {earlier_run}", got)

    def require_only(self, expected: Collection[Path], rule: str) -> None:
        """Refuse a folder in which other files stand than those that this run writes; hidden files do not count.

        ``rule`` says what the folder must be, for the message.
        """
        strangers = (
            file.relative_to(self.path) for file in self.path.rglob("*") if file not in expected and file.is_file()
        )
        others = sorted(name for name in strangers if not any(part.startswith(".") for part in name.parts))
        if others:
            self.refuse(rule, f"{len(others)} other files such as {others[0]}")

    def require_free(self, files: Iterable[Path], own: Collection[Path], earlier_run: str) -> None:
        """Refuse to overwrite files other than those that an earlier run wrote.

        Args:
            files: What this run writes.
            own: What an earlier run wrote, by its record.
            earlier_run: As for :meth:`require_own`.

        Raises:
            VolsegError: If another file is in the way.
        """
        taken = next((file for file in files if file not in own and file.exists()), None)
        if taken is not None:
            rule = f"a free place or {earlier_run}"
            raise VolsegError(sentence(str(taken), rule, "another file", "Use another output folder"))

    def refuse(self, rule: str, got: str) -> NoReturn:
        """Raise the sentence that says why this folder cannot be taken."""
        raise VolsegError(
            sentence("output folder", rule, got, "Choose another folder, or empty this one", file=self.path)
        )

    def listed(self, key: str) -> set[str]:
        """Names that the record of an earlier run lists under a key; none if it has no such list."""
        names = self.earlier.get(key)
        return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()

    def remove(self, names: Iterable[str]) -> None:
        """Remove files by their names in the record, relative to the folder; what leads out of it stays."""
        # Compared after links are resolved: a record can be edited, and a link can lead anywhere.
        home = self.path.resolve()
        for path in (self.path / name for name in names):
            if path.resolve().is_relative_to(home):
                path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        """Remove folders below this one in which nothing is left."""
        # The deepest come first, so that a folder of empty folders goes too.
        for folder in sorted((path for path in self.path.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):  # not empty
                folder.rmdir()
