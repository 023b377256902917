"""Values only: grids, images, label maps, cases, label tables and errors. Needs nothing but NumPy."""

from pipeline.core.errors import ConfigError, DataError, VolsegError, sentence
from pipeline.core.grid import GRID_TOLERANCE_MM, Grid
from pipeline.core.labels import IGNORE_INDEX, LabelTable
from pipeline.core.orientation import ORIENTATIONS, axis_codes, flip_world, reorient_array
from pipeline.core.volume import Case, Image, LabelMap, require_same_grid

__all__ = [
    "GRID_TOLERANCE_MM",
    "IGNORE_INDEX",
    "ORIENTATIONS",
    "Case",
    "ConfigError",
    "DataError",
    "Grid",
    "Image",
    "LabelMap",
    "LabelTable",
    "VolsegError",
    "axis_codes",
    "flip_world",
    "reorient_array",
    "require_same_grid",
    "sentence",
]
