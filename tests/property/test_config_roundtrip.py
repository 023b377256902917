"""Any settings written to YAML come back equal, and any override ends up where its path says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.settings import Settings
from pipeline.config.yaml_file import load_settings, save_settings

positive = st.floats(1e-6, 1e3)
share = st.floats(0.0, 1.0)
size = st.integers(1, 512)
name = st.text(st.sampled_from("abcXYZ019 _-.:'\"#[]{},&*!|>%@\n\täß漢"), min_size=1, max_size=12)

CONTENT = st.fixed_dictionaries(
    {},
    optional={
        "preprocess": st.fixed_dictionaries(
            {},
            optional={
                "orientation": st.sampled_from(["RAS", "LPS", "SLA", "lps"]),
                "crop": st.sampled_from(["nonzero", "none"]),
                "spacing_mm": st.none() | st.tuples(positive, positive, positive).map(list),
                "patch_size": st.none() | st.tuples(size, size, size).map(list),
                "image_order": st.sampled_from([0, 1, 3]),
            },
        ),
        "sample": st.fixed_dictionaries(
            {}, optional={"folds": st.integers(2, 20), "overlap": st.floats(0, 0.99), "skip_empty": st.booleans()}
        ),
        "augment": st.fixed_dictionaries(
            {},
            optional={
                "flip_axes": st.lists(st.sampled_from(["LR", "AP", "SI"]), max_size=3),
                "rotate_p": share,
                "gamma": st.tuples(positive, positive).map(sorted),
                "noise_variance": st.tuples(share, share).map(sorted),
                "noise_sd": st.none() | st.tuples(share, share).map(sorted),
                "rotate_degrees": st.just("auto") | st.floats(0.0, 180.0),
            },
        ),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "name": name,
                "dims": st.sampled_from([2, 3]),
                "options": st.dictionaries(name, st.integers() | st.booleans() | name | st.lists(size, max_size=4)),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": positive,
                "budget": st.sampled_from([None, "90s", "10m", "1h30m"]),
                "gradient_clip": st.none() | positive,
                "seed": st.integers(0, 2**40),
            },
        ),
        "infer": st.fixed_dictionaries({}, optional={"keep_largest": st.lists(name, max_size=3)}),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@settings(max_examples=40)
@given(content=CONTENT)
def test_settings_come_back_from_their_file(folder: Path, content: dict[str, Any]) -> None:
    given_settings = Settings.model_validate(content)
    path = folder / f"{uuid4().hex}.yaml"
    text = save_settings(given_settings, path)
    assert path.read_text(encoding="utf-8") == text
    assert load_settings(path) == given_settings
    assert save_settings(load_settings(path)) == text


@settings(max_examples=40)
@given(content=CONTENT)
def test_a_file_and_overrides_with_the_same_values_are_the_same(folder: Path, content: dict[str, Any]) -> None:
    path = folder / f"{uuid4().hex}.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    overrides = [
        f"{section}.{key}={json.dumps(value, ensure_ascii=False)}"
        for section, keys in content.items()
        for key, value in keys.items()
    ]
    assert load_settings(overrides=overrides) == load_settings(path) == Settings.model_validate(content)


@given(rate=st.floats(1e-9, 1e3))
def test_every_way_to_write_a_number_is_understood(rate: float) -> None:
    for text in (repr(rate), f"{rate:.17e}", f"{rate:.17e}".replace("e-0", "e-").replace("e+0", "e+")):
        assert load_settings(overrides=[f"train.learning_rate={text}"]).train.learning_rate == rate
