from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate import organ_statistics as module
from pipeline.evaluate.organ_statistics import (
    organ_statistics,
    statistics_columns,
    statistics_entry,
    statistics_row,
)

TABLE = LabelTable({1: "liver", 2: "spleen", 9: "aorta"})
GRID = Grid.from_spacing((4, 3, 3), (1.0, 2.0, 5.0))  # a voxel is 10 mm3


def label_map(grid: Grid = GRID) -> LabelMap:
    array = np.zeros(GRID.shape, np.uint8)
    array[1:3, 1, 1] = 1
    array[0, 1, 0] = 2
    return LabelMap(array, grid)


def image(*channels: object, grid: Grid = GRID) -> Image:
    return Image(np.stack([np.broadcast_to(np.asarray(c, np.float32), grid.shape) for c in channels]), grid)


def test_volume_intensity_and_edges() -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[1, 1, 1], array[2, 1, 1], array[0, 1, 0] = -10.0, 30.0, 7.0
    liver, spleen, aorta = organ_statistics(label_map(), TABLE, image(array))
    assert liver == ("liver", (1,), 2, pytest.approx(0.02), (10.0,), (20.0,), ())
    assert spleen == ("spleen", (2,), 1, pytest.approx(0.01), (7.0,), (0.0,), ("I", "L"))
    assert aorta == ("aorta", (9,), 0, 0.0, (None,), (None,), ())
    assert [organ.touches_edge for organ in (liver, spleen, aorta)] == [False, True, False]


def test_without_an_image_there_are_no_intensities() -> None:
    liver, _, _ = organ_statistics(label_map(), TABLE)
    assert (liver.voxels, liver.means, liver.sds) == (2, (), ())


def test_faces_are_those_of_the_patient_in_every_orientation() -> None:
    for orientation in ("RAS", "LPS", "PIR", "SRA"):
        _, spleen, _ = organ_statistics(label_map().reoriented(orientation), TABLE)
        assert spleen.edges == ("I", "L")


def test_an_axis_of_one_plane_has_no_faces() -> None:
    grid = Grid.from_spacing((3, 3, 1), (1.0, 1.0, 1.0))
    array = np.zeros(grid.shape, np.uint8)
    array[1, 1, 0], array[1, 2, 0] = 1, 2
    liver, spleen, _ = organ_statistics(LabelMap(array, grid), TABLE)
    assert (liver.edges, spleen.edges) == ((), ("A",))


def test_a_region_is_measured_over_all_its_values() -> None:
    table = LabelTable({1: "rim", 2: "cup"}, regions={"disc": (1, 2), "core": (2,)})
    array = np.zeros(GRID.shape, np.float32)
    array[1, 1, 1], array[2, 1, 1], array[0, 1, 0] = 1.0, 3.0, 8.0
    disc, core = organ_statistics(label_map(), table, image(array))
    assert (disc.name, disc.values, disc.voxels) == ("disc", (1, 2), 3)
    assert disc.means == (4.0,)
    assert disc.sds[0] == pytest.approx(np.std([1.0, 3.0, 8.0]))
    assert (core.voxels, core.means, core.sds) == (1, (8.0,), (0.0,))


def test_large_intensities_keep_their_spread_and_values_that_are_no_numbers_are_left_out() -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[1, 1, 1], array[2, 1, 1], array[0, 1, 0] = 8_000_000.0, 8_000_001.0, np.nan
    liver, spleen, _ = organ_statistics(label_map(), TABLE, image(array))
    assert (liver.means, liver.sds) == ((8_000_000.5,), (0.5,))
    assert (spleen.voxels, spleen.means) == (1, (None,))


def test_unknown_and_ignored_values_count_as_background() -> None:
    table = LabelTable({2: "spleen"}, ignore_label=1)
    array = np.where(label_map().array == 2, 2, 200).astype(np.uint32)
    (spleen,) = organ_statistics(LabelMap(array, GRID), table, image(5.0))
    assert (spleen.voxels, spleen.means) == (1, (5.0,))


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    found = LabelMap(random.integers(0, 3, GRID.shape).astype(np.int16), GRID)
    scan = image(random.normal(size=GRID.shape), random.normal(size=GRID.shape))
    whole = organ_statistics(found, TABLE, scan)
    assert whole[0].means[1] == pytest.approx(scan.array[1][found.array == 1].mean())
    assert whole[0].sds[1] == pytest.approx(scan.array[1][found.array == 1].std())
    monkeypatch.setattr(module, "_PIECE_VOXELS", 1)
    for one, other in zip(whole, organ_statistics(found, TABLE, scan), strict=True):
        assert (one.voxels, one.edges) == (other.voxels, other.edges)
        for first, second in zip((*one.means, *one.sds), (*other.means, *other.sds), strict=True):
            assert first == pytest.approx(second)


def test_another_grid_is_refused() -> None:
    other = GRID.resampled((1.0, 1.0, 5.0))
    with pytest.raises(DataError, match=r"label map grid: expected the image grid within 0\.001 mm, got shapes"):
        organ_statistics(label_map(), TABLE, image(0.0, grid=other))


def test_entries_and_rows() -> None:
    liver, spleen, aorta = organ_statistics(label_map(), TABLE, image(5.0))
    entry = statistics_entry(spleen, ("CT",))
    assert entry == {
        "label": 2,
        "voxels": 1,
        "volume_ml": pytest.approx(0.01),
        "intensity": {"CT": {"mean": 5.0, "sd": 0.0}},
        "touches_edge": True,
        "edges": ["I", "L"],
    }
    assert statistics_columns(("CT",)) == (
        "case", "label", "name", "voxels", "volume_ml", "mean", "sd", "touches_edge", "edges",
    )  # fmt: skip
    assert statistics_row("a", "spleen", entry, ("CT",)) == ("a", "2", "spleen", "1", "0.01", "5", "0", "yes", "I L")
    empty = statistics_entry(aorta, ("CT",))
    assert statistics_row("a", "aorta", empty, ("CT",)) == ("a", "9", "aorta", "0", "0", "", "", "no", "")
    assert statistics_columns(("T1", "T2"))[5:9] == ("mean_T1", "sd_T1", "mean_T2", "sd_T2")
    assert statistics_columns() == ("case", "label", "name", "voxels", "volume_ml", "touches_edge", "edges")
    region = statistics_entry(liver._replace(values=(1, 2), means=(), sds=()))
    assert statistics_row("a", "both", region) == ("a", "1 2", "both", "2", "0.02", "no", "")


@pytest.mark.realdata
def test_shipped_statistics(real_data: Path) -> None:
    """TotalSegmentator's own volumes (3 %) and mean intensities (2 HU)."""
    folder = real_data / "ct_multiorgan"
    table = LabelTable({int(v): name for v, name in json.loads((folder / "ct_label_names.json").read_text()).items()})
    expected = json.loads((folder / "example_ct_sm_statistics.json").read_text())
    image = read_image(folder / "example_ct_sm.nii.gz")
    rows = organ_statistics(read_label_map(folder / "example_ct_sm_fast_labels.nii.gz"), table, image)
    compared = 0
    for row in rows:
        if row.voxels and expected.get(row.name, {}).get("volume", 0) > 0:
            assert row.volume_ml * 1000 == pytest.approx(expected[row.name]["volume"], rel=0.03)
            assert row.means[0] == pytest.approx(expected[row.name]["intensity"], abs=2.0)
            compared += 1
    assert compared >= 30
