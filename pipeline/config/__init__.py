"""Settings: one YAML file is one frozen, validated object.

Each step of the pipeline reads its own section. Unknown keys are refused with the nearest known one, and all problems
are reported at once with their YAML paths.
"""

from pipeline.config.duration import parse_duration_s
from pipeline.config.settings import (
    AugmentSettings,
    InferSettings,
    LossSettings,
    ModelSettings,
    PreprocessSettings,
    SampleSettings,
    Settings,
    TrainSettings,
)
from pipeline.config.yaml_file import json_schema, load_settings, save_settings

__all__ = [
    "AugmentSettings",
    "InferSettings",
    "LossSettings",
    "ModelSettings",
    "PreprocessSettings",
    "SampleSettings",
    "Settings",
    "TrainSettings",
    "json_schema",
    "load_settings",
    "parse_duration_s",
    "save_settings",
]
