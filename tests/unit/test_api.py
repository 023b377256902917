"""The public names and their examples."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.config.yaml_file import load_settings
from pipeline.model.automatic import decide
from pipeline.model.spec import design_network
from pipeline.preprocess.plan_file import Plan

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "pipeline" / "stages" / "demo.yaml"]
PLAN = Plan.model_validate(
    {
        "dataset": "toy",
        "channels": ("CT",),
        "labels": {"names": {"1": "liver", "2": "spleen"}, "ignore_label": None},
        "orientation": "RAS",
        "crop": "none",
        "spacing_mm": (1.0, 1.0, 1.0),
        "image_order": 3,
        "store_dtype": "int16",
        "normalization": ({"scheme": "zscore"},),
        "median_shape": (80, 80, 80),
        "slice_axis": 2,
        "patch_3d": {"patch_size": (64, 64, 64), "batch_size": 2},
        "patch_2d": {"patch_size": (80, 80), "batch_size": 12},
    }
)


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
    settings, _ = decide(PLAN, load_settings(path))
    spec = design_network(PLAN, settings.model, settings.sample)
    assert spec.build(0).legal_size(spec.patch_size) == spec.patch_size
    assert spec.patch_size == (settings.sample.patch_size or spec.patch_size)
