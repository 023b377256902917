"""Callers that are slow on purpose: each holds one of a limited number of places."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from pipeline.service.audit import AuditLog
from pipeline.service.http import HttpServer, Places
from pipeline.service.queue import StudyQueue
from pipeline.service.settings import Limits, Listen, NodeSettings

WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """The pages of a node that cuts off who sends nothing for a second."""
    folder = tmp_path_factory.mktemp("http")
    settings = NodeSettings(listen=Listen(http_port=0), limits=Limits(idle_s=1.0))
    queue = StudyQueue(folder / "queue.sqlite", most_open=3, clock=time.time)
    places = Places("model", settings, queue, AuditLog(folder), folder, folder, "", lambda: "", lambda: 1)
    found = HttpServer(places)
    found.start()
    yield found
    found.stop()


def cut_off_after(caller: socket.socket) -> float:
    """Seconds until the server ends the connection."""
    began = time.monotonic()
    assert caller.recv(1000) == b""
    return time.monotonic() - began


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first request", "second request"])
def test_a_head_that_does_not_come_to_its_end_is_cut_off(server: HttpServer, before: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as caller:
        caller.sendall(before)
        answer = b""
        while before and not answer.endswith(b"}"):
            answer += caller.recv(1000)
        caller.sendall(b"GET /health HTTP/1.1\r\n")
        # Some bytes now and then are not enough.
        time.sleep(0.5)
        caller.sendall(b"X: ")
        assert cut_off_after(caller) < 20


def test_who_says_nothing_at_all_is_cut_off(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as caller:
        assert cut_off_after(caller) < 20
