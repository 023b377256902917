"""How images are prepared for networks of another tool; the plans are those of ``nnunet_results.py``."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nnunet_results import KINDS, dataset, plans

from pipeline.core.grid import Grid
from pipeline.core.volume import Image
from pipeline.interop.nnunet_plans import ModelPlans
from pipeline.preprocess.plan_file import Normalization
from pipeline.preprocess.prepare_case import prepare_image
from pipeline.preprocess.transforms import Normalized


def plan(kind, stage="3d_fullres", mirror=()):
    return ModelPlans(plans(KINDS[kind]), dataset(KINDS[kind]), "plans.json").plan(stage, mirror)


def image(shape, spacing, codes="RAS"):
    array = np.random.default_rng(0).uniform(1, 2, (1, *shape)).astype(np.float32)
    return Image(array, Grid.from_spacing(shape, spacing)).reoriented(codes)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_volumes_are_taken_as_they_lie_in_their_files(codes):
    source = image((10, 12, 14), (1.0, 1.0, 1.0), codes)
    unchanged = plan("plain").model_copy(
        update={"spacing_mm": (1.0, 1.0, 1.0), "normalization": (Normalization(scheme="none"),)}
    )
    found, history = prepare_image(source, unchanged)
    # File axes 0, 2, 1, none of them reversed, whatever their directions are.
    assert np.array_equal(found[0], source.array[0].transpose(0, 2, 1))
    assert history.orientation == "".join(codes[axis] for axis in (0, 2, 1))


def test_slices_of_2d_networks_stay_as_far_apart_as_they_are():
    source = image((9, 18, 7), (2.0, 0.9, 2.3))
    found, history = prepare_image(source, plan("flat", "2d", (0, 1)))
    # File axes 1, 2, 0 along nnU-Net's 0 to 2: slices along the second axis of the file.
    assert history.orientation == "ASR"
    assert found.shape == (1, 18, round(7 * 2.3 / 0.9), round(9 * 2.0 / 1.1))


def test_intensities_from_0_to_1():
    volume = MetaTensor(torch.tensor([[[[2.0, 4.0, 10.0]]], [[[5.0, 5.0, 5.0]]]]))
    entry = Normalization(scheme="range")
    found = Normalized(["image"], [entry, entry])({"image": volume})["image"]
    assert found.as_tensor()[:, 0, 0].tolist() == [[0.0, 0.25, 1.0], [0.0, 0.0, 0.0]]


def test_plans_of_our_own_have_no_such_key():
    known = plan("plain")
    own = known.model_copy(update={"conventions": None})
    assert "conventions" in known.model_dump()
    assert "conventions" not in own.model_dump()
    assert own.orientation_of(Grid.from_spacing((2, 2, 2), (1.0, 1.0, 1.0))) == own.orientation
    assert own.logit_orders(Grid.from_spacing((2, 2, 2), (1.0, 1.0, 9.0))) == (1, 1, 1)
