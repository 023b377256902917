"""Opening a dataset folder of whatever layout, and finding the inputs of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.core import DataError, sentence
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.colours import colour_channels, split_colours
from pipeline.data.layout_drishti import is_drishti, read_drishti
from pipeline.data.layout_readers import (
    group_channels,
    list_volumes,
    read_datalist,
    read_decathlon,
    read_nnunet,
    read_organs,
    read_pairs,
)
from pipeline.data.layout_tables import Description, folder_holds, read_description
from pipeline.data.volume_file import COLOURS, join_source, volume_stem, volume_suffix
from pipeline.data.volumes import VOLUME_SUFFIXES, open_header

__all__ = ["LAYOUTS", "CaseFiles", "Dataset", "Layout", "find_inputs", "open_dataset"]


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


def find_inputs(paths: Sequence[Path | str], channels: int) -> tuple[CaseFiles, ...]:
    """Find the cases to predict.

    With several channels, files ``case_0000.nii.gz``, ``case_0001.nii.gz``, … form a case, and a 4D file with that
    many volumes or, if they are three, a colour picture is one. With one channel every file is a case, named as the
    file; only if all of them end in ``_0000`` (nnU-Net's names) is this number left off. A folder stands for the
    volumes directly in it.

    Args:
        paths: Files and folders.
        channels: Channels that the model wants.

    Returns:
        Cases without references, sorted by id.

    Raises:
        DataError: If a path does not exist or holds no volume, a channel is missing or two inputs have the same name.
    """
    files = list(dict.fromkeys(file for path in paths for file in _volumes(Path(path))))
    if not files:
        raise DataError(sentence("inputs", "at least one volume", "none", "Give files or folders"))
    single = [file for file in files if channels == 1 and not volume_stem(file).endswith("_0000")]
    groups: dict[tuple[Path, str], tuple[Path, ...]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        members = [file for file in files if file.parent == folder]
        if channels == len(COLOURS):
            pictures = {file: colours for file in members if (colours := colour_channels(file))}
            groups |= {(file, volume_stem(file)): colours for file, colours in pictures.items()}
            members = [file for file in members if file not in pictures]
        if single:
            groups |= {(file, volume_stem(file)): (file,) for file in members}
        else:
            groups |= {
                (folder, name): _channels(name, found, channels) for name, found in group_channels(members).items()
            }
    by_name: dict[str, tuple[Path, ...]] = {}
    for (_, name), images in groups.items():
        if name in by_name:
            got, advice = f"{by_name[name][0]} and {images[0]}", "Rename one, or predict them into different folders"
            raise DataError(sentence("inputs", "one input per name", got, advice, case=name))
        by_name[name] = images
    return tuple(CaseFiles(name, by_name[name]) for name in sorted(by_name))


def _volumes(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(sentence("input", "an existing file or folder", "nothing there", "Check the path", file=path))
    if path.is_dir():
        found = list_volumes(path)
        if not found:
            rule, advice = f"volumes ({', '.join(VOLUME_SUFFIXES)})", "Check the path, or convert the files to NIfTI"
            raise DataError(sentence("input", rule, folder_holds(path), advice, file=path))
        return found
    if not volume_suffix(path):
        rule = f"a name ending in {', '.join(VOLUME_SUFFIXES)}"
        raise DataError(sentence("input", rule, repr(path.name), "Convert the volume, e.g. to NIfTI", file=path))
    return [path]


def _channels(name: str, found: Mapping[int, Path], channels: int) -> tuple[Path, ...]:
    """One source per channel of a case."""
    wanted = range(channels)
    if set(found) == set(wanted):
        return tuple(found[n] for n in wanted)
    file = next(iter(found.values()))
    if len(found) == 1 and volume_stem(file) == name and open_header(file, case=name).volumes == channels:
        return tuple(join_source(file, "channel", n + 1, channels) for n in wanted)
    numbers = ", ".join(f"_{n:04d}" for n in wanted)
    got = ", ".join(path.name for path in found.values())
    advice = "Give one file per channel, in the order of the training data"
    raise DataError(
        sentence("channels", f"{channels} files ending in {numbers}", got, advice, case=name, file=file.parent)
    )


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
