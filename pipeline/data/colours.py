"""Colour pictures as cases of three channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.core import DataError
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.volume_file import COLOURS, PICTURE_SUFFIXES, join_source, split_source, volume_suffix
from pipeline.data.volumes import open_header

__all__ = ["colour_channels", "split_colours"]


def colour_channels(file: Path) -> tuple[Path, ...]:
    """Sources of red, green and blue: ``scan.png#channel=1of3``, …; empty unless the file is a colour picture.

    Nothing is refused here: a file that cannot be read counts as none.
    """
    if volume_suffix(file) not in PICTURE_SUFFIXES or split_source(file)[1]:
        return ()
    try:
        colour = open_header(file).is_colour
    except DataError:
        return ()
    return tuple(join_source(file, "channel", n, len(COLOURS)) for n in range(1, len(COLOURS) + 1)) if colour else ()


def split_colours(dataset: Dataset) -> Dataset:
    """Give cases that are one colour picture three channels.

    Args:
        dataset: Any dataset; its channels are called R, G and B unless it has three names already.

    Returns:
        The dataset itself if none of its images is a colour picture.
    """
    cases, tests = (tuple(_split(case) for case in part) for part in (dataset.cases, dataset.tests))
    if (cases, tests) == (dataset.cases, dataset.tests):
        return dataset
    channels = dataset.channels if len(dataset.channels) == len(COLOURS) else COLOURS
    return replace(dataset, cases=cases, tests=tests, channels=channels)


def _split(case: CaseFiles) -> CaseFiles:
    channels = colour_channels(case.images[0]) if len(case.images) == 1 else ()
    return replace(case, images=channels) if channels else case
