"""The page of a fingerprint: what it says, what it draws, and that odd datasets do not break it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.labels import LabelTable
from pipeline.data.dataset import Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint, dataset_fingerprint
from pipeline.report import fingerprint_page, fingerprint_plots
from pipeline.report.fingerprint_page import (
    anisotropy_sentence,
    axis_names,
    outliers,
    region_rows,
    side_pairs,
    volumes_ml,
    write_fingerprint_page,
)
from pipeline.report.plots import DARK, LIGHT

TABLE = LabelTable({1: "liver", 2: "lung_left", 3: "lung_right", 4: "rare $x$ <b>"})
USUAL = (1500, 800, 1000, 0)


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_plots, "_DPI", 30)


def fingerprint(
    *voxels: tuple[int, ...],
    labels: LabelTable = TABLE,
    channels: tuple[str, ...] = ("CT",),
    shape: tuple[int, int, int] = (40, 40, 40),
    spacings: dict[int, tuple[float, float, float]] | None = None,
    orientation: str = "RAS",
) -> dict[str, Any]:
    """Cases of these organ voxels at 10 mm: 1 ml each; as ``fingerprint.json`` gives it back."""
    generator, prints = np.random.default_rng(0), []
    for index, counts in enumerate(voxels):
        samples = generator.normal(50, 20, (len(channels), 200)).astype(np.float32) if sum(counts) else np.zeros((1, 0))
        spacing = (spacings or {}).get(index, (10.0, 10.0, 10.0))
        cropped = (shape[0], max(1, shape[1] - 2), shape[2])
        prints.append(CaseFingerprint(f"case_{index}", shape, cropped, spacing, samples, (9, *counts)))
    found = dataset_fingerprint(Dataset("toy", Path(), "pairs", channels, labels, ()), prints, orientation=orientation)
    content: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return content


class Page(HTMLParser):
    """Its words; tags must be balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "img", "source"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += " ".join(data.split()) + " "


@pytest.fixture
def _one_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the drawing, where the other half would tell nothing new."""
    monkeypatch.setattr(
        fingerprint_page, "both_themes", lambda draw: dict.fromkeys(("light", "dark"), str(draw(LIGHT)))
    )


def page(found: dict[str, Any], tmp_path: Path, **more: Any) -> Page:
    return Page(write_fingerprint_page(found, tmp_path / "fingerprint.html", **more))


def test_axes_are_named_in_the_direction_of_the_index() -> None:
    assert axis_names("RAS") == ("i (left–right)", "j (posterior–anterior)", "k (inferior–superior)")
    assert axis_names("ILP") == ("i (superior–inferior)", "j (right–left)", "k (anterior–posterior)")


def test_volumes_and_sides_by_hand() -> None:
    found = fingerprint((1, 4, 2, 0), (0, 3, 3, 0), (1, 5, 0, 0), (0, 0, 0, 0))
    volumes = volumes_ml(found)
    assert volumes.tolist() == [[1, 4, 2, 0], [0, 3, 3, 0], [1, 5, 0, 0], [0, 0, 0, 0]]
    (pair,) = side_pairs(found, volumes)
    assert (pair.left, pair.right, pair.ratios.tolist(), pair.one_sided) == ("lung_left", "lung_right", [2, 1], 1)


def test_regions_unite_their_organs() -> None:
    nested = LabelTable({1: "edema", 2: "core"}, None, {"whole": (1, 2), "core": (2,)})
    found = fingerprint((3, 1), (5, 0), labels=nested)
    assert region_rows(found, volumes_ml(found)) == [
        {"name": "whole", "organs": ["edema", "core"], "cases": 2, "median": 4.5},
        {"name": "core", "organs": ["core"], "cases": 1, "median": 1.0},
    ]


def usual(count: int) -> list[tuple[int, ...]]:
    """Cases that differ by a few percent."""
    return [(1500 + 10 * n, 800 + n, 1000 - n, 0) for n in range(count)]


def test_outliers_of_spacing_volume_and_swapped_sides_are_named() -> None:
    cases = usual(20)
    cases[3] = (15_000, 800, 1000, 0)
    cases[5] = (1500, 1000, 800, 0)
    found = fingerprint(*cases, spacings={7: (10.0, 10.0, 50.0)})
    named = {(each.case, each.what): each for each in outliers(found, volumes_ml(found))}
    assert named[("case_7", "spacing along k (inferior–superior)")].value == 50.0
    assert named[("case_5", "lung_left over lung_right")].value == 1.25
    tenfold = named[("case_3", "volume of liver")]
    assert (tenfold.value, tenfold.unit, tenfold.cases) == (15_000.0, "ml", 1)
    assert tenfold.robust_sds > 20
    assert {case for case, _ in named} == {"case_3", "case_5", "case_7"}  # 7: its volumes are five times larger too


def test_robust_distances_by_hand() -> None:
    """ln 2 from the median, where the deviations are 0, 0.1, 0.1, 0.1, 0.1 and ln 2: 1.4826 x 0.1 is the SD."""
    table = LabelTable({1: "liver"})
    sizes = [1_000_000 * np.exp(d) for d in (0.0, 0.0, 0.1, -0.1, 0.1, -0.1, np.log(2))]
    found = fingerprint(*((round(size),) for size in sizes), labels=table)
    (far,) = outliers(found, volumes_ml(found))
    assert far.robust_sds == pytest.approx(np.log(2) / 0.14826, rel=1e-4)


def test_few_cases_equal_cases_and_small_differences_have_no_outliers() -> None:
    for cases in ([*usual(3), (10**6, 800, 1000, 0)], [USUAL] * 30, [USUAL] * 29 + [(1600, 800, 1000, 0)]):
        found = fingerprint(*cases)
        assert outliers(found, volumes_ml(found)) == []


def test_many_far_cases_are_one_entry() -> None:
    cases = usual(20)
    for n in (2, 4, 6):
        cases[n] = (150_000 + n, 800, 1000, 0)
    found = fingerprint(*cases)
    (group,) = [each for each in outliers(found, volumes_ml(found)) if each.what == "volume of liver"]
    assert (group.cases, group.case) == (3, "case_6")


@pytest.mark.parametrize(
    ("spacing", "sentence"),
    [
        ((1.0, 1.0, 1.0), "The median voxel is a cube."),
        ((1.0, 1.0, 2.0), "2 times as long along k (inferior–superior) as along its finest axis. That is below 3"),
        ((5.0, 1.0, 1.0), "5 times as long along i (left–right) as along its finest axis. That is above 3"),
    ],
)
def test_anisotropy_in_words(spacing: tuple[float, float, float], sentence: str) -> None:
    assert sentence in anisotropy_sentence(fingerprint(USUAL, spacings={0: spacing}))


def test_the_page_says_it_all_and_needs_nothing_else(tmp_path: Path) -> None:
    cases = usual(20)
    cases[3] = (15_000, 800, 1000, 0)
    cases[4] = (1500, 800, 0, 1)
    found = page(
        fingerprint(*cases),
        tmp_path,
        failures=[(f"bad_{n}", f"case bad_{n}: image: expected <this>") for n in range(33)],
        class_weights={"rare $x$ <b>": 10.0},
        why="rare.",
        version="1.2",
        date="today",
    )
    assert "Dataset toy" in found.words
    assert "Cases that could not be used (33)" in found.words
    assert "bad_29 : image: expected <this> and 3 more" in found.words
    assert "rare $x$ <b> 1 1 1 1 " in found.words  # cases, median, smallest, largest
    assert " % 10 " in found.words
    assert "Class weights: rare." in found.words
    assert "lung_left lung_right 19 1 0.8" in found.words
    assert "case_3 volume of liver 15,000 ml" in found.words
    assert "Written by volseg 1.2, today." in found.words
    assert "<b>" not in found.source
    assert re.findall(r'(?:src|href|srcset)="(?!data:image/png)', found.source) == []
    assert found.source.count("data:image/png") == 10  # five plots on light and on dark


@pytest.mark.usefixtures("_one_theme")
@pytest.mark.parametrize("cases", [[USUAL], [(0, 0, 0, 0)] * 6, [(0, 5, 0, 0)] * 2], ids=["one", "empty", "one side"])
def test_sparse_datasets(tmp_path: Path, cases: list[tuple[int, ...]]) -> None:
    found = page(fingerprint(*cases), tmp_path)
    assert ("No organ in any case" in found.words) == (sum(cases[0]) == 0)
    assert ("In no case:" in found.words) == (sum(cases[0]) > 0)


@pytest.mark.usefixtures("_one_theme")
def test_pictures_with_channels_of_one_name(tmp_path: Path) -> None:
    table = LabelTable({1: "rim", 2: "cup"}, None, {"disc": (1, 2), "cup": (2,)})
    content = fingerprint((30, 9), (28, 0), labels=table, channels=("red", "grey", "grey"), shape=(99, 80, 1))
    assert list(content["channels"]) == ["red", "grey (1)", "grey (2)"]
    found = page(content, tmp_path)
    assert "disc rim, cup 2 33.5" in found.words
    assert "99 × 80 × 1" in found.words


@pytest.mark.usefixtures("_one_theme")
def test_more_organs_than_a_plot_holds_are_drawn_in_part_and_all_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint_page, "MOST_ROWS", 4)
    monkeypatch.setattr(fingerprint_plots, "MOST_ROWS", 4)
    table = LabelTable({n: f"organ {n}" for n in range(1, 10)})
    cases = [tuple(n + 1 + (case * n) % 7 for n in range(9)) for case in range(60)]
    found = page(fingerprint(*cases, labels=table), tmp_path)
    assert "The 2 largest and the 2 smallest of 9 organs" in found.words
    assert all(f"organ {n} 60 " in found.words for n in range(1, 10))


def test_plots_differ_by_theme_and_are_the_same_in_every_run() -> None:
    names, volumes = ["a", "b"], [np.array([1.0, 2.0, 90.0]), np.array([3.0])]
    drawn = [fingerprint_plots.volume_boxes(names, volumes, [0.9, 0.1], theme) for theme in (LIGHT, LIGHT, DARK)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
