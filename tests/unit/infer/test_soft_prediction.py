"""Probabilities, entropy and confidence of whole images are those of logits that are all held at full size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from members import ORGANS, REGIONS, image, member, whole_probabilities

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.grid import Grid
from pipeline.core.volume import Image
from pipeline.infer.predictor import Predictor

MIRROR = {"augment": {"flip_axes": ["LR", "SI"]}, "infer": {"mirror": True}}
MODELS = {
    "3D": lambda: [member()],
    "2D": lambda: [member(2)],
    "regions": lambda: [member(table=REGIONS)],
    "no resampling": lambda: [member(spacing_mm=(1.5, 2.5, 1.0), crop="none")],
    "finer": lambda: [member(spacing_mm=(0.9, 1.3, 0.8))],
    "folds": lambda: [member(folds=2)],
    "mirrored": lambda: [member(settings=MIRROR)],
    "ensemble": lambda: [member(), member(2, seed=5, spacing_mm=(3.0, 1.5, 1.5), crop="none")],
    "ensemble of regions": lambda: [member(table=REGIONS), member(table=REGIONS, seed=3, crop="none")],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "ILA"])
def test_soft_outputs_are_those_of_all_logits_at_full_size(name, orientation, tmp_path):
    predictor, given = Predictor(MODELS[name]()), image(orientation)
    table = predictor.labels
    expected = whole_probabilities(predictor, given).double()
    found = predictor.predict_soft(given, table.targets)
    plain = predictor.predict(given)
    np.testing.assert_array_equal(found.label_map.array, plain.array)
    assert (found.label_map.array.dtype, found.label_map.grid) == (plain.array.dtype, given.grid)
    first = len(expected) - len(table.targets)
    assert list(found.probabilities) == list(table.targets)
    for channel, array in enumerate(found.probabilities.values(), start=first):
        assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_allclose(array, expected[channel], atol=1e-5)
    parts = -torch.xlogy(expected, expected)
    whole = parts.sum(0) / math.log(len(expected))
    if table.regions:
        whole = (parts - torch.xlogy(1 - expected, 1 - expected)).mean(0) / math.log(2)
    np.testing.assert_allclose(found.entropy, whole, atol=1e-5)
    for channel, (target, values) in enumerate(table.target_values.items(), start=first):
        inside = np.isin(plain.array, values)
        mean = expected[channel][inside].mean().item() if inside.any() else None
        assert found.confidence[target] == pytest.approx(mean, abs=1e-5)
    assert len(plain.values()) > 1
    on_disk = predictor.predict_soft(given, table.targets[-1:], entropy=False, scratch=tmp_path)
    np.testing.assert_array_equal(on_disk.probabilities[table.targets[-1]], found.probabilities[table.targets[-1]])
    assert on_disk.entropy is None
    assert on_disk.confidence == found.confidence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", [ORGANS, REGIONS])
def test_a_single_picture(table):
    grid = Grid.from_spacing((30, 21, 1), (1.0, 1.0, 1.0))
    given = Image(np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32), grid)
    predictor = Predictor([member(2, table, crop="none")])
    found = predictor.predict_soft(given, table.targets)
    expected = whole_probabilities(predictor, given)[-len(table.targets) :]
    np.testing.assert_allclose(np.stack(list(found.probabilities.values())), expected, atol=1e-5)
    np.testing.assert_array_equal(found.label_map.array, predictor.predict(given).array)


def test_half_sums_give_the_same_soft_outputs_but_for_rounding():
    exact, half = (Predictor([member(settings={"infer": {"accumulate": kind}})]) for kind in ("float32", "float16"))
    one, other = (predictor.predict_soft(image(), ("liver",)) for predictor in (exact, half))
    np.testing.assert_allclose(one.probabilities["liver"], other.probabilities["liver"], atol=0.01)
    np.testing.assert_array_equal(other.label_map.array, half.predict(image()).array)


def test_more_classes_than_eight_bits_hold():
    many = type(ORGANS)({n: f"organ_{n}" for n in range(1, 300)})
    predictor = Predictor([member(table=many)])
    found = predictor.predict_soft(image(), ("organ_299",), entropy=False)
    np.testing.assert_array_equal(found.label_map.array, predictor.predict(image()).array)
    np.testing.assert_allclose(
        found.probabilities["organ_299"], whole_probabilities(predictor, image())[299], atol=1e-5
    )


def test_confidence_is_of_what_the_network_found_before_cleaning():
    kept = Predictor([member(settings={"infer": {"keep_largest": ["liver"]}})])
    plain = Predictor([member()])
    cleaned, whole = kept.predict_soft(image()), plain.predict_soft(image())
    assert (cleaned.label_map.array == 1).sum() < (whole.label_map.array == 1).sum()
    assert cleaned.confidence == whole.confidence
    assert not cleaned.probabilities


@pytest.mark.parametrize(("table", "name", "known"), [(ORGANS, "spleen", "liver, "), (REGIONS, "rim", "disc, cup")])
def test_organs_that_the_network_does_not_find_are_refused(table, name, known):
    predictor = Predictor([member(table=table)])
    with pytest.raises(DataError, match=rf"probabilities: expected some of {known}.*, got {name}\. Correct the names"):
        predictor.predict_soft(image(), (name,))


def test_a_part_of_the_image_has_no_probabilities() -> None:
    predictor = Predictor([member(settings={"infer": {"roi": "body"}})])
    with pytest.raises(ConfigError, match=r"infer.roi: expected none with .* confidence, got body"):
        predictor.predict_soft(image())
