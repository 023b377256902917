"""The entrance of a cascade's second stage: class indices become one channel per class, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.settings import ModelSettings, SampleSettings, Settings
from pipeline.core.errors import ConfigError, DataError, VolsegError
from pipeline.model.base import with_stage_channels
from pipeline.model.folder import ModelCard, load_network, read_card, save_weights, write_card
from pipeline.model.spec import NetworkSpec, design_network
from pipeline.preprocess.plan_file import LowResolution, Normalization, PatchPlan, Plan, read_plan, write_plan


def plan(*, cascade: bool = True) -> Plan:
    low = LowResolution(spacing_mm=(2.0, 2.0, 4.0), median_shape=(30, 30, 10), patch_size=(16, 16, 8), batch_size=3)
    return Plan(
        dataset="d",
        channels=("CT", "PET"),
        labels={"names": {"1": "a", "3": "b", "7": "c"}, "ignore_label": 9},
        orientation="RAS",
        crop="none",
        spacing_mm=(1.0, 1.0, 2.0),
        image_order=3,
        store_dtype="int16",
        normalization=(Normalization(scheme="zscore"), Normalization(scheme="zscore")),
        median_shape=(60, 60, 20),
        slice_axis=2,
        patch_3d=PatchPlan(patch_size=(16, 16, 8), batch_size=2),
        patch_2d=PatchPlan(patch_size=(16, 16), batch_size=2),
        low_resolution=low,
        cascade=cascade,
        reasons={"spacing_mm": "As set."},
    )


def spec(**changes: object) -> NetworkSpec:
    settings = ModelSettings(dims=3, options={"features": (4, 8)}, deep_supervision=False)
    return design_network(plan(), settings, SampleSettings()).model_copy(update=changes)


def test_class_indices_become_a_channel_per_class_without_background() -> None:
    x = torch.tensor([[[[[0.5, -1.0, 2.0, 7.0]]], [[[0.0, 3.0, 1.0, 3.0]]]]])  # (1, 2, 1, 1, 4)
    seen = with_stage_channels(x, 3)
    assert seen.shape == (1, 4, 1, 1, 4)
    assert seen[0, :, 0, 0].tolist() == [
        [0.5, -1.0, 2.0, 7.0],
        [0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 1.0],
    ]


def test_the_network_takes_indices_or_their_channels() -> None:
    described = spec()
    assert (described.in_channels, described.stage_classes) == (5, 3)
    network = described.build(seed=0).eval()
    image, found = torch.randn(2, 2, 16, 16, 8), torch.randint(0, 4, (2, 1, 16, 16, 8)).float()
    channels = torch.cat([found == value for value in (1, 2, 3)], dim=1).float()
    with torch.no_grad():
        ours, theirs = network(torch.cat([image, found], 1)), network(torch.cat([image, channels], 1))
    assert torch.equal(ours, theirs)
    with pytest.raises(DataError, match="network input"):
        network(image[:, :1])


def test_only_three_axes() -> None:
    with pytest.raises(ConfigError, match=r"model.dims: expected 3 for a cascade, got 2"):
        design_network(plan(), ModelSettings(dims=2), SampleSettings())


def test_a_model_folder_keeps_it(tmp_path: Path) -> None:
    described = spec()
    card = ModelCard(network=described, plan=plan(), settings=Settings(), provenance={})
    write_card(tmp_path, card)
    assert read_card(tmp_path).model_dump(mode="json") == card.model_dump(mode="json")
    save_weights(tmp_path / "fold_0" / "model.safetensors", described.build(seed=0).state_dict())
    assert load_network(tmp_path, card, 0).stage_classes == 3
    wrong = card.model_copy(update={"plan": plan(cascade=False)})
    write_card(tmp_path, wrong)
    with pytest.raises(VolsegError, match=r"network\.stage_classes: expected 0"):
        read_card(tmp_path)


def test_plans_without_a_cascade_stay_as_they_were(tmp_path: Path) -> None:
    single, double = plan(cascade=False), plan()
    assert "cascade" not in single.model_dump()
    assert "cascade" not in single.model_dump_json()
    assert single.content_hash == double.content_hash  # the cases of the second stage are prepared alike
    for each in (single, double):
        write_plan(each, tmp_path / "plan.yaml")
        assert read_plan(tmp_path / "plan.yaml") == each
    assert "cascade: true" in (tmp_path / "plan.yaml").read_text()
    assert (single.stage_classes, double.stage_classes) == (0, 3)
    own = spec(stage_classes=0)
    assert "stage_classes" not in own.model_dump(mode="json")


def test_the_first_stage_is_planned_on_the_low_resolution() -> None:
    first = plan().first_stage()
    assert (first.spacing_mm, first.median_shape) == ((2.0, 2.0, 4.0), (30, 30, 10))
    assert first.patch_3d == PatchPlan(patch_size=(16, 16, 8), batch_size=3)
    assert (first.cascade, first.low_resolution, first.stage_classes) == (False, None, 0)
    assert first.content_hash != plan().content_hash


def test_a_cascade_needs_a_low_resolution(tmp_path: Path) -> None:
    write_plan(plan(), tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    start, end = text.index("low_resolution:"), text.index("cascade:")
    (tmp_path / "plan.yaml").write_text(text[:start] + "low_resolution: null\n\n" + text[end:])
    with pytest.raises(VolsegError, match="cascade: expected false without low_resolution, got true"):
        read_plan(tmp_path / "plan.yaml")
