"""What import-linter cannot see, because it reads the code without running it: which libraries an import brings in."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT_MODULES = (
    "pipeline.core",
    "pipeline.config",
    "pipeline.data.volumes",
    "pipeline.data.layouts",
    "pipeline.evaluate",
    "pipeline.export",
    "pipeline.cli",
    "pipeline.stages.prepare",
)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_brings_in_neither_torch_nor_monai(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'monai'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_core_needs_nothing_but_numpy() -> None:
    code = "import sys, pipeline.core; print(*sorted({'scipy', 'nibabel', 'yaml', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
