"""The cases and the dataset folder as a user gets them."""

import hashlib

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from pipeline.core.documents import read_json
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.files import file_hash
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import read_image, read_label_map
from pipeline.phantom.anatomy import ATLAS, ORGANS
from pipeline.phantom.body import ORIENTATIONS, SPACINGS_MM, draw_body, draw_grid
from pipeline.phantom.tissue import CT_HU, MR_SIGNAL
from pipeline.phantom.torso import TEST_START, phantom_case, phantom_labels, write_phantom

LABELS = phantom_labels()
VOLUMES_ML = {
    "liver": (800, 2200),
    "spleen": (80, 350),
    "kidney_right": (80, 280),
    "kidney_left": (80, 280),
    "gallbladder": (15, 60),
    "urinary_bladder": (80, 280),
    "aorta": (60, 300),
    "spine": (200, 900),
    "lung_right": (50, 3500),
    "lung_left": (50, 3500),
}
LOWEST_ORGAN = "urinary_bladder"


@pytest.fixture(scope="module")
def cases():
    return [phantom_case(index, seed=3) for index in (0, 1, 2, 4, 6)]


def fingerprint(case):
    array = np.ascontiguousarray(case.image.array)
    return hashlib.sha256(
        array.tobytes() + case.reference.array.tobytes() + case.image.grid.affine.tobytes()
    ).hexdigest()


def centre_mm(case, organ):
    where = np.argwhere(case.reference.array == LABELS.value_of(organ))
    return case.reference.grid.to_world(where).mean(axis=0)


def core_mean(case, organ):
    mask = case.reference.array == LABELS.value_of(organ)
    inner = binary_erosion(mask, iterations=2)
    return float(case.image.array[0][inner if inner.any() else mask].mean())


def test_same_arguments_give_the_same_case_and_others_do_not(cases):
    assert fingerprint(phantom_case(4, seed=3)) == fingerprint(cases[3])
    assert fingerprint(phantom_case(4, seed=4)) != fingerprint(cases[3])
    assert len({fingerprint(case) for case in cases}) == len(cases)


def test_every_part_has_a_tissue_and_every_organ_a_part():
    assert {part.tissue for part in ATLAS} <= set(CT_HU)
    assert set(CT_HU) == set(MR_SIGNAL)
    assert sorted(part.name for part in ATLAS if part.role == "organ") == sorted(ORGANS)
    assert len({part.name for part in ATLAS}) == len(ATLAS)
    assert LABELS.side_pairs() == ((4, 3), (10, 9))


def test_volumes_are_plausible_and_most_organs_are_in_most_cases(cases):
    for case in cases:
        volumes = {LABELS.names[value]: volume for value, volume in case.reference.volumes_ml().items()}
        assert set(volumes) >= set(ORGANS) - {LOWEST_ORGAN}, case.id
        for organ, volume in volumes.items():
            low, high = VOLUMES_ML[organ]
            if organ == LOWEST_ORGAN:
                low = 0  # the lower end of the field of view may cut it
            assert low <= volume <= high, f"{case.id} {organ}"
    assert sum(LABELS.value_of(LOWEST_ORGAN) in case.reference.values() for case in cases) >= 2


def test_right_is_right_in_world_coordinates_whatever_the_orientation(cases):
    for case in cases:
        for organ in ("kidney", "lung"):
            assert centre_mm(case, f"{organ}_right")[0] > centre_mm(case, f"{organ}_left")[0] + 60
        assert centre_mm(case, "liver")[0] > centre_mm(case, "spleen")[0] + 60
        assert centre_mm(case, "gallbladder")[1] > centre_mm(case, "spine")[1] + 50  # in front of the spine
        assert centre_mm(case, "lung_left")[2] > centre_mm(case, "kidney_left")[2] + 50  # above the kidney


def test_organs_measure_what_their_tissue_measures(cases):
    expected = {
        "liver": (60, 118),
        "spleen": (55, 128),
        "gallbladder": (-5, 25),
        "urinary_bladder": (-10, 22),
        "aorta": (70, 205),
        "spine": (150, 480),
        "lung_right": (-880, -700),
        "lung_left": (-880, -700),
        "kidney_right": (45, 200),
        "kidney_left": (45, 200),
    }
    for case in cases:
        for value in case.reference.values()[1:]:
            organ = LABELS.names[value]
            low, high = expected[organ]
            assert low <= core_mean(case, organ) <= high, f"{case.id} {organ}"


def drawn_grids(size, count):
    for index in range(count):
        rng = np.random.default_rng(index)
        yield draw_grid(draw_body(rng), index, 3, size, rng)


def test_spacings_orientations_and_fields_of_view_differ(cases):
    assert len({case.image.grid.orientation for case in cases}) == 5
    grids, orientations = zip(*drawn_grids("small", 22), strict=True)
    assert set(orientations[:7]) == set(ORIENTATIONS)
    assert {tuple(np.round(grid.spacing_mm, 3)) for grid in grids[:11]} == set(SPACINGS_MM["small"])
    assert min(min(grid.spacing_mm) for grid in grids) == pytest.approx(0.8)
    assert max(max(grid.spacing_mm) for grid in grids) == pytest.approx(5.0)
    assert all(30 <= n <= 350 for grid in grids for n in grid.shape)
    assert all(grid.voxels <= 2_000_000 for grid in grids)
    heights = [grid.shape[2] * grid.spacing_mm[2] for grid in grids]
    assert max(heights) > 410
    assert min(heights) < 300


def test_full_size_has_the_extent_of_clinical_scans():
    for grid, _ in drawn_grids("full", 5):
        assert grid.shape[:2] == (512, 512)
        assert 50 <= grid.shape[2] <= 300


def test_mr_shows_the_same_anatomy_with_other_intensities(cases):
    case = phantom_case(2, seed=3, contrast="mr")
    assert case.image.grid == cases[2].image.grid
    np.testing.assert_array_equal(case.reference.array, cases[2].reference.array)
    assert case.image.array.min() >= 0
    assert core_mean(case, "lung_right") < 0.4 * core_mean(case, "liver")
    assert core_mean(case, "gallbladder") < 0.75 * core_mean(case, "liver")


def test_dataset_folder_opens_and_holds_what_the_cases_hold(tmp_path, cases):
    calls = []
    out = write_phantom(tmp_path / "set", cases=1, tests=1, seed=3, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "phantom"), (2, 2, "phantom")]
    dataset = open_dataset(out)
    assert dataset.layout == "nnunet"
    assert dataset.is_ct
    assert dataset.channels == ("CT",)
    assert dataset.labels == LABELS
    assert [case.id for case in dataset.cases] == ["phantom_000"]
    assert [case.id for case in dataset.tests] == [f"phantom_{TEST_START}"]
    assert (out / "labelsTs" / f"phantom_{TEST_START}.nii.gz").is_file()
    made, files = cases[0], dataset.cases[0]
    image, reference = read_image(files.images), read_label_map(files.label)
    np.testing.assert_array_equal(image.array, made.image.array)
    np.testing.assert_array_equal(reference.array, made.reference.array)
    assert image.grid.matches(made.image.grid)
    assert reference.grid == image.grid


def test_a_case_does_not_depend_on_how_many_there_are_and_strangers_are_refused(tmp_path):
    one = write_phantom(tmp_path / "one", cases=1, tests=0, contrast="mr")
    two = write_phantom(tmp_path / "two", cases=2, tests=0, contrast="mr")
    name = "imagesTr/phantom_000_0000.nii.gz"
    assert file_hash(one / name) == file_hash(two / name)
    assert read_json(one / "dataset.json")["channel_names"] == {"0": "MR"}
    with pytest.raises(VolsegError, match="expected an empty folder or the same phantom dataset, got 2 other files"):
        write_phantom(two, cases=1, tests=0, contrast="mr")
    for other in ({"seed": 1, "contrast": "mr"}, {"contrast": "ct"}):
        with pytest.raises(
            VolsegError, match="phantoms of the same contrast, size and seed, got one with name phantom_mr"
        ):
            write_phantom(one, cases=1, tests=0, **other)


def test_all_wrong_arguments_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        write_phantom(tmp_path / "set", cases=0, tests=-1, seed=-2, contrast="pet", size="huge")
    assert caught.value.problems == (
        "seed: expected at least 0, got -2. Change it.",
        "contrast: expected ct or mr, got pet. Change it.",
        "size: expected small or full, got huge. Change it.",
        "cases: expected 1 to 1000, got 0. Change it.",
        "tests: expected at least 0, got -1. Change it.",
    )
    assert not (tmp_path / "set").exists()
    with pytest.raises(ConfigError, match="index: expected at least 0, got -1"):
        phantom_case(-1)
