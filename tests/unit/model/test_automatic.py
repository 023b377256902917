"""What is decided where the settings say auto, and why."""

from pathlib import Path

import pytest

from pipeline.config.settings import Settings, decided
from pipeline.config.yaml_file import load_settings, save_settings
from pipeline.model.automatic import Choice, choice_lines, decide
from pipeline.model.spec import build_network, design_network
from pipeline.preprocess.plan_file import Plan


def plan(median_shape: tuple[int, int, int] = (40, 40, 20), slice_axis: int = 2, **changes: object) -> Plan:
    content = {
        "dataset": "toy",
        "channels": ("image",),
        "labels": {"names": {"1": "liver", "2": "spleen"}, "ignore_label": None},
        "orientation": "RAS",
        "crop": "none",
        "spacing_mm": (1.0, 1.0, 1.0),
        "image_order": 3,
        "store_dtype": "int16",
        "normalization": ({"scheme": "zscore"},),
        "median_shape": median_shape,
        "slice_axis": slice_axis,
        "patch_3d": {"patch_size": (32, 32, 16), "batch_size": 2},
        "patch_2d": {"patch_size": (40, 56), "batch_size": 12},
        **changes,
    }
    return Plan.model_validate(content)


def settings(**sections: dict[str, object]) -> Settings:
    return Settings.model_validate(sections)


@pytest.mark.parametrize(
    ("median_shape", "slice_axis", "dims", "reason"),
    [
        ((512, 512, 1), 2, 2, "the cases are single slices"),
        ((1, 300, 200), 0, 2, "the cases are single slices"),
        ((512, 512, 2), 2, 3, "the cases are volumes"),
        ((40, 40, 20), 2, 3, "the cases are volumes"),
    ],
)
def test_single_slices_train_2d_networks(
    median_shape: tuple[int, int, int], slice_axis: int, dims: int, reason: str
) -> None:
    found, choices = decide(plan(median_shape, slice_axis), Settings())
    assert found.model.dims == dims
    assert choices[0] == Choice("model.dims", dims, reason)


@pytest.mark.parametrize(
    ("name", "patch_size", "dims", "reason"),
    [
        ("unet", (16, 16), 2, "as sample.patch_size has them"),
        ("unet", (16, 16, 16), 3, "as sample.patch_size has them"),
        ("vnet", None, 3, "vnet has no other"),
        ("ciresan_n4", None, 2, "ciresan_n4 has no other"),
    ],
)
def test_a_patch_or_a_network_may_leave_no_choice(
    name: str, patch_size: tuple[int, ...] | None, dims: int, reason: str
) -> None:
    given = settings(model={"name": name}, sample={"patch_size": patch_size})
    for shape in ((512, 512, 1), (40, 40, 20)):
        found, choices = decide(plan(shape), given)
        assert (found.model.dims, choices[0].reason) == (dims, reason)


def test_what_is_set_stays_and_what_is_decided_is_decided_once(tmp_path: Path) -> None:
    given = settings(model={"dims": 3})
    found, choices = decide(plan((512, 512, 1)), given)
    assert found.model.dims == 3
    assert "model.dims" not in [choice.key for choice in choices]
    once, _ = decide(plan((512, 512, 1)), Settings())
    assert decide(plan(), once) == (once, ())  # another plan, and nothing left to decide
    save_settings(once, tmp_path / "run.yaml")
    assert load_settings(tmp_path / "run.yaml") == once


def test_a_network_of_undecided_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="expected decided values, got auto"):
        design_network(plan(), Settings().model, Settings().sample)
    assert decided(3) == 3


def test_a_network_of_a_plan_has_its_axes() -> None:
    options = {"features": (4, 8), "strides": 2}
    assert build_network("unet", plan=plan((512, 512, 1)), **options).dims == 2
    assert build_network("unet", plan=plan(), **options).dims == 3
    assert build_network("unet", 2, plan=plan(), **options).dims == 2
    assert build_network("unet", in_channels=1, out_channels=2, **options).dims == 3


def test_choices_of_one_reason_stand_in_one_line() -> None:
    first, second = Choice("model.dims", 2, "slices"), Choice("train.optimizer", "adamw", "few steps")
    third = Choice("train.ema_decay", 0.98, "few steps")
    assert choice_lines([second, first, third]) == [
        "auto: train.optimizer adamw, train.ema_decay 0.98: few steps",
        "auto: model.dims 2: slices",
    ]
