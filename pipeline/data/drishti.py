"""Drishti-GS1, a dataset of fundus photographs: its folders as cases."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import DataError, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.paths import composed, entries, is_broken_link, located
from pipeline.data.dataset import CaseFiles, Dataset, Split
from pipeline.data.descriptions import Description, build_dataset
from pipeline.data.folder_files import by_name, has_folder, list_volumes
from pipeline.data.volume_file import RGB, volume_stem

# Label value and file name of the soft maps (the cup is painted over the disc); the parts, the folders of their
# references and their split; where the parts are, as the archives unpack into one or two folders of their own.
_SOFT_MAPS = ((1, "ODsegSoftmap"), (2, "cupsegSoftmap"))
_PARTS: tuple[tuple[str, tuple[str, ...], Split], ...] = (
    ("Training", ("GT",), "train"),
    ("Test", ("Test_GT", "GT"), "validation"),
)
_DEPTHS = ("", "*/", "*/*/")


def is_drishti(source: Description) -> bool:
    """Whether a folder is laid out so."""
    return _part(source.root, "Training", ("GT",)) is not None


def read_drishti(source: Description) -> Dataset:
    """Drishti-GS1: fundus photographs with soft maps of the optic disc and the optic cup by four experts.

    ``Training/Images/x.png`` with ``Training/GT/x/SoftMap/x_ODsegSoftmap.png``, …; ``Test`` with ``Test_GT``. Images
    may be in folders by diagnosis (``Images/GLAUCOMA``). A soft map is the share of four experts who marked a pixel, 0
    to 255; disc and cup are where at least half of them did. The split is the dataset's own: ``Training`` trains,
    ``Test`` validates. Without references of the test images they are held out, and folds are drawn.

    Raises:
        DataError: If two images have the same name, or there is no labelled case.

    Reference: Sivaswamy et al., A comprehensive retinal image dataset for the assessment of glaucoma from the optic
    nerve head analysis, JSM Biomedical Imaging Data Papers 2(1), 2015.
    """
    cases: list[CaseFiles] = []
    tests: list[CaseFiles] = []
    for name, references, split in _PARTS:
        if folders := _part(source.root, name, references):
            cases += _cases(*folders, split)
        elif folders := _part(source.root, name, ("Images",)):
            tests += [CaseFiles(stem, (path,)) for stem, path in _images(folders[0]).items()]
    # Value 1 is the disc around the cup; what is predicted is the whole disc and the cup in it.
    labels = LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "cup": (2,)})
    return build_dataset("drishti", source, cases, tests, channels=RGB, labels=labels)


def _part(root: Path, name: str, references: tuple[str, ...]) -> tuple[Path, Path] | None:
    """Folders of images and of references of a part."""
    for depth in _DEPTHS:
        for folder in sorted(root.glob(f"{depth}{name}")):
            there = [folder / reference for reference in references if has_folder(folder / reference)]
            if has_folder(folder / "Images") and there:
                return folder / "Images", there[0]
    return None


def _cases(images: Path, references: Path, split: Split) -> list[CaseFiles]:
    """Every image and every reference is a case; of what is missing, the expected file is named."""
    listed = _images(images)
    folders = (folder for folder in entries(references) if has_folder(folder / "SoftMap") or is_broken_link(folder))
    stems = {composed(folder.name) for folder in folders}
    cases = []
    for stem in sorted({*listed, *stems}):
        maps = ((value, f"{stem}/SoftMap/{stem}_{name}.png") for value, name in _SOFT_MAPS)
        organs = tuple((value, located(references, name)) for value, name in maps)
        image = listed.get(stem, images / f"{stem}.png")
        cases.append(CaseFiles(stem, (image,), organs=organs, soft=True, split=split))
    return cases


def _images(folder: Path) -> dict[str, Path]:
    """Images by name, of the folder and of the folders in it."""

    def twice(first: Path, second: Path) -> DataError:
        got, advice = f"{first} and {second}", "Remove or rename one"
        return DataError(sentence("images", "one file per case", got, advice, case=volume_stem(first), file=folder))

    parts = (folder, *(entry for entry in entries(folder) if entry.is_dir()))
    return by_name((file for part in parts for file in list_volumes(part)), twice=twice)
