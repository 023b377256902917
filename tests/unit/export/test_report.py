import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.core import Grid, Image, LabelMap, LabelTable, VolsegError
from pipeline.data.volumes import write_image, write_label_map
from pipeline.evaluate import Evaluation, evaluate, write_evaluation
from pipeline.export import write_report

TABLE = LabelTable({1: "liver <left>", 2: "spleen"})
GRID = Grid.from_spacing((20, 16, 10), (2.0, 2.0, 4.0))
_VOID = {"meta", "img", "source", "link", "br", "hr", "input"}


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("pipeline.export.overlay._DPI", 30)
    monkeypatch.setattr("pipeline.export.plots._DPI", 30)


class Page(HTMLParser):
    """Checks that tags are balanced and collects what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def label_map(shift=0, spleen=True):
    array = np.zeros(GRID.shape, dtype=np.uint8)
    array[3 + shift : 9 + shift, 3:12, 2:7] = 1
    if spleen:
        array[13:17, 4:9, 3:6] = 2
    return LabelMap(array, GRID)


@pytest.fixture
def folder(tmp_path):
    """Five cases: perfect, shifted, spleen missed, no prediction, unusable prediction."""
    data, prediction = tmp_path / "data", tmp_path / "pred"
    image = Image(np.random.default_rng(0).normal(0, 300, (1, *GRID.shape)).astype(np.float32), GRID)
    for case in "abcde":
        write_label_map(label_map(), data / "labelsTs" / f"{case}.nii.gz")
        write_image(image, data / "imagesTs" / f"{case}_0000.nii.gz")
    write_label_map(label_map(), prediction / "a.nii.gz")
    write_label_map(label_map(shift=2), prediction / "b.nii.gz")
    write_label_map(label_map(spleen=False), prediction / "c.nii.gz")
    (prediction / "e.nii.gz").write_bytes(b"?")
    (prediction / "labels.json").write_text(json.dumps(TABLE.to_json()))
    write_evaluation(evaluate(prediction, data), tmp_path / "eval")
    return tmp_path


def test_report_is_one_offline_page(folder):
    out = write_report(folder / "eval", folder / "report.html", title="A & B", version="1.2.3", date="2025-01-02")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|<script|url\(", text)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 2 + 3  # two plots, three cases with a usable prediction
    for attrs in pictures:
        assert attrs["alt"]
        assert base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"))[:4] == b"\x89PNG"
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags) == 2
    assert "A & B" in page.text
    assert "liver <left>" in page.text
    assert "<left>" not in text.replace("&lt;left&gt;", "")
    assert "volseg 1.2.3, 2025-01-02" in page.text
    assert "Failed cases (1)" in page.text
    assert "missed: spleen" in page.text
    assert "no prediction" in page.text
    assert "-160 to 240 HU" in page.text


def test_headline_numbers(folder):
    """Liver: 1, 2/3, 1, 0, 0; spleen: 1, 1, 0, 0, 0."""
    page = Page(write_report(folder / "eval", folder / "r.html", overlays=0).read_text(encoding="utf-8"))
    assert f"{((1 + 2 / 3 + 1) / 5 + 2 / 5) / 2:.3f}" in page.text
    assert "Worst and best" not in page.text


def test_worst_cases_come_first_and_none_twice(folder):
    page = Page(write_report(folder / "eval", folder / "r.html", overlays=1).read_text(encoding="utf-8"))
    assert re.findall(r"(worst|best)\s*([a-e])\s*mean Dice", page.text) == [("worst", "c"), ("best", "a")]


def test_unreadable_images_and_label_maps_are_notes(folder):
    (folder / "data" / "imagesTs" / "a_0000.nii.gz").write_bytes(b"?")
    (folder / "pred" / "b.nii.gz").unlink()
    page = Page(write_report(folder / "eval", folder / "r.html", curves=folder / "no.png").read_text(encoding="utf-8"))
    assert "Overlay of a without its image" in page.text
    assert "Overlay of b left out" in page.text
    assert "training curves left out" in page.text
    assert "Label maps only: no image at hand." in page.text


def test_curves_are_inlined(folder):
    (folder / "curves.png").write_bytes(b"\x89PNG curves")
    text = write_report(folder / "eval", folder / "r.html", overlays=0, curves=[folder / "curves.png"]).read_text()
    assert base64.b64encode(b"\x89PNG curves").decode() in text


def test_empty_evaluation_says_so(tmp_path):
    write_evaluation(Evaluation(TABLE, (), (), failures=(("a", "case a: broken."),)), tmp_path / "eval")
    page = Page(write_report(tmp_path / "eval", tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Nothing was scored" in page.text
    assert "broken." in page.text


def test_no_evaluation_is_one_sentence(tmp_path):
    with pytest.raises(VolsegError, match=r"summary\.json: expected a JSON file, got nothing there"):
        write_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
