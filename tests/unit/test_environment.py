"""pyproject.toml, constraints.txt and environment.yml describe one environment."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]

CONDA_NAMES = {
    "blosc2": "python-blosc2",
    "lazy-loader": "lazy_loader",
    "matplotlib": "matplotlib-base",
    "playwright": "playwright-python",
    "prometheus-client": "prometheus_client",
    "pytorch-ignite": "ignite",
    "torch": "pytorch",
}
"""Distributions whose conda-forge package has another name."""

EXTRAS = {"bench", "dev", "mlflow", "onnx", "service"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def conda() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, Version] = {}
    for line in (line for line in lines if line and not line.startswith("#")):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"constraints.txt: expected name==version, got {line!r}"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints.txt: {name} is pinned twice"
        found[name] = Version(match[2])
    return found


def requirements(project: dict[str, Any], *extras: str) -> dict[str, SpecifierSet]:
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    parsed = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in parsed}


def test_the_extras_are_those_that_the_readme_promises(project: dict[str, Any]) -> None:
    assert set(project["optional-dependencies"]) == EXTRAS


def test_every_requirement_is_pinned_within_its_range(project: dict[str, Any]) -> None:
    pinned = pins()
    wanted = requirements(project, *EXTRAS)
    assert [name for name in wanted if name not in pinned] == []
    assert [f"{name} {pinned[name]}" for name, allowed in wanted.items() if pinned[name] not in allowed] == []


def test_every_requirement_has_a_lower_bound(project: dict[str, Any]) -> None:
    wanted = requirements(project, *EXTRAS)
    assert [name for name, allowed in wanted.items() if not any(rule.operator == ">=" for rule in allowed)] == []


def test_no_pin_asks_for_a_build_that_only_one_kind_of_machine_has() -> None:
    assert [name for name, version in pins().items() if version.local] == []


def test_conda_lists_the_same_requirements_with_the_same_ranges(project: dict[str, Any], conda: dict[str, Any]) -> None:
    wanted = {CONDA_NAMES.get(name, name): rule for name, rule in requirements(project, "dev").items()}
    listed = [Requirement(text) for text in conda["dependencies"] if isinstance(text, str)]
    given = {requirement.name: requirement.specifier for requirement in listed}
    assert given.pop("python") == SpecifierSet(project["requires-python"])
    assert given.pop("pip") == SpecifierSet()
    assert given == wanted


def test_conda_installs_the_package_itself_and_nothing_else_by_pip(conda: dict[str, Any]) -> None:
    assert [part["pip"] for part in conda["dependencies"] if isinstance(part, dict)] == [["-e ."]]
    assert conda["name"] == "volseg"
    assert conda["channels"][0] == "conda-forge"


def test_the_classifiers_start_at_the_oldest_python(project: dict[str, Any]) -> None:
    prefix = "Programming Language :: Python :: "
    named = [Version(text.removeprefix(prefix)) for text in project["classifiers"] if text.startswith(prefix)]
    assert f">={min(named)}" == project["requires-python"]
