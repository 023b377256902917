import json

import numpy as np
import pytest

from pipeline.core.grid import Grid
from pipeline.preprocess.grid_history import GridHistory


def _trace():
    source = Grid.from_spacing((10, 12, 8), (1.0, 0.1 + 0.2, 3.0), "LPS")
    crop = source.reoriented("SRA").cropped((1, 0, 2), (7, 10, 12))
    return GridHistory(source, "sra", (1, 0, 2), (7, 10, 12), crop.resized((12, 5, 10)))


def test_grids_on_the_way_are_those_of_the_steps():
    trace = _trace()
    assert trace.orientation == "SRA"
    assert trace.reoriented.shape == (8, 10, 12)
    assert trace.reoriented.orientation == "SRA"
    assert trace.cropped.shape == (6, 10, 10)
    assert trace.cropped.spacing_mm == pytest.approx((3.0, 1.0, 0.3))
    assert trace.prepared.spacing_mm == pytest.approx((1.5, 2.0, 0.3))
    # World position of the first voxel kept: from its index in the reoriented grid.
    np.testing.assert_allclose(trace.cropped.affine[:3, 3], trace.reoriented.to_world((1, 0, 2)))


def test_json_round_trip_is_exact():
    trace = _trace()
    assert GridHistory.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@pytest.mark.parametrize(
    ("start", "stop"), [((0, 0, 0), (9, 10, 12)), ((3, 0, 0), (3, 10, 12)), ((-1, 0, 0), (8, 10, 12))]
)
def test_crop_outside_the_reoriented_grid_is_refused(start, stop):
    trace = _trace()
    with pytest.raises(ValueError, match="crop: expected 0 <= start < stop"):
        GridHistory(trace.source, "SRA", start, stop, trace.prepared)


def test_prepared_grid_elsewhere_is_refused():
    trace = _trace()
    with pytest.raises(ValueError, match=r"expected the field of view of the crop within 1e-3 mm, got .* 0\.3 mm"):
        GridHistory(trace.source, "SRA", (1, 0, 2), (7, 10, 12), trace.prepared.cropped((0, 0, 1), (12, 5, 11)))


def test_unknown_orientation_is_refused():
    trace = _trace()
    with pytest.raises(ValueError, match="orientation"):
        GridHistory(trace.source, "RAX", trace.crop_start, trace.crop_stop, trace.prepared)
