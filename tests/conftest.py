"""What all tests share: real volumes, devices, and settings of libraries that would make runs differ."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest

gc.disable()  # while tests are collected: imports make no garbage, and looking for it takes a sixth of their time

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib: tests never open a window
# Before torch is imported: tests share their machine, and the small arrays of most lose more than they gain by threads,
# which on a busy machine wait for one another at every operation.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

# Before torch is imported, too: with this variable set, two GPUs that compute on the CPU take the place of real ones.
STAND_IN_FOLDER = Path(__file__).parents[1] / ".pytest_cache" / "gpu_stand_in"
WITH_STAND_IN = os.environ.get("VOLSEG_GPU_STAND_IN", "") not in ("", "0")
if WITH_STAND_IN:
    sys.path.insert(0, str(Path(__file__).with_name("gpu_stand_in")))
    import stand_in

    stand_in.install(stand_in.build(STAND_IN_FOLDER))

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


@pytest.fixture(scope="session")
def gpu_stand_in() -> dict[str, str]:
    """Variables that give the stand-in for a GPU to a process that runs tests.

    Where it cannot be built the test is skipped; under CI=true it fails.
    """
    import stand_in

    try:
        stand_in.build(STAND_IN_FOLDER)
    except stand_in.CannotBuildError as error:
        if IN_CI:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    return {"VOLSEG_GPU_STAND_IN": "1"}


@pytest.fixture(autouse=True)
def _ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stand-in, no measured convolution: one that keeps a GPU busy for 0.1 s takes minutes on a CPU."""
    if WITH_STAND_IN:
        monkeypatch.setattr(import_module("pipeline.train.log"), "convolution_ceiling", lambda *_: 1e12)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that use real volumes; leave out those that need a GPU, or its stand-in, where there is none."""
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.realdata)
    needing = [item for item in items if item.get_closest_marker("gpu") or item.get_closest_marker("stand_in")]
    found = bool(needing) and _has_cuda()
    # One test runs all these with the stand-in, in a process of its own: what it runs is not skipped.
    elsewhere = any(item.name == "test_the_tests_of_a_gpu_pass_with_its_stand_in" for item in items)
    left_out = []
    for item in needing:
        marker = item.get_closest_marker("gpu")
        if marker is not None and marker.kwargs.get("real"):
            if not found or WITH_STAND_IN:
                item.add_marker(pytest.mark.skip(reason="needs a real CUDA device, found none"))
        elif not WITH_STAND_IN and (marker is None or not found):
            if elsewhere:
                left_out.append(item)
            item.add_marker(pytest.mark.skip(reason="needs a GPU or its stand-in: set VOLSEG_GPU_STAND_IN=1"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish() -> None:
    """Look for garbage from here on, though not among what was imported."""
    gc.enable()
    gc.freeze()


def _has_cuda() -> bool:
    import torch  # only where a test asks for it: importing torch takes seconds

    return torch.cuda.is_available()
