"""The files of trained nnU-Net models, in a folder or in a zip archive that ``nnUNetv2_export_model_to_zip`` wrote.

Nothing is unpacked: what is wanted is read into memory, within bounds.
"""

from __future__ import annotations

import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.documents import require_regular, short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.paths import absence

PLANS, DATASET = "plans.json", "dataset.json"
_JSON_BYTES = 64 << 20
_CHECKPOINT_BYTES = 16 << 30
_DEFLATED = 200  # times smaller: JSON of zeros has some 100, a bomb about 1000; weights hardly get smaller
_SMALL_BYTES = 1 << 20  # so little is no bomb, however well it is packed
_DEPTH = 2  # folders between what a user names and a model: Dataset900_x/nnUNetTrainer__nnUNetPlans__3d_fullres
_ADVICE = "Export the model again with nnUNetv2_export_model_to_zip"
_CHECKPOINT = re.compile(r"(?P<model>.+)/fold_(?P<fold>all|[0-9]{1,4})/checkpoint_(?P<kind>final|best)\.pth")


class ResultsFiles:
    """The files of one or several trained models; names are relative, with ``/`` between folders.

    Args:
        path: A results folder of nnU-Net (of a dataset, or of one of its models), or a zip archive of such.

    Attributes:
        models: Folders of models that ``path`` names, those with ``plans.json``.

    Raises:
        VolsegError: If there is no such model, or a name or size in an archive is not that of an honest one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.archive = path, None
        if gone := absence(path):
            raise VolsegError(sentence("nnU-Net model", "a results folder or a zip archive", *gone, file=path))
        require_regular(path)
        if path.is_dir():
            # A cascade's first stage lies beside its second one.
            own = (path / PLANS).is_file()
            self.root = path.resolve().parent if own else path
            depths = range(1, _DEPTH + 1)
            below = [folder for depth in depths for folder in sorted(self.root.glob("*/" * depth))]
            folders = [path.resolve()] if own else below
            names = [f"{folder.relative_to(self.root).as_posix()}/{PLANS}" for folder in folders]
            self._require_v2(names, path)
            found = [name for name in names if (self.root / name).is_file()]
        elif zipfile.is_zipfile(path):
            self.archive = zipfile.ZipFile(path)
            found = _checked_names(self.archive.infolist(), path)
        else:
            got = "another file"
            raise VolsegError(sentence("nnU-Net model", "a results folder or a zip archive", got, _ADVICE, file=path))
        ending = f"/{PLANS}"
        self.models = tuple(name.removesuffix(ending) for name in found if name.endswith(ending))
        if not self.models:
            rule = f"a folder of a trained model with {PLANS} in it"
            raise VolsegError(sentence("nnU-Net model", rule, "none", "Name its results folder", file=path))

    def _require_v2(self, names: Sequence[str], path: Path) -> None:
        """Refuse models of nnU-Net v1, whose plans are a pickle."""
        old = path / "plans.pkl"
        if old.is_file() or any((self.root / name).with_name("plans.pkl").is_file() for name in names):
            advice = "Models of version 1 cannot be read: their plans are a pickle, which could run anything"
            raise VolsegError(sentence("nnU-Net model", f"{PLANS} of version 2", "plans.pkl", advice, file=path))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if self.archive is None:
            return (self.root / name).is_file()
        return name in self.archive.NameToInfo

    def checkpoints(self, model: str) -> dict[str, set[str]]:
        """Fold of a model (a number, or ``all``) → its checkpoints, ``final`` or ``best``."""
        names: Iterable[str]
        if self.archive is None:
            names = (file.relative_to(self.root).as_posix() for file in (self.root / model).glob("fold_*/*.pth"))
        else:
            names = self.archive.namelist()
        found: dict[str, set[str]] = {}
        for match in filter(None, map(_CHECKPOINT.fullmatch, names)):
            if match["model"] == model:
                found.setdefault(match["fold"], set()).add(match["kind"])
        return found

    def beside(self, model: str, configuration: str) -> str:
        """Folder of the model of another configuration, by the same trainer and plans."""
        parent, name = PurePosixPath(model).parent, PurePosixPath(model).name
        return (parent / "__".join([*name.split("__")[:-1], configuration])).as_posix()

    def where(self, name: str) -> str:
        """A file in words, for messages."""
        return str(self.root / name) if self.archive is None else f"{self.path}: {name}"

    def read_json(self, name: str) -> dict[str, Any]:
        """An object in JSON.

        Raises:
            VolsegError: If it is missing, too large, no JSON or no object.
        """
        try:
            content = json.loads(self.read(name, _JSON_BYTES).decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise VolsegError(f"{self.where(name)}: expected JSON, got {short(error)}. {_ADVICE}.") from None
        if not isinstance(content, dict):
            got = type(content).__name__
            raise VolsegError(f"{self.where(name)}: expected keys with values, got {got}. {_ADVICE}.")
        return content

    def read_checkpoint(self, model: str, fold: str, kind: str) -> tuple[bytes, str]:
        """Content of a checkpoint, and the file in words."""
        name = f"{model}/fold_{fold}/checkpoint_{kind}.pth"
        return self.read(name, _CHECKPOINT_BYTES), self.where(name)

    def read(self, name: str, most: int) -> bytes:
        """The content of a file.

        Raises:
            VolsegError: If it is missing, damaged, a pipe or a device, or larger than ``most`` bytes.
        """
        try:
            if self.archive is None:
                require_regular(self.root / name)
                with (self.root / name).open("rb") as stream:
                    content = stream.read(most + 1)
            else:
                # No more than its header says is ever unpacked, and that was compared with its packed size.
                if self.archive.getinfo(name).file_size > most:
                    raise self._too_large(name, most)
                content = self.archive.read(name)
        except KeyError:
            raise VolsegError(sentence("nnU-Net model", name, "none", _ADVICE, file=self.path)) from None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            got, rule = short(getattr(error, "strerror", None) or error), "a file that can be read"
            raise VolsegError(sentence("nnU-Net model", rule, got, _ADVICE, file=self.where(name))) from None
        if len(content) > most:
            raise self._too_large(name, most)
        return content

    def _too_large(self, name: str, most: int) -> VolsegError:
        rule = f"at most {most >> 20} MB"
        return VolsegError(sentence("nnU-Net model", rule, "more", "Check the file", file=self.where(name)))


def _checked_names(entries: Sequence[zipfile.ZipInfo], path: Path) -> list[str]:
    """The names in an archive, all of them such as nnU-Net writes.

    Raises:
        VolsegError: Naming the first entry that leads out of the archive, is a link, is encrypted, is there twice, or
            would become much larger than any file of a model does.
    """
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        parts = name.rstrip("/").split("/")
        why = None
        if name.startswith("/") or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
            why = ("names of files below it", "one that leads elsewhere")
        elif stat.S_ISLNK(entry.external_attr >> 16):
            why = ("no links", "one")
        elif entry.flag_bits & 1:
            why = ("no passwords", "an encrypted file")
        elif name in seen:
            why = ("every name once", "one twice")
        elif entry.file_size > _SMALL_BYTES and entry.file_size > _DEFLATED * max(1, entry.compress_size):
            size = f"{entry.file_size} bytes in {entry.compress_size}, which looks like a zip bomb"
            why = (f"files at most {_DEFLATED} times larger than they are packed", size)
        if why is not None:
            rule, got = why
            raise VolsegError(sentence("archive", rule, f"{got}: {short(name)}", "Nothing was read", file=path))
        seen.add(name)
    return [entry.filename for entry in entries]
