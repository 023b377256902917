"""Label maps without a reference."""

import json

import numpy as np
import pytest

from pipeline.core import DataError, Grid, Image, LabelMap, LabelTable
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate.label_statistics import label_statistics

TABLE = LabelTable({1: "liver", 300: "spleen", 7: "aorta"})
GRID = Grid.from_spacing((5, 4, 3), (10.0, 10.0, 10.0))


def label_map():
    array = np.zeros(GRID.shape, dtype=np.int16)
    array[1:3, 1, 1], array[4, 2, 1] = 1, 300
    return LabelMap(array, GRID)


def test_volumes_intensities_and_the_edge():
    values = np.zeros((1, *GRID.shape), dtype=np.float32)
    values[0, 1, 1, 1], values[0, 2, 1, 1], values[0, 4, 2, 1] = 10.0, 30.0, -5.0
    liver, aorta, spleen = label_statistics(label_map(), TABLE, "a", Image(values, GRID))
    assert (liver.voxels, liver.volume_ml, liver.touches_edge) == (2, pytest.approx(2.0), False)
    assert (liver.intensity_mean, liver.intensity_sd) == (20.0, 10.0)
    assert (spleen.name, spleen.voxels, spleen.intensity_mean, spleen.touches_edge) == ("spleen", 1, -5.0, True)
    assert (aorta.voxels, aorta.intensity_mean, aorta.touches_edge) == (0, None, False)


def test_a_single_slice_is_not_all_edge():
    array = np.zeros((6, 6, 1), dtype=np.uint8)
    array[2:4, 2:4] = 1
    flat = LabelMap(array, Grid.from_spacing(array.shape, (1.0, 1.0, 1.0)))
    assert not label_statistics(flat, LabelTable({1: "disc"}), "a")[0].touches_edge


def test_regions_and_other_grids():
    table = LabelTable({1: "a", 300: "b"}, None, {"both": (1, 300), "b": (300,)})
    assert [row.voxels for row in label_statistics(label_map(), table, "a")] == [3, 1]
    other = Grid.from_spacing((5, 4, 4), (10.0, 10.0, 10.0))
    image = Image(np.zeros((1, *other.shape), dtype=np.float32), other)
    with pytest.raises(DataError, match=r"case a: label map grid: expected the image grid"):
        label_statistics(label_map(), TABLE, "a", image)


@pytest.mark.realdata
def test_shipped_statistics(real_data):
    """TotalSegmentator's own volumes (3 %) and mean intensities (2 HU)."""
    folder = real_data / "ct_multiorgan"
    table = LabelTable({int(v): name for v, name in json.loads((folder / "ct_label_names.json").read_text()).items()})
    expected = json.loads((folder / "example_ct_sm_statistics.json").read_text())
    image = read_image(folder / "example_ct_sm.nii.gz")
    rows = label_statistics(read_label_map(folder / "example_ct_sm_fast_labels.nii.gz"), table, "ct", image)
    compared = 0
    for row in rows:
        if row.voxels and expected.get(row.name, {}).get("volume", 0) > 0:
            assert row.volume_ml * 1000 == pytest.approx(expected[row.name]["volume"], rel=0.03)
            assert row.intensity_mean == pytest.approx(expected[row.name]["intensity"], abs=2.0)
            compared += 1
    assert compared >= 30
