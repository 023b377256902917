"""Which network, which options and which patch follow from settings and plan."""

import math

import pytest

from pipeline.config.settings import ModelSettings, SampleSettings
from pipeline.core.errors import ConfigError
from pipeline.model.spec import NetworkSpec, design_network, patches_per_batch
from pipeline.preprocess.plan_file import Plan

REGIONS = {"names": {"1": "rim", "2": "cup"}, "ignore_label": None, "regions": {"disc": [1, 2], "cup": [2]}}


def plan(patch_3d=(32, 32, 16), patch_2d=(40, 56), **changes) -> Plan:
    content = {
        "dataset": "toy",
        "channels": ("CT", "PET"),
        "labels": {"names": {"1": "liver", "2": "spleen"}, "ignore_label": None},
        "orientation": "RAS",
        "crop": "none",
        "spacing_mm": (1.0, 1.0, 2.5),
        "image_order": 3,
        "store_dtype": "int16",
        "normalization": ({"scheme": "zscore"},) * 2,
        "median_shape": (40, 40, 20),
        "slice_axis": 2,
        "patch_3d": {"patch_size": patch_3d, "batch_size": 2},
        "patch_2d": {"patch_size": patch_2d, "batch_size": 12},
        **changes,
    }
    return Plan.model_validate(content)


def design(patch_size=None, made: Plan | None = None, **model) -> NetworkSpec:
    return design_network(made or plan(), ModelSettings(**{"dims": 3, **model}), SampleSettings(patch_size=patch_size))


def test_planned_networks_follow_the_plan() -> None:
    spec = design(name="unet")
    assert (spec.in_channels, spec.out_channels, spec.patch_size) == (2, 3, (32, 32, 16))
    assert spec.options["features"] == [32, 64, 128, 256]
    assert spec.options["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]
    assert spec.options["kernel_sizes"] == [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert spec.options["deep_supervision"] is True


def test_blocks_are_planned_as_the_voxels_of_the_network() -> None:
    spec = design(name="unet", options={"block": [2, 2, 1]})
    # 16 x 16 x 16 blocks of 2 x 2 x 2.5 mm: nothing is coarse any more.
    assert spec.options["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert spec.options["features"] == [32, 64, 128]
    assert spec.patch_size == (32, 32, 16)
    assert spec.sizes().step == (8, 8, 4)
    for block, said in ((0, "block: expected a number from 1 to 8"), ([2, 2], "block: expected one number or 3")):
        with pytest.raises(ConfigError, match=said):
            design(name="unet", options={"block": block})


@pytest.mark.parametrize(
    ("name", "dims", "patch"),
    [
        ("unet_upconv", 3, (32, 32, 16)),
        ("unet32", 2, (48, 64)),  # multiples of 16
        ("dense_unet167", 2, (64, 64)),  # multiples of 32
        ("unet2015", 2, (236, 252)),  # 52 and 68 pixels of logits cover 40 and 56
        ("unet3d_cicek", 3, (124, 124, 108)),  # 36, 36 and 20 voxels
        ("ciresan_n4", 2, (95, 95)),  # a pixel
    ],
)
def test_other_networks_keep_their_stages_and_enlarge_the_patch(name: str, dims: int, patch: tuple[int, ...]) -> None:
    spec = design(name=name, dims=dims)
    assert spec.patch_size == patch
    assert set(spec.options) <= {"deep_supervision"}
    assert spec.sizes().is_legal(patch)


def test_logits_are_never_fewer_than_one_step() -> None:
    spec = design(name="unet2015", dims=2, made=plan(patch_2d=(4, 20)))
    assert spec.patch_size == (204, 204)  # 188 would give 4 pixels of logits, less than the step of 16
    assert spec.sizes().output_size(spec.patch_size) == (20, 20)


def test_a_planned_network_of_valid_convolutions_covers_the_planned_patch() -> None:
    spec = design(name="unet", dims=2, options={"padding": "valid", "head_size": "full"})
    covered = spec.sizes().output_size(spec.patch_size)
    assert all(0 <= n - wanted < step for n, wanted, step in zip(covered, (40, 56), spec.sizes().step, strict=True))


def test_an_enlarged_patch_takes_the_place_of_several() -> None:
    own, sample = plan(patch_3d=(64, 64, 32)), SampleSettings()
    assert patches_per_batch(own, design(made=own, name="unet"), sample) == 2
    assert patches_per_batch(own, design(made=own, name="unet3d_cicek"), sample) == 1
    pixels = design(name="ciresan_n4", dims=2)
    assert patches_per_batch(plan(), pixels, sample) == round(12 * 40 * 56 / 95**2)
    assert patches_per_batch(plan(), pixels, SampleSettings(batch_size=7)) == 7
    assert patches_per_batch(plan(), pixels, SampleSettings(patch_size=(95, 95))) == 12


def test_given_options_make_a_planned_patch_legal() -> None:
    spec = design(name="unet", dims=2, options={"features": [4, 8, 8, 8, 8], "strides": 2})
    assert spec.patch_size == (48, 64)


@pytest.mark.parametrize(
    ("name", "dims", "given", "legal"),
    [
        ("unet2015", 2, (572, 570), r"\(572, 572\)"),
        ("ciresan_n4", 2, (40, 96), r"\(95, 96\)"),
        ("vnet", 3, (30,) * 3, "32"),
    ],
)
def test_given_patches_must_be_legal(name: str, dims: int, given: tuple[int, ...], legal: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"sample.patch_size: expected a size {name} can take, .* legal one is .*{legal}"
    ):
        design(given, name=name, dims=dims)
    assert design((572, 572), name="unet2015", dims=2).patch_size == (572, 572)


def test_a_patch_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sample\.patch_size: expected 2 numbers for model\.dims 2, got"):
        design((32, 32, 32), dims=2)


def test_deep_supervision_goes_to_networks_that_have_it() -> None:
    assert "deep_supervision" not in design(name="ciresan_n4", dims=2).options
    assert design(name="unet2015", dims=2).options == {"deep_supervision": True}
    assert design(name="unet2015", dims=2, deep_supervision=False).options == {"deep_supervision": False}
    assert design(name="unet2015", dims=2, options={"deep_supervision": False}).options == {"deep_supervision": False}
    with pytest.raises(ConfigError, match="deep_supervision: expected one of features, hidden, activation, got"):
        design(name="ciresan_n4", dims=2, options={"deep_supervision": True})


def test_regions_have_a_channel_and_a_sigmoid_each() -> None:
    made = plan(labels=REGIONS)
    spec = design(name="unetpp", made=made)
    assert (spec.out_channels, spec.options["probabilities"]) == (2, "sigmoid")
    assert "probabilities" not in design(name="unet", made=made).options
    assert "probabilities" not in design(name="unetpp").options


@pytest.mark.parametrize(
    ("name", "message"), [("unett", "name: expected one of .*Did you mean unet"), ("vnet", "dims:")]
)
def test_unknown_networks_and_dimensions_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        design(name=name, dims=2)


def test_sizes_take_no_memory_and_are_those_of_the_network() -> None:
    spec = design((16, 16, 16), options={"features": [4, 8], "strides": 2})
    assert spec.sizes() == spec.build().sizes
    assert math.prod(spec.sizes().step) == 8
