"""What all tests share: real volumes, devices, and settings of libraries that would make runs differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib: tests never open a window
# Before torch is imported: tests share their machine, and the small arrays of most lose more than they gain by threads,
# which on a busy machine wait for one another at every operation.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

# A shared machine may pause for seconds, which says nothing about the code: neither deadlines nor "too slow" findings.
_COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("local", **_COMMON)
hypothesis.settings.register_profile("ci", derandomize=True, print_blob=True, **_COMMON)
hypothesis.settings.load_profile("ci" if IN_CI else "local")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes, from the environment variable VOLSEG_TEST_DATA.

    Without the variable the test is skipped; under CI=true, and if the folder is missing, it fails.
    """
    given = os.environ.get("VOLSEG_TEST_DATA", "")
    folder = Path(given)
    if given and folder.is_dir():
        return folder
    problem = f"VOLSEG_TEST_DATA: expected a folder of real volumes, got {given or 'nothing'}. Set it to run this test."
    if given or IN_CI:
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that use real volumes, and skip those that need a GPU where there is none."""
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.realdata)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_cuda():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, found none"))


def _has_cuda() -> bool:
    import torch  # only where a test asks for it: importing torch takes seconds

    return torch.cuda.is_available()
