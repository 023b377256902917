"""The compose file of a node beside Orthanc: what it names is there, and its parts agree on ports and titles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.yaml_file import load_as
from pipeline.service.settings import NodeSettings

HOME = Path(__file__).parents[2] / "configs" / "node"
KEYS = {
    *("build", "volumes", "ports", "restart", "depends_on", "read_only", "tmpfs", "cap_drop", "security_opt"),
    *("stop_grace_period", "healthcheck"),
}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HOME / "compose.yaml").read_text("utf-8"))
    return found


def test_services_have_known_keys_and_what_they_mount_is_there() -> None:
    content = compose()
    assert set(content) == {"services", "volumes"}
    assert set(content["services"]) == {"orthanc", "volseg"}
    for service in content["services"].values():
        assert set(service) <= KEYS
        assert set(service.get("depends_on", [])) <= set(content["services"])
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert (HOME / source).is_file() if source.startswith(".") else source in content["volumes"], mount
    build = content["services"]["volseg"]["build"]
    assert (HOME / build["context"] / build["dockerfile"]).resolve() == HOME / "Dockerfile"


def test_nothing_is_published_beyond_this_computer() -> None:
    ports = [port for service in compose()["services"].values() for port in service["ports"]]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_node_and_archive_know_each_other() -> None:
    settings = load_as(NodeSettings, HOME / "node.yaml")
    orthanc = json.loads((HOME / "orthanc.json").read_text("utf-8"))
    listen = settings.listen
    assert settings.archive.peer == (orthanc["DicomAet"], "orthanc", orthanc["DicomPort"])
    assert orthanc["DicomModalities"] == {"volseg": [listen.ae_title, "volseg", listen.dicom_port]}
    assert listen.peers == (orthanc["DicomAet"],)
    published = {port.split(":")[-1] for service in compose()["services"].values() for port in service["ports"]}
    assert published == {str(listen.http_port), str(orthanc["HttpPort"]), str(orthanc["DicomPort"])}
    assert f"127.0.0.1:{listen.http_port}/health" in compose()["services"]["volseg"]["healthcheck"]["test"][-1]


def test_the_image_installs_the_extra_and_runs_the_command() -> None:
    lines = (HOME / "Dockerfile").read_text("utf-8")
    assert '".[service]"' in lines
    assert 'ENTRYPOINT ["volseg"]' in lines
    mounted = [mount.split(":")[1] for mount in compose()["services"]["volseg"]["volumes"]]
    command = json.loads(lines.split("CMD ", 1)[1].strip())
    assert command[:2] == ["serve", "hippocampus"]
    assert command[command.index("--config") + 1] in mounted
    assert any(command[command.index("-o") + 1].startswith(f"{place}/") for place in mounted)
