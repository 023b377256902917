"""The report in a real browser, opened from the disk with the network blocked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import open_browser
from matplotlib.image import imread
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.itk import write_picture
from pipeline.data.volumes import write_image, write_label_map
from pipeline.evaluate.results import write_evaluation
from pipeline.evaluate.scoring import evaluate
from pipeline.report.report import write_report

LAYERS = ("image", "reference", "prediction", "errors")
TABLE = LabelTable({1: "liver", 2: "spleen", **{n: f"organ {n}" for n in range(3, 120)}})
"""Many more organs than are there: their colours must not tint the background."""
CASES = ("shifted", "missed", "good")
GRID = Grid.from_spacing((48, 40, 24), (1.5, 1.5, 3.0))


def masks(shift: int = 0, spleen: bool = True) -> LabelMap:
    """A ball, and a box beside it."""
    i, j, k = np.ogrid[: GRID.shape[0], : GRID.shape[1], : GRID.shape[2]]
    array = (((i - 16 - shift) / 9) ** 2 + ((j - 20) / 9) ** 2 + ((k - 12) / 6) ** 2 <= 1).astype(np.uint8)
    array[32 + shift : 40 + shift, 14:26, 8:17] = 2 * spleen
    return LabelMap(array, GRID)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of CT: one shifted, one without its spleen, one perfect."""
    home = tmp_path_factory.mktemp("browser")
    rng = np.random.default_rng(0)
    for case, prediction in zip(CASES, (masks(2), masks(1, spleen=False), masks()), strict=True):
        hu = rng.normal(-50, 25, GRID.shape) + 90 * (masks().array > 0)
        hu[:, :6] = -1000
        write_image(Image(hu[None].astype(np.float32), GRID), home / "imagesTs" / f"{case}_0000.nii.gz")
        write_label_map(masks(), home / "labelsTs" / f"{case}.nii.gz")
        write_label_map(prediction, home / "pred" / f"{case}.nii.gz")
    (home / "pred" / "labels.json").write_text(json.dumps(TABLE.to_json()))
    write_evaluation(evaluate(home / "pred", home / "labelsTs"), home / "scores")
    return write_report(home / "scores", home / "report.html", show_names=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the machine, without a network."""
    with open_browser() as browser:
        yield browser


class Watched:
    """A page, and what it complained of and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def shown(self, name: str) -> None:
        """Wait until a case is shown."""
        self.page.wait_for_selector(f'#viewer[data-shown="{name}"]', timeout=60_000)

    def picture(self) -> NDArray[np.uint8]:
        """Pixels of the viewer's canvas, (rows, columns, 3)."""
        png = self.page.locator("#viewer-canvas").screenshot()
        return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)

    def changes(self, before: NDArray[np.uint8], tries: int = 20) -> NDArray[np.uint8]:
        """The picture once it differs from an earlier one; the same again after some tries if it does not."""
        for _ in range(tries):
            now = self.picture()
            if not np.array_equal(before, now):
                return now
            self.page.wait_for_timeout(100)
        return before


@pytest.fixture
def watched(browser: Browser, report: Path) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 800, "height": 600})
    page.context.set_offline(True)
    found = Watched(page)
    page.goto(report.as_uri())
    yield found
    page.close()


def colours(picture: NDArray[np.uint8]) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def share(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float((one != other).any(axis=-1).mean())


def test_every_case_every_layer_and_every_window_is_drawn(watched: Watched) -> None:
    page = watched.page
    names = page.locator("#viewer-case option").all_inner_texts()
    assert names == ["missed (worst)", "shifted (worst)", "good (best)"]
    page.click("#viewer-open")
    watched.shown("missed")
    pictures = []
    for name in ("missed", "shifted", "good"):
        watched.shown(name)
        picture = watched.picture()
        assert colours(picture) > 200
        for layer in LAYERS:
            box = page.locator(f'[data-layer="{layer}"]')
            box.click()
            empty = layer == "errors" and name == "good"
            other = watched.changes(picture, tries=3 if empty else 20)
            assert (share(picture, other) > 0.002) is not empty, (name, layer)
            box.click()
            watched.changes(other, tries=1 if empty else 20)
        assert page.locator("#viewer-windows button").all_inner_texts() == ["Soft tissue", "Lung", "Bone"]
        pictures.append(picture)
        before = watched.picture()
        for window in ("Lung", "Bone", "Soft tissue"):
            button = page.get_by_role("button", name=window)
            button.click()
            now = watched.changes(before)
            assert share(before, now) > 0.05, (name, window)
            assert button.get_attribute("aria-pressed") == "true"
            before = now
        page.click("#viewer-next")
    watched.shown("missed")
    assert share(pictures[0], pictures[1]) > 0.002
    assert share(pictures[1], pictures[2]) > 0.002
    assert watched.complaints == []
    assert [url for url in watched.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_opacity_and_the_buttons_of_the_table(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="View case shifted").click()
    watched.shown("shifted")
    before = watched.picture()
    page.locator('[data-opacity="prediction"]').fill("5")
    assert share(before, watched.changes(before)) > 0.002
    assert "shifted, case 2 of 3" in page.inner_text("#viewer-status")
    assert "prediction: liver" in page.inner_text("#viewer-place") or "spleen" in page.inner_text("#viewer-place")
    assert page.locator("#viewer-organs").inner_text().split() == ["liver", "spleen"]
    assert watched.complaints == []


def test_the_keyboard_is_enough(watched: Watched) -> None:
    page = watched.page
    page.focus("#viewer-open")
    page.keyboard.press("Enter")
    watched.shown("missed")
    page.focus("#viewer-canvas")
    place = page.inner_text("#viewer-place")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    assert page.inner_text("#viewer-place") != place
    before = watched.picture()
    page.keyboard.press("2")
    assert page.locator('[data-layer="reference"]').is_checked()
    assert share(before, watched.changes(before)) > 0.002
    page.keyboard.press("w")
    assert page.locator('#viewer-windows [aria-pressed="true"]').inner_text() == "Lung"
    page.keyboard.press("n")
    watched.shown("shifted")
    page.keyboard.press("p")
    watched.shown("missed")
    outline = page.evaluate("getComputedStyle(document.querySelector('.screen')).outlineStyle")
    assert outline == "solid"
    assert watched.complaints == []


def organ_columns(picture: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean columns of liver and spleen, blue and orange, in the axial plane at the lower left."""
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
    axial = picture[rows:, :columns].astype(int)
    warmth = axial[..., 0] - axial[..., 2]
    liver, spleen = (np.nonzero(mask)[1] for mask in (warmth < -40, warmth > 40))
    assert min(len(liver), len(spleen)) > 300
    return float(liver.mean()), float(spleen.mean())


@pytest.mark.parametrize("neurological", [False, True])
def test_the_patients_left_is_on_the_right_until_the_switch_is_used(
    browser: Browser, report: Path, neurological: bool
) -> None:
    """The liver is on the patient's left here, the spleen on the right."""
    path = report.with_name(f"sides_{neurological}.html")
    write_report(report.parent / "scores", path, show_names=True, neurological=neurological)
    page = browser.new_page(viewport={"width": 800, "height": 600})
    watched = Watched(page)
    page.goto(path.as_uri())
    page.get_by_role("button", name="View case good").click()
    watched.shown("good")
    box = page.locator("#viewer-neurological")
    assert box.is_checked() is neurological
    sides, left = ["right", "left"], "The patient's left is on the "
    words = page.inner_text("body")
    assert (f"{left}{sides[neurological]}" in words, f"{left}{sides[not neurological]}" in words) == (True, False)
    before = watched.picture()
    liver, spleen = organ_columns(before)
    assert (liver < spleen) is neurological
    # The arrow to the right moves to the right of the screen, wherever that is in the patient.
    place = page.inner_text("#viewer-place")
    page.focus("#viewer-canvas")
    page.keyboard.press("ArrowRight")
    was, now = (float(text.split("(")[1].split(",")[0]) for text in (place, page.inner_text("#viewer-place")))
    assert now - was == pytest.approx(1.5 if neurological else -1.5, abs=0.11)  # x grows to the patient's right
    before = watched.picture()
    page.keyboard.press("s")
    liver, spleen = organ_columns(watched.changes(before))
    assert (liver > spleen) is neurological
    assert box.is_checked() is not neurological
    assert watched.complaints == []
    page.close()


def test_nothing_is_decoded_before_a_case_is_opened(watched: Watched) -> None:
    assert watched.page.evaluate("typeof niivue") == "undefined"
    assert watched.page.inner_text("#viewer-status") == "No case is open."


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_fits_the_screen(browser: Browser, report: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.goto(report.as_uri())
    page.click("#viewer-open")
    page.wait_for_selector("#viewer[data-shown]", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_without_scripts_tables_and_pictures_remain(browser: Browser, report: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(report.as_uri())
    assert page.locator("noscript").first.is_visible()
    assert "needs JavaScript" in page.inner_text("#viewer")
    assert not page.locator("#viewer-controls").is_visible()
    assert page.locator("table").first.is_visible()
    assert page.locator("figure img").count() == 3 + 3
    page.close()


def test_the_background_of_masks_is_clear(watched: Watched) -> None:
    """Without the image nothing is drawn in a corner, whatever the highest label value is."""
    page = watched.page
    page.click("#viewer-open")
    watched.shown("missed")
    before = watched.picture()
    page.locator('[data-layer="image"]').click()
    picture = watched.changes(before)
    assert (picture.max(axis=-1) == 0).mean() > 0.4


def test_photographs_look_as_they_are(browser: Browser, tmp_path: Path) -> None:
    """Bright at the upper left, and an organ at the lower right: in the viewer and in the picture below it."""
    pixels = np.full((60, 90, 3), 20, np.uint8)
    pixels[:30, :45] = 250
    organ = np.zeros((60, 90), np.uint8)
    organ[[0, -1]] = 1  # else the page would crop the picture
    organ[35:55, 50:85] = 2
    for folder, part in (("imagesTs", pixels), ("labelsTs", organ), ("pred", organ)):
        (tmp_path / folder).mkdir()
        write_picture(part, tmp_path / folder / "eye.png")
    write_evaluation(evaluate(tmp_path / "pred", tmp_path / "labelsTs"), tmp_path / "scores")
    report = write_report(tmp_path / "scores", tmp_path / "report.html", show_names=True)
    page = browser.new_page(viewport={"width": 800, "height": 600})
    watched = Watched(page)
    page.goto(report.as_uri())
    page.click("#viewer-open")
    watched.shown("eye")
    page.wait_for_timeout(500)
    png = page.locator("figure.case img").first.screenshot()
    drawn = (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)
    for picture in (watched.picture(), drawn[: len(drawn) // 2]):
        found = picture.astype(int)
        white = found.min(axis=-1) > 150
        orange = found[..., 0] - found[..., 2] > 60
        for mask, side in ((white, -1), (orange[len(orange) // 2 :], 1)):
            columns = np.nonzero(mask)[1] - (mask.shape[1] - 1) / 2
            assert len(columns) > 500
            assert np.sign(np.median(columns)) == side
        rows = np.nonzero(white)[0]
        assert np.median(rows) < len(white) / 2
    text = page.inner_text("body")
    assert ("Pictures are shown as they are." in text, "atient's" in text) == (True, False)
    assert watched.complaints == []
    page.close()
