import pytest

from pipeline.core import ConfigError
from pipeline.model import list_networks
from pipeline.model.survey import survey_networks


def test_a_row_for_every_network_and_number_of_axes():
    rows = survey_networks(32)
    assert [(row.name, row.dims) for row in rows] == [
        (info.name, dims) for info in list_networks() for dims in info.dims
    ]
    assert all(low >= 32 for row in rows for low in row.patch_size)


def test_costs_by_hand():
    row = next(row for row in survey_networks(30, in_channels=3) if (row.name, row.dims) == ("unet", 2))
    assert row.parameters == 31_037_698
    assert row.patch_size == row.output_size == (32, 32)
    first = 32 * 32 * (3 * 64 + 64 * 64) * 9  # the two convolutions at full resolution
    assert row.multiply_adds > first
    doubled = next(row for row in survey_networks(64, in_channels=3) if (row.name, row.dims) == ("unet", 2))
    assert doubled.multiply_adds == 4 * row.multiply_adds


def test_an_empty_patch_is_refused():
    with pytest.raises(ConfigError, match="patch: expected an edge of at least 1 voxel, got 0"):
        survey_networks(0)
    with pytest.raises(ConfigError, match="patch: expected an edge of at most 16384 voxels, got 16385"):
        survey_networks(16385)
