"""Opening a dataset folder of whatever layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.core import DataError, sentence
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.colours import split_colours
from pipeline.data.layout_drishti import is_drishti, read_drishti
from pipeline.data.layout_readers import (
    read_datalist,
    read_decathlon,
    read_nnunet,
    read_organs,
    read_pairs,
)
from pipeline.data.layout_tables import Description, folder_holds, read_description

__all__ = ["LAYOUTS", "CaseFiles", "Dataset", "Layout", "open_dataset"]


class Layout(NamedTuple):
    """A way in which datasets are laid out.

    Args:
        looks_like: What it is recognised by, in words.
        recognises: Whether a described folder has this layout.
        read: Turns it into a dataset.
    """

    looks_like: str
    recognises: Callable[[Description], bool]
    read: Callable[[Description], Dataset]


def open_dataset(path: Path | str, layout: str | None = None) -> Dataset:
    """Open a dataset.

    Args:
        path: Its folder, or the JSON or CSV file that lists its cases.
        layout: One of LAYOUTS; by default the first that recognises the folder, in their order.

    Returns:
        The dataset. Files of a case may be missing (``volseg check`` reports them).

    Raises:
        DataError: If the path does not exist, the layout is unknown or not recognised, or there is no labelled case.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise DataError(
            sentence("layout", f"one of {', '.join(LAYOUTS)}", repr(layout), "Choose one of them", file=path)
        )
    source = read_description(path)
    for name, candidate in LAYOUTS.items():
        if layout in (None, name) and candidate.recognises(source):
            return split_colours(candidate.read(source))
    looked_for = [f"{name}: {known.looks_like}" for name, known in LAYOUTS.items() if layout in (None, name)]
    rule = f"a dataset layout ({'; '.join(looked_for)})"
    advice = "Arrange the files in one of these ways, or list them in a datalist.csv"
    raise DataError(sentence("dataset", rule, folder_holds(source.root), advice, file=path))


def _is_decathlon(source: Description) -> bool:
    return isinstance(source.content.get("training"), list)


def _is_nnunet(source: Description) -> bool:
    described = "channel_names" in source.content or "modality" in source.content
    return described and "labels" in source.content and (source.root / "imagesTr").is_dir()


def _is_datalist(source: Description) -> bool:
    return isinstance(source.content.get("cases"), list)


def _is_organs(source: Description) -> bool:
    return any(folder.is_dir() for folder in source.root.glob("*/segmentations"))


def _is_pairs(source: Description) -> bool:
    pairs = (("images", "labels"), ("imagesTr", "labelsTr"))
    return any((source.root / images).is_dir() and (source.root / labels).is_dir() for images, labels in pairs)


LAYOUTS: dict[str, Layout] = {
    "decathlon": Layout("a dataset.json with a list of training cases", _is_decathlon, read_decathlon),
    "nnunet": Layout("imagesTr and a dataset.json with channel_names and labels", _is_nnunet, read_nnunet),
    "datalist": Layout("a datalist.csv or datalist.json with a row per case", _is_datalist, read_datalist),
    "organs": Layout("a folder per case with an image and segmentations/", _is_organs, read_organs),
    "drishti": Layout("Training/Images and Training/GT with soft maps", is_drishti, read_drishti),
    "pairs": Layout("images/ and labels/, or imagesTr/ and labelsTr/", _is_pairs, read_pairs),
}
"""Every known layout; the order is that in which they are tried."""
