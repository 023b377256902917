import base64
import gzip
import hashlib
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.report.overlay import build_scene
from pipeline.report.viewer import SizeBudget, asset, chosen_cases, nifti_base64, pack_case, smaller


def test_half_of_the_cases_are_the_worst_and_half_the_best():
    assert chosen_cases("abcdefg", 3) == [("a", "worst"), ("b", "worst"), ("g", "best")]
    assert chosen_cases("abc", 9) == chosen_cases("abc", 3) == [("a", "worst"), ("b", "worst"), ("c", "best")]
    assert chosen_cases("abc", 0) == chosen_cases("", 5) == []


def test_what_a_small_case_leaves_goes_to_the_others():
    room = SizeBudget(90, 3)
    assert room.share() == 30
    room.take(10)
    assert room.share() == 40
    room.take(0)
    assert room.share() == 80


def test_the_library_is_the_one_that_its_makers_published():
    """The hash of dist/niivue.umd.js in the npm package @niivue/niivue 0.69.0; its licence lies beside it."""
    library = gzip.decompress(asset("niivue.umd.js.gz"))
    assert hashlib.sha256(library).hexdigest() == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert b"Copyright (c) 2021, Niivue" in asset("niivue.LICENSE.txt")


LABELS = LabelTable({7: "liver", 300: "spleen"}, 9)
GRID = Grid.from_spacing((32, 24, 16), (1.0, 1.0, 3.0))


def opened(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def scene(image=None):
    reference, prediction = np.zeros((2, *GRID.shape), np.uint16)
    reference[4:12, 4:12, 4:12] = 7
    reference[20:24, 4:12, 4:12] = 300
    reference[0:2] = 9
    prediction[0:12, 4:12, 4:12] = 7
    prediction[12, 4:12, 4:12] = 300
    made = None if image is None else Image(image[None].astype(np.float32), GRID)
    return build_scene(LabelMap(reference, GRID), LabelMap(prediction, GRID), LABELS, made)


def test_layers_hold_class_indices_and_kinds_of_errors():
    """64 voxels per slice along i: two wrong slices are ignored, two more and that of the spleen are false positive."""
    packed = pack_case(scene(), LABELS, 10**6)
    reference, prediction, errors = (
        np.asarray(opened(packed.layers[name]).dataobj) for name in ("reference", "prediction", "errors")
    )
    assert [(reference == n).sum() for n in (1, 2)] == [8 * 64, 4 * 64]
    assert [(prediction == n).sum() for n in (1, 2)] == [12 * 64, 64]
    assert [(errors == n).sum() for n in (1, 2, 3)] == [4 * 64, 3 * 64, 0]
    assert packed.organs == (1, 2)
    assert packed.window is None
    assert not opened(packed.layers["image"]).get_fdata().any()
    assert packed.size == sum(map(len, packed.layers.values()))


def test_values_far_apart_need_no_table_of_all_between():
    atlas = LabelTable({7: "liver", 2**31 + 5: "layer 6b"}, 9)  # as in brain atlases
    reference = np.zeros(GRID.shape, np.uint32)
    reference[4:12], reference[20:24], reference[0] = 7, 2**31 + 5, 9
    turned = build_scene(LabelMap(reference, GRID), LabelMap(reference, GRID), atlas)
    tracemalloc.start()
    packed = pack_case(turned, atlas, 10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = [np.unique(opened(packed.layers[name]).dataobj).tolist() for name in ("reference", "prediction", "errors")]
    assert found == [[0, 1, 2], [0, 1, 2], [0]]
    assert peak < 10**7


def test_intensities_come_back_within_half_a_step():
    mr = np.random.default_rng(0).uniform(0, 51, GRID.shape)
    back = opened(pack_case(scene(mr), LABELS, 10**7).layers["image"])
    low, high = np.percentile(mr, (0.1, 99.9))
    assert np.abs(back.get_fdata() - np.clip(mr, low, high)).max() <= (high - low) / 255 / 2 + 1e-4
    ct = np.random.default_rng(0).uniform(-2000, 5000, GRID.shape)
    packed = pack_case(scene(ct), LABELS, 10**7)
    assert packed.is_ct
    assert np.abs(opened(packed.layers["image"]).get_fdata() - np.clip(ct, -1024, 3071)).max() <= 2.01


def test_values_that_are_not_finite_are_shown_as_the_lowest():
    mr = np.linspace(0, 100, GRID.voxels).reshape(GRID.shape)
    mr[0, 0, 0] = np.nan
    mr[0, 0, 1] = np.inf
    back = opened(pack_case(scene(mr), LABELS, 10**7).layers["image"]).get_fdata()
    assert back[0, 0, 0] == back[0, 0, 1] == back.min()


def test_the_finest_axes_get_fewer_voxels_until_a_case_fits():
    ct = np.random.default_rng(0).normal(0, 500, GRID.shape)
    full = pack_case(scene(ct), LABELS, 10**7)
    packed = pack_case(scene(ct), LABELS, full.size // 3)
    assert full.factors == (1, 1, 1)
    assert packed.factors == (2, 2, 1)
    assert packed.size <= full.size // 3
    assert packed.shape == (16, 12, 16)
    assert packed.spacing_mm == pytest.approx((2.0, 2.0, 3.0))
    affine = opened(packed.layers["reference"]).affine
    assert affine[:3, 3] == pytest.approx(GRID.to_world((0.5, 0.5, 0)))
    assert pack_case(scene(ct), LABELS, 100) is None


def test_smaller():
    array = np.arange(10).reshape(5, 2, 1)
    assert smaller(array, (2, 2, 1), mean=True).ravel().tolist() == [1.5, 5.5, 8.5]
    assert smaller(array, (3, 1, 1), mean=False)[..., 0].tolist() == [[2, 3], [8, 9]]


def test_headers_hold_no_text():
    image = opened(nifti_base64(np.zeros(GRID.shape, np.uint8), GRID, (2.0, 1.0)))
    header = image.header
    for name in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        assert bytes(header[name].tobytes()).strip(b"\0") == b""
    assert list(header.extensions) == []
    assert header.get_intent() == ("none", (), "")
    assert opened(nifti_base64(np.zeros(GRID.shape, np.uint8), GRID, labels=True)).header.get_intent()[0] == "label"
    assert (image.dataobj.slope, image.dataobj.inter) == (2.0, 1.0)
