"""volseg: 3D volumetric medical segmentation.

The names below are the public API; each is imported when it is first used, so that ``import pipeline`` costs nothing.

Example:
    >>> from pipeline import Grid, build_network
    >>> Grid.from_spacing((64, 64, 32), (1.0, 1.0, 3.0)).spacing_mm
    (1.0, 1.0, 3.0)
    >>> build_network("unet", 3, in_channels=1, out_channels=2, features=(8, 16), seed=0).legal_size((30, 31, 32))
    (30, 32, 32)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config.yaml_file import load_settings as load_settings
    from pipeline.core.grid import Grid as Grid
    from pipeline.core.labels import LabelTable as LabelTable
    from pipeline.core.volume import Image as Image
    from pipeline.core.volume import LabelMap as LabelMap
    from pipeline.data.layouts import open_dataset as open_dataset
    from pipeline.data.volumes import read_image as read_image
    from pipeline.data.volumes import read_label_map as read_label_map
    from pipeline.data.volumes import write_label_map as write_label_map
    from pipeline.model.registry import build_network as build_network
    from pipeline.preprocess.resample import resample as resample
    from pipeline.stages.predict import Predictor as Predictor

_HOMES = {
    "Grid": "pipeline.core.grid",
    "Image": "pipeline.core.volume",
    "LabelMap": "pipeline.core.volume",
    "LabelTable": "pipeline.core.labels",
    "Predictor": "pipeline.stages.predict",
    "build_network": "pipeline.model.registry",
    "load_settings": "pipeline.config.yaml_file",
    "open_dataset": "pipeline.data.layouts",
    "read_image": "pipeline.data.volumes",
    "read_label_map": "pipeline.data.volumes",
    "resample": "pipeline.preprocess.resample",
    "write_label_map": "pipeline.data.volumes",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}; the public names are {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
