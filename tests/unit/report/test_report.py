import base64
import gzip
import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest

from pipeline.core.errors import VolsegError
from pipeline.core.files import text_hash
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.volumes import read_label_map, write_image, write_label_map
from pipeline.evaluate.metrics import Measures, Row
from pipeline.evaluate.results import Evaluation, write_evaluation
from pipeline.evaluate.scoring import evaluate
from pipeline.report import overlay, plots
from pipeline.report.report import case_status, worst_rows, write_report

TABLE = LabelTable({1: "liver <left>", 2: "spleen"})
GRID = Grid.from_spacing((20, 16, 10), (2.0, 2.0, 4.0))
_VOID = {"meta", "img", "source", "link", "br", "hr", "input"}


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(overlay, "_DPI", 30)
    monkeypatch.setattr(plots, "_DPI", 30)


class Page(HTMLParser):
    """Checks that tags are balanced and collects what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.scripts = [], [], "", {}
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
        if "script" in self.open:
            attrs = next(attrs for tag, attrs in reversed(self.tags) if tag == "script")
            self.scripts[attrs.get("id", "")] = data
        elif "style" not in self.open:
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


def report(folder, **options):
    options = {"show_names": True, "overlays": 0, "viewer_cases": 0} | options
    return write_report(folder / "eval", folder / "report.html", **options).read_text(encoding="utf-8")


def alias(case):
    return text_hash("case", case)[:8]


def volume(page, index, layer):
    data = gzip.decompress(base64.b64decode(page.scripts[f"volume-{index}-{layer}"]))
    return nib.Nifti1Image.from_bytes(data)


def test_report_is_one_offline_page(folder):
    text = report(folder, overlays=3, title="A & B", version="1.2.3", date="2025-01-02")
    page = Page(text)
    assert not re.search(r"https?://|<script|url\(", text)
    assert "default-src 'none'" in text
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 3 + 3  # three plots, three cases with a usable prediction
    for attrs in pictures:
        assert attrs["alt"]
        assert base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"))[:4] == b"\x89PNG"
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags) == 5
    assert "A & B" in page.text
    assert "liver <left>" in page.text
    assert "<left>" not in text.replace("&lt;left&gt;", "")
    assert "volseg 1.2.3, 2025-01-02" in page.text
    assert "Failed cases (1)" in page.text
    assert "missed: spleen" in page.text
    assert "no prediction" in page.text
    assert "-160 to 240 HU" in page.text


def test_headline_numbers_and_counts(folder):
    """Liver: 1, 2/3, 1, 0, 0; spleen: 1, 1, 0, 0, 0; one case of five has no file, one a broken one."""
    text = report(folder)
    page = Page(text)
    assert f"{((1 + 2 / 3 + 1) / 5 + 2 / 5) / 2:.3f}" in page.text
    rows = re.findall(r'<th scope="row" class="words">([^<]+)</th>((?:<td[^>]*>[0-9]+</td>){6})</tr>', text)
    counts = {name: [int(count) for count in re.findall(r">([0-9]+)<", cells)] for name, cells in rows}
    assert counts == {
        "liver &lt;left&gt;": [3, 0, 0, 1, 1, 0],
        "spleen": [2, 1, 0, 1, 1, 0],
        "All organs": [5, 1, 0, 2, 2, 0],
    }
    assert "Worst and best" not in page.text
    assert "Viewer" not in page.text


def test_worst_cases_come_first_and_none_twice(folder):
    page = Page(report(folder, overlays=1))
    assert re.findall(r"(worst|best)\s*([a-e])\s*mean Dice", page.text) == [("worst", "c"), ("best", "a")]


def test_distances_groups_and_every_metric_have_intervals(folder):
    found = evaluate(folder / "pred", folder / "data", measures=Measures())
    extra = {"subgroups": {"site": {"A": {"n_cases": 2, "dice": {"mean": 0.5, "interval_95": [0.25, 0.75]}}}}}
    summary = write_evaluation(found, folder / "eval", extra=extra)
    page = Page(report(folder))
    low, high = summary["organs"]["spleen"]["hd95_mm"]["interval_95"]
    assert f"{low:.2f} – {high:.2f}" in page.text
    assert "0.250 – 0.750" in page.text
    assert "∞" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3 + 2  # HD95 and NSD have box plots too


def test_the_viewer_holds_the_volumes_that_were_scored(folder):
    """Case c, the worst: GRID of 20 x 16 x 10 voxels, all within 15 mm of its labels but along i and j."""
    page = Page(report(folder, viewer_cases=2, show_names=False))
    facts = json.loads(page.scripts["viewer-facts"])
    assert [case["name"] for case in facts["cases"]] == [alias("c"), alias("a")]
    assert [organ["name"] for organ in facts["organs"]] == ["liver <left>", "spleen"]
    assert [window["name"] for window in facts["cases"][0]["windows"]] == ["Soft tissue", "Lung", "Bone"]
    reference, prediction, errors = (volume(page, 0, name) for name in ("reference", "prediction", "errors"))
    whole = read_label_map(folder / "data" / "labelsTs" / "c.nii.gz")
    assert [int((np.asarray(reference.dataobj) == n).sum()) for n in (1, 2)] == [6 * 9 * 5, 4 * 5 * 3]
    np.testing.assert_allclose(reference.affine[:3, :3], whole.grid.affine[:3, :3])
    assert np.unique(prediction.dataobj).tolist() == [0, 1]
    assert (np.asarray(errors.dataobj) == 1).sum() == 4 * 5 * 3
    i, j, k = facts["cases"][0]["at"]
    assert np.asarray(errors.dataobj)[i, j, k] == 1
    image = volume(page, 0, "image")
    assert image.shape == reference.shape
    assert np.abs(np.asarray(image.dataobj) % 4).max() == 0
    assert "BSD 2-Clause License" in page.text


def test_the_viewer_needs_a_script_and_says_so_without(folder):
    text = report(folder, viewer_cases=2)
    assert "script-src 'unsafe-inline'" in text
    assert re.search(r"<noscript><p[^>]*>The viewer needs JavaScript", text)
    assert not re.search(r"<(?:script|img|link|source|iframe)[^>]*(?:src|href|srcset)=\"(?!data:)", text)


def test_a_small_viewer_shows_fewer_voxels_and_says_so(folder):
    page = Page(report(folder, viewer_cases=1, viewer_mb=0.005))
    facts = json.loads(page.scripts["viewer-facts"])
    assert "blocks of" in facts["cases"][0]["notes"]
    assert sum(len(page.scripts[f"volume-0-{name}"]) for name in ("image", "reference", "prediction", "errors")) <= 5000
    none = Page(report(folder, viewer_cases=1, viewer_mb=0.0001))
    assert "left out of the viewer, since --viewer-mb leaves it no room" in none.text
    assert none.scripts == {}


def test_a_case_whose_image_is_gone_is_in_the_tables_alone(folder):
    (folder / "data" / "imagesTs" / "c_0000.nii.gz").unlink()
    page = Page(report(folder, viewer_cases=9))
    assert [case["name"] for case in json.loads(page.scripts["viewer-facts"])["cases"]] == ["b", "a"]
    assert "c: left out of the viewer" in page.text
    assert page.text.count("missed: spleen") == 1


def test_without_any_image_the_viewer_shows_label_maps(folder):
    for path in (folder / "data" / "imagesTs").iterdir():
        path.unlink()
    write_evaluation(evaluate(folder / "pred", folder / "data"), folder / "eval")
    page = Page(report(folder, viewer_cases=9))
    cases = json.loads(page.scripts["viewer-facts"])["cases"]
    assert [case["windows"] for case in cases] == [[], [], []]
    assert cases[0]["notes"].startswith("No image is known")


def test_predictions_that_changed_are_not_shown_as_those_that_were_scored(folder):
    write_label_map(label_map(shift=3), folder / "pred" / "b.nii.gz")
    page = Page(report(folder, viewer_cases=9))
    assert [case["name"] for case in json.loads(page.scripts["viewer-facts"])["cases"]] == ["c", "a"]
    assert (
        "label maps: expected those that were evaluated, got liver <left> with Dice 0.500 instead of 0.667" in page.text
    )
    assert "Run volseg evaluate again" in page.text


def test_unreadable_images_and_label_maps_are_notes(folder):
    (folder / "data" / "imagesTs" / "a_0000.nii.gz").write_bytes(b"?")
    (folder / "pred" / "b.nii.gz").unlink()
    said = []
    page = Page(report(folder, overlays=3, curves=folder / "no.png", log=said.append))
    (note,) = said
    assert note.startswith("note  2 notes in the report on cases that it does not show in full, e.g. ")
    assert "a: left out of the viewer, and of the image in its picture" in page.text
    assert "b: left out of the pictures" in page.text
    assert "Training curves were left out" in page.text
    assert "Label maps only: no image at hand." in page.text


def test_curves_are_inlined(folder):
    (folder / "curves.png").write_bytes(b"\x89PNG curves")
    assert base64.b64encode(b"\x89PNG curves").decode() in report(folder, curves=[folder / "curves.png"])


def test_empty_evaluation_says_so(tmp_path):
    write_evaluation(Evaluation(TABLE, (), (), failures=(("a", "case a: broken."),)), tmp_path / "eval")
    page = Page(write_report(tmp_path / "eval", tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Nothing was scored" in page.text
    assert "broken." in page.text


def test_no_evaluation_is_one_sentence(tmp_path):
    with pytest.raises(VolsegError, match=r"summary\.json: expected a JSON file, got nothing there"):
        write_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_folder_in_the_way_is_one_sentence(folder):
    (folder / "report.html").mkdir()
    with pytest.raises(VolsegError, match=r"report\.html"):
        report(folder)


PATIENTS = ("DOE_Jane_19700101", "Mueller Hans", "MRN-4711-0815")
SECRETS = ("DOE_", "Jane", "19700101", "Mueller", "Hans", "4711", "0815", "Radiology", "Stationsarzt")


def named_file(path, array, secret):
    """A NIfTI file with a name in every field of its header that can hold one."""
    image = nib.Nifti1Image(array, GRID.affine)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = secret[:16]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@pytest.fixture
def patients(tmp_path):
    """The first is scored, the second has a broken prediction, the third none; somebody else's mask lies among them."""
    home = tmp_path / "Radiology Stationsarzt"
    rng = np.random.default_rng(0)
    for patient in PATIENTS:
        named_file(home / "data" / "labelsTs" / f"{patient}.nii.gz", label_map().array, patient)
        noise = rng.normal(0, 300, GRID.shape).astype(np.float32)
        named_file(home / "data" / "imagesTs" / f"{patient}_0000.nii.gz", noise, patient)
    for patient in (PATIENTS[0], f"{PATIENTS[1]} 2"):
        named_file(home / "pred" / f"{patient}.nii.gz", label_map(shift=1).array, patient)
    (home / "pred" / f"{PATIENTS[1]}.nii.gz").write_bytes(b"?")
    (home / "pred" / "labels.json").write_text(json.dumps(TABLE.to_json()))
    write_evaluation(evaluate(home / "pred", home / "data"), tmp_path / "eval")
    return tmp_path


def everything(text):
    """The page with all that is packed in it unpacked."""
    packed = [gzip.decompress(base64.b64decode(data)) for name, data in Page(text).scripts.items() if "volume" in name]
    pictures = [base64.b64decode(each) for each in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    plain = re.sub(r"[A-Za-z0-9+/=]{1000,}", "", text).encode()
    return b"\n".join([plain, *packed, *pictures])


def test_a_case_whose_reference_could_not_be_made_is_not_named(patients):
    path = patients / "eval" / "summary.json"
    summary = json.loads(path.read_text())
    failure = {"case": "DOE_JANE", "message": "case DOE_JANE: organ masks differ in shape."}
    path.write_text(json.dumps(summary | {"failures": [*summary["failures"], failure]}))
    page = report(patients, viewer_cases=0, show_names=False)
    assert "jane" not in page.lower()
    assert f"<strong>{alias('DOE_JANE')}</strong>: organ masks differ in shape." in page


def test_no_patient_is_named_unless_asked(patients):
    page = everything(report(patients, overlays=3, viewer_cases=9, show_names=False))
    assert [secret for secret in SECRETS if secret.lower().encode() in page.lower()] == []
    for patient in PATIENTS:
        assert alias(patient).encode() in page
    assert b"[path]: " in page
    assert b"--show-names shows" in page
    shown = everything(report(patients, overlays=3, viewer_cases=9))
    assert [patient for patient in PATIENTS if patient.encode() not in shown] == []
    assert b"Radiology Stationsarzt" in shown


NAN, INF = float("nan"), float("inf")


def row(case, name, status, dice, hd95=NAN):
    more = {} if hd95 != hd95 else {"hd95_mm": hd95, "diagonal_mm": 100.0}
    return Row(case, (1,), name, status, dice, dice, 1.0, 1.0, more)


def test_the_worst_rows_come_first_and_those_without_a_score_not_at_all():
    rows = [
        row("a", "liver", "scored", 0.5, 3.0),
        row("a", "spleen", "true_negative", NAN),
        row("b", "liver", "scored", 0.5, 7.0),
        row("b", "spleen", "missed", 0.0, INF),
    ]
    assert [(each.case, each.name) for each in worst_rows(rows)] == [("b", "spleen"), ("b", "liver"), ("a", "liver")]


def test_what_went_wrong_in_a_case():
    assert case_status([row("a", "liver", "scored", 0.9)]) == ""
    assert case_status([]) == "failed"
    assert case_status([row("a", "liver", "failed", NAN)]) == "failed"
    assert case_status([row("a", "liver", "missing_prediction", 0.0)]) == "no prediction"
    lost = [row("a", name, "missed", 0.0) for name in "pqrst"]
    assert case_status([*lost, row("a", "u", "hallucinated", 0.0)]) == "missed: p, q, r, s …; hallucinated: u"
