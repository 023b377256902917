"""The dataset layouts: the one list of them.

It imports nothing, because the help of the command line asks it. How a layout is read stands in ``layouts``, how it is
written in ``layout_writers``.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """A way in which datasets are laid out.

    Args:
        looks_like: What it is recognised by, in words.
        written: Whether ``volseg convert`` can write it.
        organ_masks: Whether the reference of a case is one mask per organ.
    """

    looks_like: str
    written: bool = True
    organ_masks: bool = False


# In the order in which they are tried: nnU-Net's first version, for one, is decathlon and would pass for nnunet.
LAYOUTS: dict[str, Layout] = {
    "decathlon": Layout("a dataset.json with a list of training cases"),
    "nnunet": Layout("imagesTr and a dataset.json with channel_names and labels"),
    "datalist": Layout("a datalist.csv or datalist.json with a row per case"),
    "organs": Layout("a folder per case with an image and segmentations/", organ_masks=True),
    "drishti": Layout("Training/Images and Training/GT with soft maps", written=False, organ_masks=True),
    "pairs": Layout("images/ and labels/, or imagesTr/ and labelsTr/"),
}

WRITTEN_LAYOUTS = tuple(name for name, layout in LAYOUTS.items() if layout.written)
