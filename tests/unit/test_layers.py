"""What import-linter cannot see, because it reads the code without running it: which libraries an import brings in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT_PACKAGES = ("core", "config", "evaluate", "report")
LIGHT_MODULES = (
    *(
        f"pipeline.{package}.{path.stem}".removesuffix(".__init__")
        for package in LIGHT_PACKAGES
        for path in sorted((ROOT / "pipeline" / package).glob("*.py"))
    ),
    "pipeline.data.volumes",
    "pipeline.data.layouts",
    "pipeline.cli.app",
    "pipeline.stages.prepare",
)


def loaded_after(modules: tuple[str, ...], libraries: set[str]) -> tuple[str, str, int]:
    code = f"import sys, {', '.join(modules)}; print(*sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip(), done.stderr, done.returncode


@pytest.mark.parametrize(
    "modules",
    [tuple(m for m in LIGHT_MODULES if m.startswith(f"pipeline.{package}")) for package in LIGHT_PACKAGES]
    + [(module,) for module in LIGHT_MODULES[-4:]],
    ids=lambda modules: modules[0],
)
def test_importing_brings_in_neither_torch_nor_monai(modules: tuple[str, ...]) -> None:
    assert loaded_after(modules, {"torch", "monai"}) == ("", "", 0)


def test_core_needs_nothing_but_numpy() -> None:
    core = tuple(module for module in LIGHT_MODULES if module.startswith("pipeline.core"))
    assert loaded_after(core, {"scipy", "nibabel", "yaml", "pydantic"}) == ("", "", 0)
