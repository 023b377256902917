"""The lines of ``docs/slicer.md``, run with a stand-in for Slicer's Python: what the two programs tell each other."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.model.zoo import zoo_model

PAGE = Path(__file__).parents[2] / "docs" / "slicer.md"


def test_the_lines_of_the_page_segment_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = sitk.ReadImage(str(zoo_model("hippocampus").example[0]))
    loaded: list[Path] = []

    def load(path: str) -> Path:
        loaded.append(Path(path))
        return loaded[-1]

    util = SimpleNamespace(
        getNode=lambda name: scan,
        saveNode=lambda node, path: sitk.WriteImage(node, path),
        startupEnvironment=lambda: {**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
        loadSegmentation=load,
    )
    slicer = ModuleType("slicer")
    slicer.util = util  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    program = '["/path/to/venv/bin/volseg"]'
    assert program in code
    variables: dict[str, Any] = {}
    exec(code.replace(program, repr([sys.executable, "-m", "pipeline"])), variables)
    (path,) = loaded
    assert variables["segmentation"] == path
    found = sitk.ReadImage(str(path))
    shutil.rmtree(path.parents[1])
    assert found.GetSize() == scan.GetSize()
    for told in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, told)(), getattr(scan, told)(), atol=1e-5)
    names = {found.GetMetaData(f"Segment{n}_Name"): int(found.GetMetaData(f"Segment{n}_LabelValue")) for n in (0, 1)}
    assert names == {"Anterior": 1, "Posterior": 2}
    assert "SCT^5366008^Hippocampus~SCT^255549009^Anterior" in found.GetMetaData("Segment0_Tags")
    assert set(np.unique(sitk.GetArrayFromImage(found))) == {0, 1, 2}
