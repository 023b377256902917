"""Settings of a node: every key with its type, default and meaning.

The text under a key is written for users. What a key may be is its type; rules between keys are the validators.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config.settings import Section
from pipeline.core.documents import read_text, short
from pipeline.core.errors import ConfigError
from pipeline.data.volume_file import series_source, split_source

Port = Annotated[int, Field(ge=0, le=65535)]
_ADDRESS = re.compile(r"(?P<title>[^@\s\\]{1,16})@(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


def _title(value: str) -> str:
    # PS3.5 6.2, value representation AE: up to 16 characters, no backslash, no control characters.
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", value) or not value.strip():
        raise ValueError(f"expected an AE title of 1 to 16 letters, got {short(value)}. Correct it.")
    return value.strip()


def _web(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password):
        rule = "the address of a DICOMweb service without a password, such as http://127.0.0.1:8042/dicom-web"
        raise ValueError(
            f"expected {rule}, got {short(value)}. Correct it; user and password_file have their own keys."
        )
    return value


Title = Annotated[str, AfterValidator(_title)]
Web = Annotated[str, AfterValidator(_web)]


class Listen(Section):
    """Who may send studies, and where to."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than loopback needs ``peers``, and certificates or ``plain``."""
    dicom_port: Port | None = 11112
    """Port for C-STORE and C-ECHO; 0 takes a free one, null listens to no DICOM."""
    http_port: Port = 8080
    """Port for the status page, ``/health``, ``/metrics`` and ``POST /v1/segment``; 0 takes a free one."""
    ae_title: Title = "VOLSEG"
    """The node's own AE title, when it is called and when it calls."""
    peers: tuple[Title, ...] = ()
    """AE titles that may call; empty lets all call, which only loopback may."""
    names: tuple[str, ...] = ()
    """Further names that browsers may call the page by, such as node.hospital.example."""
    certificate: Path | None = None
    """PEM file; with it and ``key``, DICOM and HTTP are encrypted (TLS 1.2 or later)."""
    key: Path | None = None
    """PEM file of its private key."""
    authority: Path | None = None
    """PEM file; with it, who calls by DICOM must have a certificate of this authority."""
    plain: bool = False
    """Listen beyond loopback without TLS, where the network itself is closed, as between containers."""
    token_file: Path | None = None
    """Text file with a word that HTTP callers must know (``Authorization: Bearer``, or the password in a browser)."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _closed_beyond_loopback(self) -> Listen:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate: expected both certificate and key, got one. Name the other.")
        if self.authority is not None and self.certificate is None:
            raise ValueError("authority: expected certificate and key as well, got none. Name them.")
        if self.is_loopback:
            return self
        if self.dicom_port is not None and not self.peers:
            raise ValueError(f"peers: expected the AE titles that may call {self.host}, got none. Name them.")
        if self.certificate is None and not self.plain:
            advice = "Name certificate and key, or set plain if the network itself is closed"
            raise ValueError(f"certificate: expected TLS beyond loopback ({self.host}), got none. {advice}.")
        if self.token_file is None and not self.plain:
            raise ValueError(
                f"token_file: expected one beyond loopback ({self.host}), got none. Write a word into a file."
            )
        return self


class Archive(Section):
    """The PACS: where results go, and where studies are looked for."""

    to: str = ""
    """Where results are sent: ``AETITLE@host:port`` by C-STORE, or the address of a DICOMweb service by STOW."""
    tls: bool = False
    """Whether C-STORE is encrypted; of DICOMweb the address says it."""
    poll: Web = ""
    """Address of a DICOMweb service that is asked for new studies; empty asks none."""
    modality: Annotated[str, Field(pattern="^[A-Z]{0,16}$")] = ""
    """Modality of the series to fetch, such as CT; polling needs it."""
    filters: dict[str, str] = Field(default_factory=dict)
    """Further conditions for series, by QIDO keyword: ``{SeriesDescription: "T1*"}``."""
    every_s: Annotated[float, Field(gt=0)] = 30.0
    """How often the service is asked."""
    days: Annotated[int, Field(ge=0, le=365)] = 1
    """Studies of today and so many days before are fetched."""
    user: str = ""
    """For DICOMweb services that want one."""
    password_file: Path | None = None
    """Text file with the password."""
    authority: Path | None = None
    """PEM file of the authority of the archive's certificate, if it is not a public one."""
    give_up_h: Annotated[float, Field(gt=0)] = 72.0
    """How long a result is sent again, or a study fetched again, before it is set aside."""

    @property
    def peer(self) -> tuple[str, str, int] | None:
        """AE title, host and port of the archive; None if results go to a DICOMweb service, or nowhere."""
        found = _ADDRESS.fullmatch(self.to)
        return (found["title"], found["host"].strip("[]"), int(found["port"])) if found else None

    @field_validator("to")
    @classmethod
    def _known_form(cls, value: str) -> str:
        return value if _ADDRESS.fullmatch(value) else _web(value)

    @model_validator(mode="after")
    def _modality_known(self) -> Archive:
        if self.poll and not self.modality:
            raise ValueError("modality: expected one to fetch, got none. Set it to the model's, such as CT.")
        if self.user and self.password_file is None:
            raise ValueError("password_file: expected one with user, got none. Write the password into a file.")
        return self


class Work(Section):
    """What is made of a study."""

    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Studies that are predicted at a time; each worker loads the model."""
    device: str | None = None
    """cpu, cuda, cuda:1; by default the best there is."""
    objects: Annotated[tuple[Literal["seg", "sr", "rtstruct", "sc"], ...], Field(min_length=1)] = ("seg", "sr")
    """DICOM objects that are sent."""
    seg_type: Literal["binary", "labelmap", "auto"] = "binary"
    """How a segmentation is stored."""
    series: tuple[str, ...] = ()
    """Series of a study, one per channel, by number or modality; by default the only one of the channel's modality."""
    allow_gaps: bool = False
    """Interpolate missing and uneven slices, which are refused otherwise."""
    quiet_s: Annotated[float, Field(ge=0.1)] = 10.0
    """A study is complete when nothing of it came for so long; DICOM has no other sign."""
    limit_s: Annotated[float, Field(gt=0)] = 3600.0
    """A study that takes longer is set aside, and its worker ended."""
    tries: Annotated[int, Field(ge=1)] = 3
    """How often a study is tried whose worker dies."""

    @model_validator(mode="after")
    def _report_of_segments(self) -> Work:
        if "sr" in self.objects and self.seg_type == "labelmap":
            raise ValueError("seg_type: expected binary or auto with sr among objects, got labelmap. Leave one out.")
        return self

    @field_validator("series")
    @classmethod
    def _can_be_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not split_source(series_source(Path("study"), name, allow_gaps=True))[1]:
                raise ValueError(f"expected numbers or modalities, such as 2 or CT, got {short(name)}. Correct it.")
        return value


class Limits(Section):
    """What is refused, so that no caller can fill memory or disk."""

    pdu_kb: Annotated[int, Field(ge=4, le=4096)] = 128
    """Largest piece of a DICOM message; a caller that sends more is cut off."""
    associations: Annotated[int, Field(ge=1, le=1000)] = 10
    """DICOM callers at a time, and HTTP callers times four."""
    instance_mb: Annotated[int, Field(ge=1)] = 1024
    """Largest image file."""
    study_mb: Annotated[int, Field(ge=1)] = 8192
    """Largest study."""
    study_files: Annotated[int, Field(ge=1)] = 20_000
    """Most files of a study."""
    upload_mb: Annotated[int, Field(ge=1)] = 1024
    """Largest file of ``POST /v1/segment``."""
    image_mb: Annotated[int, Field(ge=1)] = 8192
    """Largest image once it is unpacked, at 4 bytes a voxel."""
    queue: Annotated[int, Field(ge=1)] = 1000
    """Most studies that wait or are at work; further ones are refused until some are done."""
    disk_mb: Annotated[int, Field(ge=0)] = 1024
    """Space that stays free: nothing is taken while there is less."""
    idle_s: Annotated[float, Field(gt=0)] = 60.0
    """A caller that sends nothing for so long is cut off."""


class Keep(Section):
    """How long what is left of studies stays."""

    results: Annotated[int, Field(ge=0, le=200)] = 12
    """Last results on the status page, with their pictures; images and objects go once they are delivered."""
    days: Annotated[int, Field(ge=1)] = 30
    """Days until the files of studies that were set aside go, and until what came before may come again."""


class NodeSettings(Section):
    """All settings of a node."""

    listen: Listen = Listen()
    archive: Archive = Archive()
    work: Work = Work()
    limits: Limits = Limits()
    keep: Keep = Keep()
    viewer: Annotated[str, Field(pattern=r"^$|^https?://[^\s\"'<>]+$")] = ""
    """Link to a viewer, in which {study} stands for the StudyInstanceUID, such as https://ohif.example/viewer?StudyInstanceUIDs={study}."""

    @model_validator(mode="after")
    def _remembered_for_long_enough(self) -> NodeSettings:
        if self.archive.poll and self.keep.days <= self.archive.days + 1:
            rule = f"more than archive.days + 1 ({self.archive.days + 1})"
            raise ValueError(f"keep.days: expected {rule}, else studies would be fetched again, got {self.keep.days}.")
        return self


def secret(path: Path | None) -> str:
    """The first line of a file that holds a password or token; empty without one.

    Raises:
        VolsegError: If it cannot be read.
        ConfigError: If it is empty.
    """
    if path is None:
        return ""
    lines = read_text(path, most_mb=1).splitlines()
    if not lines or not lines[0].strip():
        raise ConfigError(["expected a word in the first line, got none. Write one."], str(path))
    return lines[0].strip()
