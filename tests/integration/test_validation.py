"""What training scores: quick looks on the way without mirroring, at the end as the model will predict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from members import logits_of
from toy import toy_settings

from pipeline.data.store import open_prepared, prepared_ids
from pipeline.evaluate.overlap import overlaps
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.folder import ModelCard
from pipeline.model.spec import design_network
from pipeline.preprocess.plan_file import read_plan
from pipeline.validation import make_validation


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
