import json

import numpy as np
import pytest

from pipeline.core.grid import Grid
from pipeline.preprocess.grid_history import GridHistory


def _history():
    source = Grid.from_spacing((10, 12, 8), (1.0, 0.1 + 0.2, 3.0), "LPS")
    crop = source.reoriented("SRA").cropped((1, 0, 2), (7, 10, 12))
    return GridHistory(source, "sra", (1, 0, 2), (7, 10, 12), crop.resized((12, 5, 10)))


def test_grids_on_the_way_are_those_of_the_steps():
    history = _history()
    assert history.orientation == "SRA"
    assert history.reoriented.shape == (8, 10, 12)
    assert history.reoriented.orientation == "SRA"
    assert history.cropped.shape == (6, 10, 10)
    assert history.cropped.spacing_mm == pytest.approx((3.0, 1.0, 0.3))
    assert history.prepared.spacing_mm == pytest.approx((1.5, 2.0, 0.3))
    # World position of the first voxel kept: from its index in the reoriented grid.
    np.testing.assert_allclose(history.cropped.affine[:3, 3], history.reoriented.to_world((1, 0, 2)))


def test_json_round_trip_is_exact():
    history = _history()
    assert GridHistory.from_json(json.loads(json.dumps(history.to_json()))) == history


@pytest.mark.parametrize(
    ("start", "stop"), [((0, 0, 0), (9, 10, 12)), ((3, 0, 0), (3, 10, 12)), ((-1, 0, 0), (8, 10, 12))]
)
def test_crop_outside_the_reoriented_grid_is_refused(start, stop):
    history = _history()
    with pytest.raises(ValueError, match="crop: expected 0 <= start < stop"):
        GridHistory(history.source, "SRA", start, stop, history.prepared)


def test_prepared_grid_elsewhere_is_refused():
    history = _history()
    with pytest.raises(ValueError, match=r"expected the field of view of the crop within 1e-3 mm, got .* 0\.3 mm"):
        GridHistory(history.source, "SRA", (1, 0, 2), (7, 10, 12), history.prepared.cropped((0, 0, 1), (12, 5, 11)))


def test_unknown_orientation_is_refused():
    history = _history()
    with pytest.raises(ValueError, match="orientation"):
        GridHistory(history.source, "RAX", history.crop_start, history.crop_stop, history.prepared)
