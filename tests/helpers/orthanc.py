"""A real archive on loopback: Debian's Orthanc with its DICOMweb plug-in, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client.web import DICOMwebClient

_PLUGINS = Path("/usr/share/orthanc/plugins")
_READY_S = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def require_orthanc() -> None:
    """Skip where there is none."""
    if shutil.which("Orthanc") is None or not (_PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("needs Orthanc: apt install orthanc orthanc-dicomweb")


@dataclass
class Orthanc:
    """An archive that can be stopped and started."""

    folder: Path
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def web(self) -> str:
        return f"{self.rest}/dicom-web"

    @property
    def peer(self) -> str:
        return f"ORTHANC@127.0.0.1:{self.dicom_port}"

    def start(self) -> Orthanc:
        self.folder.mkdir(exist_ok=True)
        config = {
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "StableAge": 1,
            "Plugins": [str(_PLUGINS / "libOrthancDicomWeb.so")],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": "127.0.0.1", "Ssl": False},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(config))
        log = (self.folder / "log.txt").open("ab")
        self.process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        until = time.monotonic() + _READY_S
        while True:
            try:
                requests.get(f"{self.rest}/system", timeout=5).raise_for_status()
                return self
            except requests.RequestException:
                assert self.process.poll() is None, (self.folder / "log.txt").read_text()
                assert time.monotonic() < until, "Orthanc did not start"
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.rest}/{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def client(self) -> DICOMwebClient:
        return DICOMwebClient(self.web)

    def modalities(self) -> dict[str, list[str]]:
        """StudyInstanceUID → modality of every series, sorted."""
        found: dict[str, list[str]] = {}
        for series in self.get("series?expand"):
            study = self.get(f"studies/{series['ParentStudy']}")["MainDicomTags"]["StudyInstanceUID"]
            found.setdefault(study, []).extend([series["MainDicomTags"]["Modality"]] * len(series["Instances"]))
        return {study: sorted(modalities) for study, modalities in found.items()}


def environment() -> dict[str, str]:
    """Variables for programs that tests start."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
