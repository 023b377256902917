"""The public names and their examples."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.config.yaml_file import load_settings
from pipeline.model.spec import build_network

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "pipeline" / "stages" / "demo.yaml"]


def test_about_30_names_and_each_is_documented() -> None:
    assert len(pipeline.__all__) <= 33
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'build_net'; the public names are Callbacks, Dataset,"):
        pipeline.build_net  # noqa: B018


def test_a_step_is_a_function_whatever_was_imported_before() -> None:
    code = (
        "import pipeline.train.loss, pipeline.report.page, pipeline.evaluate.overlap\n"
        "from pipeline import evaluate, preprocess, report, train\n"
        "import pipeline.preprocess.plan_file\n"
        "from pipeline.evaluate import overlap\n"
        "assert overlap.__name__ == 'pipeline.evaluate.overlap'\n"
        "steps = (pipeline.preprocess, pipeline.train, pipeline.evaluate, pipeline.report)\n"
        "print(*(step.__module__ for step in steps))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    homes = ["prepare", "train", "evaluate", "report"]
    assert done.stdout.split() == [f"pipeline.stages.{home}" for home in homes]


def test_the_examples_run() -> None:
    for module in ("pipeline", "pipeline.stages.predict", "pipeline.infer.inferer"):
        failed, _ = doctest.testmod(importlib.import_module(module))
        assert failed == 0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_its_network_can_be_built(path: Path) -> None:
    settings = load_settings(path)
    options = {**settings.model.options, "deep_supervision": settings.model.deep_supervision}
    network = build_network(settings.model.name, settings.model.dims, 1, 3, **options)
    if settings.sample.patch_size is not None:
        assert network.legal_size(settings.sample.patch_size) == tuple(settings.sample.patch_size)
