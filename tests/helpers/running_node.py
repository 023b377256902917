"""A node as its users run it: ``volseg serve`` in a process of its own, which may be killed and started again."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
from generated_dicom import slices_of
from orthanc import environment
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from pynetdicom import AE

from pipeline.core.volume import Image

_READY_S = 300.0
_STUB = Path(__file__).with_name("stub_node.py")


def tiny_model(folder: Path) -> Path:
    """A model folder of random weights, which segments an image of some slices in no time."""
    from members import member  # here: most tests of a node need no network

    from pipeline.model.folder import fold_folder, save_weights, write_card

    model = member(channels=("CT",), spacing_mm=(2.0, 2.0, 2.0))
    write_card(folder, model.card)
    save_weights(fold_folder(folder, 0) / "model.safetensors", model.networks[0].state_dict())
    return folder


def study(image: Image, number: int, modality: str = "CT", **tags: Any) -> list[Dataset]:
    """A study of one series with identifiers of its own."""
    seed = f"study {number}"
    array = np.rint(image.array[0]).astype(np.int16)
    kind = MRImageStorage if modality == "MR" else CTImageStorage
    own = {"StudyInstanceUID": generate_uid(entropy_srcs=[seed]), "Modality": modality, "SOPClassUID": kind}
    own |= {"StudyDate": time.strftime("%Y%m%d"), "StudyTime": "120000"}
    slices = slices_of(array, image.grid.affine, seed=seed, **{**own, **tags})
    for one in slices:
        one.file_meta.MediaStorageSOPClassUID = kind
    return slices


def store(slices: Sequence[Dataset], port: int, title: str = "SENDER", called: str = "VOLSEG") -> list[int]:
    """Send by C-STORE; the status of each, -1 where there was no answer."""
    ae = AE(ae_title=title)
    for kind in dict.fromkeys((one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in slices):
        ae.add_requested_context(*kind)
    association = ae.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return [-1] * len(slices)
    found = []
    for one in slices:
        try:
            status = association.send_c_store(one)
        except (RuntimeError, ValueError):
            status = None
        found.append(int(status.Status) if status and "Status" in status else -1)
    if association.is_established:
        association.release()
    return found


def store_until_taken(slices: Sequence[Dataset], port: Callable[[], int], limit_s: float = 120) -> None:
    """As an archive does: what was not confirmed is sent again."""
    left, until = list(slices), time.monotonic() + limit_s
    while left:
        assert time.monotonic() < until, f"{len(left)} images were not taken"
        states = store(left, port())
        left = [one for one, status in zip(left, states, strict=True) if status != 0]
        time.sleep(0.2 if left else 0)


@dataclass
class RunningNode:
    """A node in its folder; settings as ``section.key=value``. Without a model its workers have no network."""

    model: Path | str | None
    folder: Path
    settings: Sequence[str] = ()
    http_port: int = 0
    dicom_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    said: bytes = b""
    started: int = field(default=0)

    def start(self, *, ready: bool = True) -> RunningNode:
        ports = [f"listen.http_port={self.http_port}", f"listen.dicom_port={self.dicom_port}"]
        settings = [*ports, "work.quiet_s=1", "work.device=cpu", *self.settings]
        words = [sys.executable, str(_STUB), str(self.folder), *settings]
        if self.model is not None:
            words = [sys.executable, "-m", "pipeline", "serve", str(self.model), "-o", str(self.folder)]
            words += [word for setting in settings for word in ("--set", setting)]
        variables = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.started += 1
        text = self._until(rb"Page: \S+:(\d+)/")
        self.http_port = int(text[1])
        found = re.search(rb"DICOM: \S+:(\d+)", self.said)
        self.dicom_port = int(found[1]) if found else 0
        self.said = b""
        if ready:
            self.until(lambda: requests.get(f"{self.url}/health", timeout=30).status_code == 200, _READY_S)
        return self

    def _until(self, pattern: bytes) -> re.Match[bytes]:
        assert self.process is not None
        assert self.process.stdout is not None
        until = time.monotonic() + _READY_S
        while time.monotonic() < until:
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                piece = os.read(self.process.stdout.fileno(), 4096)
                assert piece, self.said.decode()
                self.said += piece
            found = re.search(pattern, self.said)
            if found:
                return found
        raise AssertionError(self.said.decode())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def kill(self) -> None:
        """As ``kill -9`` does; its workers notice by themselves."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        code = self.process.wait(60)
        self.said += self.process.stdout.read()
        self.process.stdout.close()
        self.process = None
        return code

    def metrics(self) -> dict[str, float]:
        answer = requests.get(f"{self.url}/metrics", timeout=30)
        answer.raise_for_status()
        lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def until(self, condition: Callable[[], bool], limit_s: float = 180) -> None:
        until = time.monotonic() + limit_s
        while True:
            try:
                if condition():
                    return
            except requests.RequestException:
                pass
            assert self.process is None or self.process.poll() is None, self.end()
            assert time.monotonic() < until, (self.folder / "audit.jsonl").read_text()[-3000:]
            time.sleep(0.2)

    def until_done(self, count: int, limit_s: float = 300) -> None:
        self.until(lambda: self.metrics()["volseg_studies_done_total"] >= count, limit_s)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        lines = (self.folder / "audit.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [entry for entry in found if entry["event"] == name or not name]

    def memory_mb(self) -> float:
        """Memory of the node and all processes below it, shared pages once."""
        assert self.process is not None
        family, total = [self.process.pid], 0.0
        for pid in family:
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    family += map(int, (task / "children").read_text().split())
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):  # one that has just ended
                continue
            total += float(re.findall(r"^Pss: +(\d+)", rollup, re.M)[0]) / 1000
        return total
