"""A node between a real archive and its users: in by C-STORE and DICOMweb, SEG and SR back, whatever is killed."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from dicom_readers import valid
from effort import tries
from orthanc import Orthanc, require_orthanc
from PIL import Image as Picture
from pydicom.dataset import Dataset
from running_node import RunningNode, store, store_until_taken, study, tiny_model

from pipeline.core.grid import Grid
from pipeline.core.volume import Image
from pipeline.data.volumes import read_image, read_label_map
from pipeline.model.zoo import zoo_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A tiny network in the long form; else workers without one, which are ready at once."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny") if tries(0, 1) else None


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    require_orthanc()
    found = Orthanc(tmp_path / "orthanc").start()
    yield found
    found.stop()


def small(number: int) -> Image:
    """An image that differs from the others."""
    grid = Grid.from_spacing((20, 18, 6), (1.5, 1.5, 3.0))
    return Image(np.random.default_rng(number).normal(100, 50, (1, *grid.shape)).astype(np.float32), grid)


def results(orthanc: Orthanc, uid: str, folder: Path) -> dict[str, Path]:
    """Modality → object of a study, fetched by DICOMweb."""
    folder.mkdir(exist_ok=True)
    client, found = orthanc.client(), {}
    for series in client.search_for_series(uid):
        modality = series["00080060"]["Value"][0]
        if modality in ("SEG", "SR"):
            objects: list[Dataset] = client.retrieve_series(uid, series["0020000E"]["Value"][0])
            assert len(objects) == 1
            found[modality] = folder / f"{modality}.dcm"
            objects[0].save_as(found[modality], enforce_file_format=True)
    return found


def test_a_study_comes_back_segmented_and_measured(orthanc: Orthanc, tmp_path: Path) -> None:
    image, reference = zoo_model("hippocampus").example
    given = study(read_image(image), 1, "MR")
    node = RunningNode("hippocampus", tmp_path / "node", [f"archive.to={orthanc.peer}"]).start()
    assert set(store(given, orthanc.dicom_port, called="ORTHANC")) == {0}
    assert set(store(given, node.dicom_port)) == {0}
    node.until_done(1)
    uid = given[0].StudyInstanceUID
    objects = results(orthanc, uid, tmp_path / "objects")
    assert sorted(objects) == ["SEG", "SR"]
    for path in objects.values():
        valid(path)
        assert pydicom.dcmread(path).PatientID == given[0].PatientID
    found, truth = read_label_map(objects["SEG"]), read_label_map(reference)
    turned = truth.reoriented(found.grid.orientation)
    # Of the slices only those on which something was found.
    first = (np.linalg.inv(turned.grid.affine) @ found.grid.affine)[:3, 3]
    assert np.allclose(first, np.rint(first), atol=1e-3)
    part = tuple(slice(round(a), round(a) + n) for a, n in zip(first, found.grid.shape, strict=True))
    expected = turned.array[part]
    for value in (1, 2):
        both = ((expected == value) & (found.array == value)).sum()
        assert 2 * both / ((expected == value).sum() + (found.array == value).sum()) > 0.8
    # The same image as a file gives the same mask.
    answer = requests.post(f"{node.url}/v1/segment", data=image.read_bytes(), timeout=300)
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    mask = read_label_map(tmp_path / "mask.nii.gz")
    assert mask.grid.matches(truth.grid, 1e-5)
    assert np.array_equal(mask.reoriented(found.grid.orientation).array[part], found.array)
    answer = requests.post(f"{node.url}/v1/segment", params={"mask": "seg"}, data=image.read_bytes(), timeout=300)
    assert (answer.status_code, "expected a DICOM series" in answer.text) == (422, True)
    with Picture.open(node.folder / "results" / "000001.jpg") as thumbnail:
        assert thumbnail.width == 750
    assert node.stop() == 143
    assert [path.name for path in (node.folder / "results").iterdir()] == ["000001.jpg"]


def test_a_study_of_the_archive_is_found_fetched_and_stored(orthanc: Orthanc, tmp_path: Path) -> None:
    settings = [f"archive.{key}" for key in (f"to={orthanc.web}", f"poll={orthanc.web}", "modality=CT", "every_s=0.5")]
    given, old = study(small(1), 1), study(small(2), 2, StudyDate="20200101")
    for slices in (given, old):
        assert set(store(slices, orthanc.dicom_port, called="ORTHANC")) == {0}
    node = RunningNode(None, tmp_path / "node", [*settings, "listen.dicom_port=null"]).start()
    node.until_done(1)
    uid = str(given[0].StudyInstanceUID)
    objects = results(orthanc, uid, tmp_path / "objects")
    assert sorted(objects) == ["SEG", "SR"]
    for path in objects.values():
        valid(path)
    # Its own results change the study, which is asked for again and again: nothing more is made of it.
    time.sleep(4)
    assert node.metrics()["volseg_studies_done_total"] == 1
    assert orthanc.modalities()[uid] == sorted(["CT"] * len(given) + ["SEG", "SR"])
    assert orthanc.modalities()[str(old[0].StudyInstanceUID)] == ["CT"] * len(old)
    # Nor if it comes a second time, by another way.
    node.stop()
    node.settings = settings
    node.start()
    assert set(store(given, node.dicom_port)) == {0}
    time.sleep(3)
    assert node.metrics()["volseg_duplicate_files_total"] == len(given)
    assert node.metrics()["volseg_studies_done_total"] == 1
    node.stop()


@pytest.mark.long
def test_a_node_that_is_killed_loses_no_study_and_makes_none_twice(
    model: Path | None, orthanc: Orthanc, tmp_path: Path
) -> None:
    kills, count = tries(2, 10), tries(4, 20)
    node = RunningNode(model, tmp_path / "node", [f"archive.to={orthanc.peer}"]).start(ready=False)
    given = [study(small(number), number) for number in range(count)]
    generator, sent = random.Random(kills), threading.Event()

    def send() -> None:
        for slices in given:
            store_until_taken(slices, lambda: node.dicom_port)
        sent.set()

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(kills):
        time.sleep(generator.uniform(0.2, tries(3, 15)))
        node.kill()
        node.start(ready=False)
    thread.join(300)
    assert sent.is_set()
    node.until_done(count, 60 * count)
    expected = {str(one[0].StudyInstanceUID): ["SEG", "SR"] for one in given}
    assert orthanc.modalities() == expected
    assert node.metrics()["volseg_studies_done_total"] == count
    assert set(Counter(entry["study"] for entry in node.events("delivered")).values()) == {1}
    with sqlite3.connect(node.folder / "queue.sqlite") as base:
        assert dict(base.execute("SELECT state, count(*) FROM studies GROUP BY state")) == {"done": count}
    node.stop()
    assert list((node.folder / "studies").iterdir()) == []


@pytest.mark.long
def test_a_burst_of_studies_is_worked_off_in_the_same_memory(
    model: Path | None, orthanc: Orthanc, tmp_path: Path
) -> None:
    count = tries(20, 200)
    node = RunningNode(model, tmp_path / "node", [f"archive.to={orthanc.peer}"]).start()
    given = [study(small(number), number) for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        for states in pool.map(lambda slices: store(slices, node.dicom_port), given):
            assert set(states) == {0}
    node.until_done(count // 4, 60 * count)
    before = node.memory_mb()
    node.until_done(count, 60 * count)
    after = node.memory_mb()
    assert orthanc.modalities() == {str(one[0].StudyInstanceUID): ["SEG", "SR"] for one in given}
    assert after < before * 1.1 + 30, (before, after)
    node.stop()


def test_results_wait_for_an_archive_that_is_away(orthanc: Orthanc, tmp_path: Path) -> None:
    node = RunningNode(None, tmp_path / "node", [f"archive.to={orthanc.peer}"]).start()
    given = [study(small(number), number) for number in range(3)]
    store_until_taken(given[0], lambda: node.dicom_port)
    node.until_done(1)
    orthanc.stop()
    for slices in given[1:]:
        store_until_taken(slices, lambda: node.dicom_port)
    node.until(lambda: node.metrics()['volseg_studies{state="sending"}'] == 2)
    node.until(lambda: node.metrics()["volseg_retries_total"] >= 2)
    assert "the archive cannot be reached" in requests.get(node.url, timeout=30).text
    orthanc.start()
    node.until_done(3)
    assert orthanc.modalities() == {str(one[0].StudyInstanceUID): ["SEG", "SR"] for one in given}
    node.stop()
