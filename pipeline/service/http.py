"""HTTP: the status page, ``/health``, ``/metrics`` for Prometheus; ``POST /v1/segment``: a file in, its mask out."""

from __future__ import annotations

import asyncio
import base64
import hmac
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_server
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

import h11
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import own_version, signature
from pipeline.report.page import render_page
from pipeline.service.audit import AuditLog
from pipeline.service.queue import OPEN, RefusedError, Study, StudyQueue
from pipeline.service.settings import NodeSettings

FileKind = Literal["nii.gz", "nii", "nrrd", "mha", "zip", "dcm"]
MaskKind = Literal["nii.gz", "nii", "nrrd", "seg.nrrd", "mha", "seg", "sr"]
_POLL_S = 0.05
_SHOWN = 50  # open and failed studies on the page
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without one, browsers would not say that the page's own forms are its own
}
_STATES = {"receiving": "arriving", "fetching": "being fetched", "waiting": "waiting", "running": "being segmented"}
_STATES |= {"sending": "being sent"}


@dataclass(frozen=True)
class Places:
    """What the pages need of a node.

    Args:
        model: What the page calls the model.
        settings: Of the node.
        queue: Its studies.
        audit: Its log.
        studies: Folder of their files.
        results: Folder of what was made of them.
        token: What callers must know; empty for nothing.
        full: Says why nothing may be taken now, or an empty text.
        ready: Number of workers that have loaded the model.
    """

    model: str
    settings: NodeSettings
    queue: StudyQueue
    audit: AuditLog
    studies: Path
    results: Path
    token: str
    full: Callable[[], str]
    ready: Callable[[], int]


def application(node: Places) -> FastAPI:
    """The pages of a node."""
    guarded = [Depends(_guard(node))]
    app = FastAPI(title="volseg", version=own_version(), docs_url=None, redoc_url=None)
    app.add_middleware(_Headers)
    app.add_exception_handler(Exception, _unforeseen)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get("/", response_class=HTMLResponse, dependencies=guarded)
    def status() -> HTMLResponse:
        """The status page."""
        return HTMLResponse(status_page(node))

    @app.get("/health")
    def health() -> JSONResponse:
        """200 if studies can be taken and segmented, else 503 with the reason."""
        reason = node.full() or ("" if node.ready() else "no worker has loaded the model yet")
        content = {"status": "ok" if not reason else "unavailable", "workers": node.ready()}
        return JSONResponse(content | ({"reason": reason} if reason else {}), 503 if reason else 200)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guarded)
    def metrics() -> PlainTextResponse:
        """For Prometheus."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Metrics(node))
        return PlainTextResponse(generate_latest(registry).decode(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/studies/{number}/retry", dependencies=guarded)
    def retry(number: Annotated[int, InPath(ge=1, le=1 << 53)]) -> RedirectResponse:
        """Let a study that was set aside begin again where it failed."""
        if not node.queue.again(number):
            raise HTTPException(404, "study: expected one that was set aside, got another. See the status page.")
        node.audit.note("retried", number)
        return RedirectResponse("/", 303)

    @app.post("/v1/segment", response_class=Response, dependencies=guarded)
    async def segment(
        request: Request,
        file: Annotated[FileKind, Query(description="What the body is; zip: of a DICOM series")] = "nii.gz",
        mask: Annotated[
            MaskKind, Query(description="What comes back; seg and sr: DICOM objects, of a series")
        ] = "nii.gz",
    ) -> Response:
        """The mask of an image: the file is the body of the request."""
        return await _segmented(node, request, file, mask)

    return app


class _Headers:
    """Adds headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, sent)


def _guard(node: Places) -> Callable[[Request], None]:
    """Who may call: by a name of this node, from no other site's page, with the token if there is one."""
    listen = node.settings.listen
    names = {"localhost", "127.0.0.1", "::1", listen.host, *listen.names}

    def guard(request: Request) -> None:
        # A page of another site, whose name leads here, must not read what is here, nor start work.
        host = _host(f"//{request.headers.get('host', '')}").hostname
        if (listen.is_loopback or listen.names) and host not in names:
            raise HTTPException(421, "host: expected a name of this node, got another. Add it to listen.names.")
        origin = request.headers.get("origin")
        if request.method != "GET" and origin is not None and _host(origin).netloc != request.headers.get("host"):
            raise HTTPException(403, "origin: expected this node's own page, got another. Call it from there.")
        if node.token and not hmac.compare_digest(_given(request).encode(), node.token.encode()):
            raise HTTPException(401, "token: expected the node's, got another.", {"WWW-Authenticate": "Basic"})

    return guard


def _host(address: str) -> SplitResult:
    """Parts of an address; of one that is none they are empty."""
    with suppress(ValueError):
        return urlsplit(address)
    return urlsplit("")


def _given(request: Request) -> str:
    """The token of a request: a bearer's, or the password that a browser asked for."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
    return value if kind.lower() == "bearer" else ""


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """An error without its text, which may quote what was sent."""
    return JSONResponse({"detail": f"an error of the node ({type(error).__name__})"}, 500)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Wrong parameters, without quoting them."""
    assert isinstance(error, RequestValidationError)
    wrong = [".".join(map(str, problem["loc"][1:])) + ": " + str(problem["msg"]) for problem in error.errors()]
    return JSONResponse({"detail": "; ".join(wrong)}, 422)


# A file in, its mask out.


async def _segmented(node: Places, request: Request, kind: FileKind, mask: MaskKind) -> Response:
    """Take a file, wait for its mask, and forget both."""
    limit, began = node.settings.limits.upload_mb << 20, time.monotonic()
    if int(request.headers.get("content-length") or 0) > limit:
        raise HTTPException(413, _too_large(node))
    reason = node.full()
    try:
        if reason:
            raise RefusedError(reason)
        study = node.queue.upload({"mask": mask, "file": kind})
    except RefusedError as error:
        detail = sentence("room", str(error), "none left", "Try again later")
        raise HTTPException(503, detail, {"Retry-After": "30"}) from None
    try:
        size = await _taken(node, request, node.studies / study.name / f"{study.name}.{kind}")
        node.queue.uploaded(study, size)
        done = await _finished(node, request, study)
        if done.state == "failed":
            raise HTTPException(422, done.reason)
        path = node.results / study.name / done.about["files"][0]
        content = await asyncio.to_thread(path.read_bytes)
        node.audit.note("upload_answered", study.id, bytes=size, seconds=round(time.monotonic() - began, 2))
        headers = {"X-Volseg-Seconds": str(done.about["seconds"])}
        return Response(content, media_type="application/octet-stream", headers=headers)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it
    finally:
        node.queue.drop(study.id)
        for folder in (node.studies, node.results):
            shutil.rmtree(folder / study.name, ignore_errors=True)


async def _taken(node: Places, request: Request, path: Path) -> int:
    """Write the body of a request to a file; its bytes."""
    size, limits = 0, node.settings.limits
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = request.stream()
    with path.open("wb") as stream:
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks, None), limits.idle_s)
            except TimeoutError:
                raise HTTPException(408, "body: expected the file, got nothing for too long. Send it again.") from None
            if chunk is None:
                break
            size += len(chunk)
            if size > limits.upload_mb << 20:
                raise HTTPException(413, _too_large(node))
            if chunk and node.full():
                raise HTTPException(507, "disk: expected room for the file, got too little. Try again later.")
            stream.write(chunk)
    if not size:
        raise HTTPException(422, "body: expected a file, got nothing. Send it as the body of the request.")
    return size


async def _finished(node: Places, request: Request, study: Study) -> Study:
    """The study once it is done or has failed."""
    until = time.monotonic() + node.settings.work.limit_s
    while time.monotonic() < until:
        found = node.queue.study(study.id)
        if found.state in ("done", "failed"):
            return found
        if await request.is_disconnected():
            raise ClientDisconnect
        await asyncio.sleep(_POLL_S)
    raise HTTPException(504, "node: expected a mask in time, got none. Try again when it is less busy.")


def _too_large(node: Places) -> str:
    rule, advice = f"at most {node.settings.limits.upload_mb} MB", "Crop it, or raise limits.upload_mb"
    return sentence("body", rule, "more", advice)


# The page, and numbers.


def status_page(node: Places) -> str:
    """The status page as HTML: numbers, what waits, what was set aside, and the last results with their pictures."""
    queue, counts, totals = node.queue, node.queue.counts(), node.queue.totals()
    context = {
        "title": "volseg node",
        "model": node.model,
        "reason": node.full() or ("" if node.ready() else "No worker has loaded the model yet."),
        "counts": counts,
        "totals": totals,
        "workers": node.ready(),
        "open": [_row(node, study) for study in queue.last(_SHOWN, *OPEN)],
        "failed": [_row(node, study) for study in queue.last(_SHOWN, "failed")],
        "results": [_row(node, study) for study in queue.last(node.settings.keep.results, "done")],
        "shown": _SHOWN,
        "open_count": sum(counts[state] for state in OPEN),
    }
    return render_page("status.html.j2", {**context, **signature()})


def _row(node: Places, study: Study) -> dict[str, Any]:
    picture = ""
    with suppress(OSError):
        content = base64.b64encode((node.results / f"{study.name}.jpg").read_bytes())
        picture = f"data:image/jpeg;base64,{content.decode('ascii')}"
    found = study.about.get("organs") or {}
    return {
        "id": study.id,
        "name": study.name,
        "state": _STATES.get(study.state, study.state),
        "origin": {"dicom": "C-STORE", "dicomweb": "DICOMweb"}.get(study.origin, study.origin),
        "files": study.files,
        "time": f"{datetime.fromtimestamp(study.changed, UTC):%Y-%m-%d %H:%M:%S}",
        "reason": study.reason,
        "tries": study.tries,
        "again": study.can_begin_again,
        "seconds": study.about.get("seconds"),
        "organs": ", ".join(f"{name} {ml:.1f} mL" for name, ml in found.items()) or "nothing found",
        "part_of": study.about.get("part_of"),
        "notes": study.about.get("notes") or [],
        "picture": picture,
        "viewer": node.settings.viewer.replace("{study}", study.uid) if node.settings.viewer and study.uid else "",
    }


class _Metrics:
    """What Prometheus reads, straight from the queue: the counts outlive the process."""

    def __init__(self, node: Places) -> None:
        self.node = node

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("volseg_studies", "Studies and uploads by state", labels=["state"])
        for state, count in self.node.queue.counts().items():
            states.add_metric([state], count)
        yield states
        for name, value in self.node.queue.totals().items():
            yield CounterMetricFamily(f"volseg_{name}", "Since the node's folder was made", value=value)
        yield GaugeMetricFamily("volseg_workers_ready", "Workers that have loaded the model", value=self.node.ready())
        free = shutil.disk_usage(self.node.studies).free
        yield GaugeMetricFamily("volseg_disk_free_bytes", "Free space of the node's folder", value=free)


def _cutting_off(idle_s: float) -> type[H11Protocol]:
    """HTTP as uvicorn speaks it, but a request whose head takes longer to come ends its connection.

    uvicorn itself would wait without end, and connections are limited. For bodies :func:`_taken` sees to it.
    """

    class Prompt(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:  # the head is there
                self._stop()
            elif self._timer is None:  # more of a head gives no more time
                self._timer = self.loop.call_later(idle_s, self._end)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    return Prompt


class HttpServer:
    """The pages, served from a thread of their own."""

    def __init__(self, node: Places) -> None:
        listen = node.settings.listen
        try:
            self._socket = create_server((listen.host, listen.http_port), backlog=128)
        except OSError as error:
            got, advice = f"an error ({error.strerror or error})", "Choose another port or address"
            where = f"HTTP port {listen.host}:{listen.http_port}"
            raise VolsegError(sentence(where, "a free one", got, advice)) from None
        tls: dict[str, Any] = {}
        if listen.certificate is not None:
            tls = {"ssl_certfile": str(listen.certificate), "ssl_keyfile": str(listen.key)}
        config = uvicorn.Config(
            application(node),
            http=_cutting_off(node.settings.limits.idle_s),
            log_config=None,  # it would log requests, and errors with what they quote
            access_log=False,
            lifespan="off",
            server_header=False,
            ws="none",
            limit_concurrency=4 * node.settings.limits.associations,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=1 << 16,
            **tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
