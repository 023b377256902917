from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from pipeline.config.settings import (
    AugmentSettings,
    LossSettings,
    PreprocessSettings,
    Settings,
    TrainSettings,
    parse_duration_s,
)
from pipeline.config.yaml_file import json_schema


def test_a_budget_may_be_a_number_of_seconds() -> None:
    assert TrainSettings(budget=600).budget == "600s"  # type: ignore[arg-type]
    assert TrainSettings(budget="10m").budget == "10m"
    assert TrainSettings().budget is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().train.epochs = 3  # type: ignore[misc]


def test_a_loss_without_any_term_is_refused() -> None:
    with pytest.raises(ValidationError, match="dice_weight, ce_weight: expected at least one above 0"):
        LossSettings(dice_weight=0, ce_weight=0)
    assert LossSettings(dice_weight=0).ce_weight == 1.0


def test_a_spacing_and_a_shape_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="spacing_mm, shape: expected at most one of them, got both"):
        PreprocessSettings(spacing_mm=(1, 1, 1), shape=(224, 224, 1))
    assert PreprocessSettings(shape=(224, 224, 1)).spacing_mm is None


def test_ranges_may_start_at_zero_only_where_zero_makes_sense() -> None:
    assert AugmentSettings(noise_variance=(0.0, 0.0)).noise_variance == (0.0, 0.0)
    for name in ("scale", "blur_sigma_voxels", "brightness", "contrast", "gamma", "low_resolution"):
        with pytest.raises(ValidationError, match="expected 0 < low <= high"):
            AugmentSettings.model_validate({name: [0.0, 1.0]})


def test_orientations_are_kept_in_upper_case() -> None:
    assert Settings.model_validate({"preprocess": {"orientation": "lps"}}).preprocess.orientation == "LPS"


def test_the_schema_is_json_and_explains_every_key() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["additionalProperties"] is False
    sections = [schema["$defs"][field.annotation.__name__] for field in Settings.model_fields.values()]
    silent = [
        f"{section['title']}.{key}"
        for section in [schema, *sections]
        for key, entry in section["properties"].items()
        if not entry.get("description")
    ]
    assert silent == []
    rate = schema["$defs"]["TrainSettings"]["properties"]["learning_rate"]
    assert (rate["exclusiveMinimum"], rate["default"]) == (0.0, 0.01)


def test_every_key_has_a_default() -> None:
    assert Settings() == Settings.model_validate({})
    assert all(not field.is_required() for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("2d", 172_800.0),
        ("1d 2h 3m 4s", 93_784.0),
        ("1.5h", 5400.0),
        (" 5 M ", 300.0),
        ("600", 600.0),
        ("0.5", 0.5),
    ],
)
def test_durations_by_hand(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "m", "0s", "0", "-5m", "10min", "5 days", "nan", "inf", "1h30", "1m2h", "1h-30m", "ten minutes"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration: expected a time such as 90s, 10m or 1h30m, got ") as caught:
        parse_duration_s(text)
    assert repr(text) in str(caught.value)
