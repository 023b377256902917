"""Drishti-GS1: fundus photographs with soft maps of the optic disc and the optic cup by four experts.

Reference: Sivaswamy et al., A comprehensive retinal image dataset for the assessment of glaucoma from the optic nerve
head analysis, JSM Biomedical Imaging Data Papers 2(1), 2015.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core import DataError, LabelTable, sentence
from pipeline.data.case_files import CaseFiles, Dataset, Split
from pipeline.data.layout_readers import list_volumes
from pipeline.data.layout_tables import Description, build_dataset
from pipeline.data.volume_file import COLOURS, volume_stem

__all__ = ["drishti_labels", "is_drishti", "read_drishti"]

_MASKS = ((1, "ODsegSoftmap"), (2, "cupsegSoftmap"))  # label value and file name; the cup is painted over the disc
_PARTS: tuple[tuple[str, tuple[str, ...], Split], ...] = (
    ("Training", ("GT",), "train"),
    ("Test", ("Test_GT", "GT"), "validation"),
)
_DEPTHS = ("", "*/", "*/*/")  # where Training and Test are: the archives unpack into one or two folders of their own


def drishti_labels() -> LabelTable:
    """Label table: 1 is the disc around the cup, 2 the cup; the regions to predict are the whole disc and the cup."""
    return LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "cup": (2,)})


def is_drishti(source: Description) -> bool:
    """Whether a folder (or one in it) has ``Training/Images`` and ``Training/GT``."""
    return _part(source.root, "Training", ("GT",)) is not None


def read_drishti(source: Description) -> Dataset:
    """``Training/Images/x.png`` with ``Training/GT/x/SoftMap/x_ODsegSoftmap.png``, …; ``Test`` with ``Test_GT``.

    Images may be in folders by diagnosis (``Images/GLAUCOMA``). A soft map is the share of four experts who marked a
    pixel, 0 to 255; disc and cup are where at least half of them did. The split is the dataset's own: ``Training``
    trains, ``Test`` validates. Without references of the test images they are held out, and folds are drawn.

    Raises:
        DataError: If two images have the same name, or there is no labelled case.
    """
    found: dict[Split, list[CaseFiles]] = {"train": [], "validation": []}
    tests: list[CaseFiles] = []
    for name, references, split in _PARTS:
        folder = _part(source.root, name, references)
        unlabelled = _part(source.root, name, ()) if folder is None else None
        if folder is not None:
            found[split] = _cases(folder[0], folder[1], split)
        elif unlabelled is not None:
            tests += [CaseFiles(stem, (path,)) for stem, path in _images(unlabelled[0]).items()]
    cases = [*found["train"], *found["validation"]]
    return build_dataset("drishti", source, cases, tests, channels=COLOURS, labels=drishti_labels())


def _part(root: Path, name: str, references: tuple[str, ...]) -> tuple[Path, Path] | None:
    """Folders of images and of references of a part; without names of references both are that of images."""
    for depth in _DEPTHS:
        for folder in sorted(root.glob(f"{depth}{name}")):
            images = folder / "Images"
            named = [folder / reference for reference in references] or [images]
            there = [candidate for candidate in named if candidate.is_dir()]
            if images.is_dir() and there:
                return images, there[0]
    return None


def _cases(images: Path, references: Path, split: Split) -> list[CaseFiles]:
    """Every image and every reference is a case; of what is missing, the expected file is named."""
    listed = _images(images)
    stems = {folder.name for folder in references.iterdir() if (folder / "SoftMap").is_dir()}
    cases = []
    for stem in sorted({*listed, *stems}):
        maps = references / stem / "SoftMap"
        organs = tuple((value, maps / f"{stem}_{mask}.png") for value, mask in _MASKS)
        image = listed.get(stem, images / f"{stem}.png")
        cases.append(CaseFiles(stem, (image,), organs=organs, soft=True, split=split))
    return cases


def _images(folder: Path) -> dict[str, Path]:
    """Images by name, of the folder and of the folders in it."""
    found: dict[str, Path] = {}
    for part in (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        for file in list_volumes(part):
            stem = volume_stem(file)
            if stem in found:
                got, advice = f"{found[stem]} and {file}", "Remove or rename one"
                raise DataError(sentence("images", "one file per case", got, advice, case=stem, file=folder))
            found[stem] = file
    return found
