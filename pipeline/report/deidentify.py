"""Names that a page may show: by default neither case ids nor paths, since both may name a patient."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.files import text_hash
from pipeline.evaluate.results import ScoredFiles

_DIGITS = 8
_SHORT = 3  # an id or a folder of fewer letters is also an ordinary word: it is looked for in fewer places
_NUMBER = 5  # digits of a number that may be a patient's
_EVERYDAY = re.compile(
    r"cases?|data|datasets?|eval|evaluation|gt|(?:images?|labels?)(?:t[rs])?|masks?|models?|nii|nrrd|outputs?|pred|"
    r"predicted|predictions?|refs?|references?|results?|scans?|scores?|seg|segmentation|tests?|the|train|training|volumes?"
)
_PATH = "[path]"
_LOOKS_LIKE_A_PATH = re.compile(
    r"\w[\\/]|[\\/]\w|\w\.(?:nii|nrrd|nhdr|mha|mhd|dcm|npz|png|tiff?|json|csv)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Names:
    """What cases are called on a page, and what is kept out of its sentences.

    Args:
        aliases: Case id → what the page calls it.
        paths: Files and folders of the cases, and every ending of them that has at least two parts.
        words: Parts of paths and of case ids, in lower case, that no sentence may hold.
        hidden: Whether ids and paths are kept out; otherwise everything is shown as it is.
    """

    aliases: dict[str, str]
    paths: tuple[str, ...] = ()
    words: frozenset[str] = field(default_factory=frozenset)
    hidden: bool = True

    def case(self, case: str) -> str:
        """What the page calls a case."""
        return self.aliases.get(case, case) if self.hidden else case

    def text(self, sentence: str) -> str | None:
        """A sentence without ids and paths.

        Args:
            sentence: Any text that may name cases or files.

        Returns:
            The text with hashes for ids and ``[path]`` for paths; None if something is left that may be a name.
        """
        if not self.hidden:
            return sentence
        # Whole paths first: an id within a path would leave the rest of it standing.
        for path in self.paths:
            if path in sentence:
                sentence = sentence.replace(path, _PATH)
        sentence = re.sub(r"\[path\](?:[\\/][\w.-]+)+", _PATH, sentence)
        # The longest id first, since an id may be a part of another.
        for case in sorted((case for case in self.aliases if case in sentence), key=len, reverse=True):
            before = r"(?<=case |e\.g\. )" if len(case) < _SHORT else r"(?<!\w)"
            sentence = re.sub(before + re.escape(case) + r"(?!\w)", self.aliases[case], sentence)
        return None if _words(sentence) & self.words or _LOOKS_LIKE_A_PATH.search(sentence) else sentence

    def texts(self, sentences: Iterable[str]) -> tuple[list[str], int]:
        """Those of some sentences that may be shown, and how many may not."""
        found = [self.text(each) for each in sentences]
        return [each for each in found if each is not None], found.count(None)


def names_of(cases: Iterable[ScoredFiles], others: Iterable[str] = (), *, show: bool) -> Names:
    """The names of an evaluation.

    An alias is the start of a hash of the case id: the same in every report, and longer where two would be equal. It
    hides a name from a reader; who has a list of names can still find out which one it belongs to.

    Args:
        cases: The cases and their files.
        others: Ids of further cases, such as those whose reference could not be made.
        show: Show ids and paths as they are.
    """
    known = list(cases)
    ids = list(dict.fromkeys((*(case.id for case in known), *others)))
    if show:
        return Names({}, hidden=False)
    hashes = [text_hash("case", case) for case in ids]
    digits = _DIGITS if len({each[:_DIGITS] for each in hashes}) == len(ids) else len(hashes[0])
    aliases = {case: each[:digits] for case, each in zip(ids, hashes, strict=True)}
    files = {path for case in known for path in (case.reference, case.prediction, *case.images) if path is not None}
    endings = sorted({ending for file in files for ending in _endings(file)}, key=len, reverse=True)
    parts = {*ids, *(part for file in files for part in file.parts)}
    words = {word for part in parts for word in _words(part)}
    return Names(aliases, tuple(endings), frozenset(word for word in words if _tells(word)))


def _endings(file: Path) -> Iterator[str]:
    """The file, its folders, and all their endings; of one part only the file's own name."""
    yield file.name
    for path in (file, *file.parents):
        for start in range(len(path.parts) - 1):
            yield str(Path(*path.parts[start:]))


def _words(text: str) -> set[str]:
    """Words in lower case; of those that underscores join also each."""
    return {word.lower() for pattern in (r"\w+", r"[^\W_]+") for word in re.findall(pattern, text)}


def _tells(word: str) -> bool:
    """Whether a word says more than what kind of file or folder it names."""
    if not word.isascii():  # no sentence of this package has such words of its own
        return True
    return len(word) >= (_NUMBER if word.isdigit() else _SHORT) and not _EVERYDAY.fullmatch(word)
