"""Settings of a node: what is opened must be closed otherwise; addresses and names are what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.yaml_file import load_as
from pipeline.core.errors import ConfigError
from pipeline.service.settings import NodeSettings, secret

OPEN = "listen.host=0.0.0.0"
TLS = ("listen.certificate=a.pem", "listen.key=b.pem")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([OPEN], "listen: peers: expected the AE titles that may call 0.0.0.0, got none"),
        ([OPEN, "listen.peers=[PACS]"], "listen: certificate: expected TLS beyond loopback"),
        ([OPEN, "listen.peers=[PACS]", *TLS], "listen: token_file: expected one beyond loopback"),
        ([TLS[0]], "listen: certificate: expected both certificate and key"),
        (["listen.authority=a.pem"], "listen: authority: expected certificate and key as well"),
        (["listen.ae_title=a\\b"], "listen.ae_title: expected an AE title"),
        (["listen.peers=[SEVENTEEN_LETTERS]"], "listen.peers.0: expected an AE title"),
        (["archive.to=PACS"], "archive.to: expected the address of a DICOMweb service"),
        (
            ["archive.poll=http://u:p@host/"],
            "archive.poll: expected the address of a DICOMweb service without",
        ),
        (["archive.poll=http://host/"], "archive: modality: expected one to fetch"),
        (["archive.user=me"], "archive: password_file: expected one with user"),
        (["work.series=[a b]"], "work.series: expected numbers or modalities"),
        (["work.objects=[seg,other]"], "work.objects"),
        (["work.objects=[]"], "work.objects"),
        (["work.seg_type=labelmap"], "work: seg_type: expected binary or auto with sr among objects"),
        (["viewer=javascript:alert(1)"], "viewer"),
        (["limits.queues=4"], "limits.queues: unknown key. Did you mean queue?"),
        (["archive.poll=http://host/", "archive.modality=CT", "keep.days=1"], "keep.days: expected more than"),
    ],
)
def test_what_is_wrong_is_said(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as found:
        load_as(NodeSettings, None, overrides)
    assert [text for text in found.value.problems if problem in text], found.value.problems


def test_beyond_loopback_with_peers_tls_and_a_token_or_where_the_network_is_closed() -> None:
    opened = [OPEN, "listen.peers=[PACS]"]
    load_as(NodeSettings, None, [*opened, *TLS, "listen.token_file=t.txt"])
    load_as(NodeSettings, None, [*opened, "listen.plain=true"])
    assert load_as(NodeSettings).listen.is_loopback
    assert load_as(NodeSettings, None, ["listen.host='::1'"]).listen.is_loopback


@pytest.mark.parametrize(
    ("to", "peer"),
    [
        ("PACS@10.0.0.5:104", ("PACS", "10.0.0.5", 104)),
        ("A@[::1]:11112", ("A", "::1", 11112)),
        ("https://pacs.example/dicom-web", None),
        ("", None),
    ],
)
def test_where_results_go(to: str, peer: tuple[str, str, int] | None) -> None:
    assert load_as(NodeSettings, None, [f"archive.to='{to}'"]).archive.peer == peer


def test_a_secret_is_the_first_line_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("word\nmore\n")
    assert (secret(path), secret(None)) == ("word", "")
    path.write_text("\n")
    with pytest.raises(ConfigError, match="expected a word in the first line"):
        secret(path)
