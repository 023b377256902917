"""The doors of a node: who and what is let in over DICOM and HTTP, what the page shows, and that no name gets out."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import socket
import ssl
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from browser import open_browser
from effort import tries
from generated_dicom import SECRET
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from playwright.sync_api import Browser, Route
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from running_node import RunningNode, store, store_until_taken, study
from toy_dicom import require_no_secret

from pipeline.core.grid import Grid
from pipeline.core.volume import Image
from pipeline.data.volumes import read_label_map, write_image

GRID = Grid.from_spacing((24, 20, 8), (1.5, 1.5, 3.0))


def scan(number: int = 0) -> Image:
    """A bright ball to the patient's left, in front."""
    i, j, k = np.ogrid[:24, :20, :8]
    array = np.where(((i - 6) / 4) ** 2 + ((j - 14) / 4) ** 2 + ((k - 4) / 3) ** 2 <= 1, 400.0 + number, 40.0)
    return Image(array[None].astype(np.float32), GRID)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that sends nothing anywhere, with small limits."""
    limits = ["limits.upload_mb=1", "limits.image_mb=2", "limits.study_mb=1", "limits.study_files=40"]
    found = RunningNode(
        None,
        tmp_path_factory.mktemp("doors") / "node",
        [*limits, "limits.instance_mb=1", "viewer=http://viewer.example/?study={study}"],
    ).start()
    yield found
    found.stop()
    require_no_secret(found.said.decode())


def upload(node: RunningNode, content: bytes, **parameters: str) -> requests.Response:
    return requests.post(f"{node.url}/v1/segment", params=parameters, data=content, timeout=60)


def test_a_file_goes_in_and_its_mask_comes_out(node: RunningNode, tmp_path: Path) -> None:
    image = scan()
    write_image(image, tmp_path / "scan.nii.gz")
    answer = upload(node, (tmp_path / "scan.nii.gz").read_bytes())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    found = read_label_map(tmp_path / "mask.nii.gz")
    assert found.grid.matches(image.grid, 1e-5)
    assert np.array_equal(found.array, image.array[0] > image.array.mean())
    # Nothing of it stays.
    assert [path for path in (node.folder / "studies").iterdir() if path.name in answer.text] == []
    assert node.metrics()['volseg_studies{state="running"}'] == 0


@pytest.mark.parametrize(
    ("content", "parameters", "status", "detail"),
    [
        (b"", {}, 422, "body: expected a file, got nothing"),
        (b"no image", {}, 422, "expected"),
        (b"x" * (1 << 20 | 1), {}, 413, "expected at most 1 MB, got more"),
        (b"x", {"file": "exe"}, 422, "file: Input should be"),
        (b"x", {"mask": "../../x"}, 422, "mask: Input should be"),
    ],
)
def test_what_cannot_be_segmented_is_refused(
    node: RunningNode, content: bytes, parameters: dict[str, str], status: int, detail: str
) -> None:
    answer = upload(node, content, **parameters)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


def test_callers_of_other_sites_and_names_are_refused(node: RunningNode) -> None:
    assert requests.get(node.url, headers={"Host": "evil.example"}, timeout=30).status_code == 421
    answer = requests.post(f"{node.url}/v1/segment", data=b"x", headers={"Origin": "http://evil.example"}, timeout=30)
    assert answer.status_code == 403
    assert requests.post(f"{node.url}/v1/studies/999/retry", timeout=30).status_code == 404
    headers = requests.get(node.url, timeout=30).headers
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


def bodies() -> st.SearchStrategy[bytes]:
    """Noise, and files that are cut, changed, or promise more than they hold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, one in enumerate(study(scan(), 90)):
            content = io.BytesIO()
            one.save_as(content, enforce_file_format=True)
            archive.writestr(f"{number}.dcm", content.getvalue())
    header = bytearray(348)  # NIfTI-1: so many voxels as no memory holds
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    huge = gzip.compress(bytes(header) + b"\0" * 4)
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 90000 90000 90000\nencoding: raw\n\n12"
    seeds = st.sampled_from([buffer.getvalue(), huge, bytes(header), nrrd, gzip.compress(b"\0" * 500_000)])
    changed = st.tuples(seeds, st.integers(0, 2000), st.binary(max_size=8)).map(
        lambda part: part[0][: part[1]] + part[2] + part[0][part[1] + len(part[2]) :]
    )
    cut = st.tuples(seeds, st.integers(0, 4000)).map(lambda part: part[0][: part[1]])
    return st.binary(max_size=400) | seeds | changed | cut


@pytest.mark.long
def test_no_body_crashes_the_node_keeps_it_busy_or_fills_its_memory(node: RunningNode) -> None:
    most = node.memory_mb() + 500

    @settings(max_examples=tries(40, 5000), deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        body=bodies(),
        file=st.sampled_from(["nii.gz", "nii", "nrrd", "mha", "zip", "dcm"]),
        mask=st.sampled_from(["nii.gz", "nrrd"]),
    )
    def try_one(body: bytes, file: str, mask: str) -> None:
        answer = upload(node, body, file=file, mask=mask)
        assert answer.status_code in (200, 422), answer.text

    try_one()
    assert node.memory_mb() < most
    assert requests.get(f"{node.url}/health", timeout=30).status_code == 200
    assert node.metrics()['volseg_studies{state="waiting"}'] == 0
    assert list((node.folder / "results").iterdir()) == []


@pytest.mark.long
def test_no_request_crashes_the_node(node: RunningNode) -> None:
    @settings(max_examples=tries(40, 2000), deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        method=st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"X"]),
        path=st.sampled_from([b"/", b"/v1/segment", b"/v1/studies/1/retry", b"/../x"]) | st.binary(max_size=60),
        head=st.lists(st.binary(max_size=60), max_size=4),
        body=st.binary(max_size=100),
    )
    def try_one(method: bytes, path: bytes, head: list[bytes], body: bytes) -> None:
        with socket.create_connection(("127.0.0.1", node.http_port), timeout=30) as caller:
            lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost", b"Connection: close", *head]
            caller.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            caller.shutdown(socket.SHUT_WR)
            answer = caller.recv(65536)
        assert not answer.startswith(b"HTTP/1.1 500"), answer

    try_one()
    assert requests.get(f"{node.url}/health", timeout=30).status_code == 200


def test_a_message_that_is_too_large_is_cut_off(node: RunningNode) -> None:
    with socket.create_connection(("127.0.0.1", node.dicom_port), timeout=30) as caller:
        caller.sendall(struct.pack(">BBL", 1, 0, 1 << 31) + b"\0" * 1000)
        assert caller.recv(100) == b""
    # A large image, in small pieces.
    large = study(Image(np.zeros((1, 800, 800, 1), np.float32), Grid.from_spacing((800, 800, 1), (1, 1, 1))), 40)
    assert store(large, node.dicom_port) == [-1]
    assert echo(node) == 0


def echo(node: RunningNode, title: str = "SENDER", **options: object) -> int:
    """Status of C-ECHO; -1 without an association."""
    ae = AE(ae_title=title)
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", node.dicom_port, **options)  # type: ignore[arg-type]
    if not association.is_established:
        return -1
    status = association.send_c_echo()
    association.release()
    return int(status.Status)


def test_a_study_that_is_too_large_is_set_aside_with_its_reason(node: RunningNode) -> None:
    many = study(Image(np.zeros((1, 8, 8, 45), np.float32), Grid.from_spacing((8, 8, 45), (1, 1, 1))), 41)
    states = store(many, node.dicom_port)
    assert states == [0] * 40 + [0xA700] * 5
    node.until(lambda: node.metrics()['volseg_studies{state="failed"}'] >= 1)
    text = requests.get(node.url, timeout=30).text
    assert "study: expected a study of at most 1 MB and 40 files, got more." in text


def test_what_is_no_image_or_no_data_set_is_not_kept(node: RunningNode) -> None:
    before = node.metrics()["volseg_received_files_total"]
    report = study(scan(), 42)[0]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.EncapsulatedPDFStorage
    assert store([report], node.dicom_port) == [0]
    for uid in ("", SECRET):
        assert store(study(scan(), 43, StudyInstanceUID=uid)[:1], node.dicom_port) == [0xC000]
    assert node.metrics()["volseg_received_files_total"] == before


def test_the_page_shows_results_as_radiologists_see_them_and_no_name(
    node: RunningNode, browser: Browser, tmp_path: Path
) -> None:
    slices = study(scan(1), 50)
    store_until_taken(slices, lambda: node.dicom_port)
    gap = study(scan(2), 51)
    store_until_taken([*gap[:3], *gap[5:]], lambda: node.dicom_port)
    node.until(lambda: node.metrics()["volseg_studies_failed_total"] >= 1)
    node.until_done(1)
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(180_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.route(f"{node.url}/", without_refresh)
    page.goto(node.url)
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert page.inner_text("h1") == "volseg node"
    assert "mL" in page.inner_text("#results")
    assert "slices" in page.inner_text("#failed")
    link = page.get_attribute("#results a", "href")
    assert link == f"http://viewer.example/?study={slices[0].StudyInstanceUID}"
    png = page.locator("#results img").first.screenshot()
    picture = (imread(io.BytesIO(png))[..., :3] * 255).astype(int)
    coloured = np.nonzero((picture.max(axis=-1) - picture.min(axis=-1))[: len(picture) * 2 // 3] > 40)
    first = coloured[1][coloured[1] < picture.shape[1] / 3]  # of the axial plane, the first of three
    assert len(first) > 50
    # RAS: a small index is the patient's left, which is on the right of the plane.
    assert np.median(first) > picture.shape[1] / 6
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    page.set_viewport_size({"width": 380, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.click("#failed button")
    node.until(lambda: node.metrics()["volseg_studies_failed_total"] >= 2)
    assert complaints == []
    texts = [page.content(), requests.get(f"{node.url}/metrics", timeout=30).text]
    page.close()
    require_no_secret(*texts)
    files = [path for path in node.folder.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert {"audit.jsonl", "queue.sqlite"} <= {path.name for path in files}
    for path in files:
        require_no_secret(path.name, path.read_bytes().decode("latin-1"))
    assert str(slices[0].StudyInstanceUID) not in (node.folder / "audit.jsonl").read_text()


def without_refresh(route: Route) -> None:
    """The page, which is not read anew in the middle of a picture."""
    answer = route.fetch()
    mark = '<meta http-equiv="refresh" content="10">'
    assert mark in answer.text()
    route.fulfill(response=answer, body=answer.text().replace(mark, ""))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


def test_only_callers_of_the_list_with_a_certificate_and_a_word_get_in(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    for name in ("node", "caller", "stranger"):
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        words += ["-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run([*words, *files], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "token").write_text("sesame\n")
    paths = {"certificate": "node.pem", "key": "node.key", "authority": "caller.pem", "token_file": "token"}
    tls = [f"listen.{key}={tmp_path / file}" for key, file in paths.items()]
    tls.append("limits.idle_s=20")
    node = RunningNode(None, tmp_path / "node", ["listen.host=0.0.0.0", "listen.peers=[FRIEND]", *tls])
    node.start(ready=False)
    # One that does not go on keeps nobody else waiting.
    silent = socket.create_connection(("127.0.0.1", node.dicom_port), timeout=120)
    silent.sendall(b"\x16")

    def context(name: str) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=tmp_path / "node.pem")
        made.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        return made

    assert echo(node, "FRIEND", tls_args=(context("caller"), "127.0.0.1")) == 0
    assert echo(node, "OTHER", tls_args=(context("caller"), "127.0.0.1")) == -1
    assert echo(node, "FRIEND", tls_args=(context("stranger"), "127.0.0.1")) == -1
    assert echo(node, "FRIEND") == -1
    url, secure = f"https://127.0.0.1:{node.http_port}", {"verify": str(tmp_path / "node.pem"), "timeout": 30}
    assert requests.get(url, **secure).status_code == 401  # type: ignore[arg-type]
    assert requests.get(url, headers={"Authorization": "Bearer sesam"}, **secure).status_code == 401  # type: ignore[arg-type]
    assert requests.get(url, headers={"Authorization": "Bearer sesame"}, **secure).status_code == 200  # type: ignore[arg-type]
    assert requests.get(url, auth=("anyone", "sesame"), **secure).status_code == 200  # type: ignore[arg-type]
    with pytest.raises(requests.RequestException):
        requests.get(f"http://127.0.0.1:{node.http_port}", timeout=10)
    events = [json.loads(line)["event"] for line in (node.folder / "audit.jsonl").read_text().splitlines()]
    assert "caller_rejected" in events
    assert silent.recv(100) == b""
    silent.close()
    node.stop()


def test_a_folder_and_a_port_are_of_one_node(node: RunningNode, tmp_path: Path) -> None:
    for folder, port, problem in (
        (node.folder, 0, "node: expected a folder of its own, got one of a node at work"),
        (tmp_path / "other", node.http_port, f"HTTP port 127.0.0.1:{node.http_port}: expected a free one"),
    ):
        other = RunningNode(None, folder, http_port=port)
        with pytest.raises(AssertionError) as found:
            other.start()
        assert problem in str(found.value)
        other.end()
