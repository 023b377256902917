"""What training scores: quick looks on the way without mirroring, at the end as the model will predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from members import logits_of
from toy import toy_settings

from pipeline.data.prepared_cases import prepared_ids
from pipeline.data.store import PreparedCase, class_voxels, open_prepared, write_prepared
from pipeline.evaluate.overlap import overlaps
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.folder import ModelCard
from pipeline.model.spec import design_network
from pipeline.preprocess.plan_file import read_plan
from pipeline.validation import make_validation, quick_cases


def test_all_cases_are_scored_as_the_model_predicts(prepared: Path) -> None:
    changed = {"augment": {"flip_axes": ["LR", "SI"]}, "infer": {"mirror": True}, "train": {"validation_cases": 2}}
    settings, plan = toy_settings(), read_plan(prepared / "plan.yaml")
    content = settings.model_dump()
    mirroring = type(settings).model_validate(content | {key: content[key] | new for key, new in changed.items()})
    plain = mirroring.model_copy(update={"infer": settings.infer})
    spec, cases, cpu = (
        design_network(plan, settings.model, settings.sample),
        prepared_ids(prepared)[:2],
        torch.device("cpu"),
    )
    network = spec.build(3).eval()
    card = ModelCard(network=spec, plan=plan, settings=mirroring, provenance={})
    member = TrainedModel(card, [network], cpu)
    turning = mirroring.model_copy(update={"infer": mirroring.infer.model_copy(update={"rotate": True})})
    turned, *both = (card.model_copy(update={"settings": each}) for each in (turning, mirroring, plain))
    assert make_validation(prepared, cases, turned, cpu).passes == 16  # 8 of a plane, mirrored across it
    asked, without = (make_validation(prepared, cases, each, cpu) for each in both)
    assert (asked.passes, asked.complete, asked.longer) == (4, False, 4.0)
    assert (without.passes, without.complete, without.longer) == (1, True, 1.0)
    assert asked.score(network, False) == without.score(network, True)
    found = asked.score(network, True).cases
    assert found != asked.score(network, False).cases
    for case in cases:
        image, label = open_prepared(prepared, case)
        index = logits_of(member, torch.from_numpy(image[...]).float()).argmax(0).numpy()
        expected = {row.name: row.dice for row in overlaps(label[...], index, plan.label_table.indexed(), case=case)}
        assert found[case] == pytest.approx(expected)


def test_quick_cases_have_every_organ_as_often_as_can_be(tmp_path: Path) -> None:
    held: dict[str, tuple[int, ...]] = {"a": (), "b": (1,), "c": (1,), "d": (1, 2), "e": (2,), "f": (1, 2)}
    for name, organs in held.items():
        label = np.zeros((4, 4, 4), np.int8)
        label.flat[: len(organs)] = organs
        voxels = class_voxels(label, 9, np.random.default_rng(0))
        write_prepared(tmp_path, PreparedCase(name, label[None].astype(np.float32), label, voxels, {}))
    chosen = {number: "".join(quick_cases(tmp_path, "abcdef", number)) for number in range(1, 7)}
    assert chosen == {1: "b", 2: "bd", 3: "bde", 4: "bcde", 5: "bcdef", 6: "abcdef"}
    assert "".join(quick_cases(tmp_path, "adf", 2)) == "df"
    assert "".join(quick_cases(tmp_path, "fd", 1)) == "f"
    assert quick_cases(tmp_path, "abc", None) == "abc"
