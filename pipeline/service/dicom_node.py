"""DICOM over TCP: the node as an archive that others send to (C-STORE, C-ECHO), and as one who sends."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import StoragePresentationContexts, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is loaded

from pipeline.core.errors import VolsegError, sentence
from pipeline.service.audit import AuditLog
from pipeline.service.queue import RefusedError, Study, StudyQueue
from pipeline.service.settings import Archive, Limits, Listen

_SUCCESS, _NO_ROOM, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_COMMAND = 1 << 16  # bytes of a message beside its image
# No deflate: a small message could unpack to any size.
_SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"),
    *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    *("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
)
# Images of which volumes are made: CT, MR, PET and NM. Anything else that comes with a study, also a result that is
# routed back, is confirmed and left out: it would begin a study of its own.
_KEPT = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130", "20")
)
_CONNECT_S = 20.0


class SendError(Exception):
    """The archive did not take a result; the text says why."""


class Receiver:
    """The listening side.

    Args:
        listen: Where, and for whom.
        limits: What is refused.
        queue: Where studies go.
        studies: Folder for their files, one for each study.
        incoming: Folder for files on their way, on the same disk.
        audit: What came from whom.
        full: Says why nothing may be taken now, or an empty text.
    """

    def __init__(
        self,
        listen: Listen,
        limits: Limits,
        queue: StudyQueue,
        studies: Path,
        incoming: Path,
        audit: AuditLog,
        full: Callable[[], str],
    ) -> None:
        self.listen, self.limits, self.queue, self.studies = listen, limits, queue, studies
        self.incoming, self.audit, self._full = incoming, audit, full
        self._ae: AE | None = None

    def start(self) -> int:
        """Listen; the port.

        Raises:
            VolsegError: If the address cannot be listened on, or a certificate cannot be read.
        """
        # Files go to the disk piece by piece. Without this each would be in memory whole, and twice.
        _config.STORE_RECV_CHUNKED_DATASET = True
        tempfile.tempdir = str(self.incoming)
        listen, limits = self.listen, self.limits
        ae = AE(ae_title=listen.ae_title)
        ae.maximum_pdu_size = limits.pdu_kb << 10
        ae.maximum_associations = limits.associations
        ae.require_calling_aet = list(listen.peers)
        ae.require_called_aet = False
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = limits.idle_s
        ae.add_supported_context(Verification)
        for context in StoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax or "", list(_SYNTAXES))
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._bound),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REJECTED, self._rejected),
        ]
        address = listen.host, listen.dicom_port or 0
        try:
            server: Any = ae.start_server(address, block=False, evt_handlers=handlers, ssl_context=_server_tls(listen))
        except OSError as error:
            got, advice = f"an error ({error.strerror or error})", "Choose another port or address"
            what = f"DICOM port {address[0]}:{address[1]}"
            raise VolsegError(sentence(what, "a free one", got, advice)) from None
        self._ae = ae
        return int(server.socket.getsockname()[1])

    def stop(self) -> None:
        """Listen no more, and end all associations."""
        if self._ae is not None:
            self._ae.shutdown()

    def _bound(self, event: Any) -> None:
        """Bound what a caller may make this process read: pynetdicom reads as long a PDU as its head says."""
        connection, limits = event.assoc.dul.socket, self.limits
        connection.socket.settimeout(limits.idle_s)  # in the middle of a PDU, too
        read, most = connection.recv, limits.pdu_kb << 10
        event.assoc.volseg_taken = 0

        def recv(count: int) -> bytearray:
            event.assoc.volseg_taken += count
            if count > most + _COMMAND or event.assoc.volseg_taken > (limits.instance_mb << 20) + _COMMAND:
                raise OSError("more than the limit")  # closes the connection
            found: bytearray = read(count)
            return found

        connection.recv = recv

    def _rejected(self, event: Any) -> None:
        self.audit.note("caller_rejected", address=event.assoc.requestor.address)

    def _store(self, event: Any) -> int:
        event.assoc.volseg_taken = 0
        path = Path(event.dataset_path)
        caller = event.assoc.requestor
        peer = caller.ae_title if caller.ae_title in self.listen.peers else "any"
        try:
            reason = self._full()
            if reason:
                raise RefusedError(reason)
            event.request._dataset_file.close()
            study = self._kept(path) if event.request.AffectedSOPClassUID in _KEPT else None
        except RefusedError as error:
            self.queue.count("refused_files")
            self.audit.note("file_refused", peer=peer, address=caller.address, reason=str(error))
            return _NO_ROOM
        except OSError as error:
            self.audit.note("file_refused", peer=peer, address=caller.address, reason=f"disk: {error.strerror}")
            return _NO_ROOM
        except Exception as error:  # whatever pydicom raises is about the file, whose texts it may quote
            reason = f"no readable data set with identifiers ({type(error).__name__})"
            self.audit.note("file_refused", peer=peer, address=caller.address, reason=reason)
            return _NOT_UNDERSTOOD
        if study is not None and study.files == 0:
            self.audit.note("study_began", study.id, peer=peer, address=caller.address, origin="dicom", uid=study.key)
        return _SUCCESS

    def _kept(self, path: Path) -> Study | None:
        """Move a file into the folder of its study, and note it; None if it is known."""
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
        uid, sop = str(header.StudyInstanceUID), str(header.SOPInstanceUID)
        if not is_uid(uid) or not is_uid(sop):
            raise ValueError("no identifiers")
        name, size = file_name(sop), path.stat().st_size
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        while True:
            limits = self.limits
            study = self.queue.place(uid, name, size, "dicom", limits.study_mb << 20, limits.study_files)
            if study is None:
                return None
            target = self.studies / study.name / name
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
            if self.queue.placed(study, name, size):
                return study
            target.replace(path)  # its study has begun meanwhile


def is_uid(text: str) -> bool:
    """Whether a text is an identifier, and not one that may name a patient (PS3.5 6.2)."""
    return re.fullmatch(r"[0-9.]{1,64}", text) is not None


def file_name(sop: str) -> str:
    """What the file of an image is called: a hash of its identifier."""
    return f"{hashlib.blake2b(sop.encode(), digest_size=12).hexdigest()}.dcm"


def send(files: Sequence[Path], archive: Archive, ae_title: str) -> None:
    """Send objects by C-STORE.

    Raises:
        SendError: If the archive cannot be reached, or does not take one of them.
    """
    assert archive.peer is not None  # else it is sent to a DICOMweb service
    title, host, port = archive.peer
    objects = [pydicom.dcmread(file) for file in files]
    ae = AE(ae_title=ae_title)
    ae.connection_timeout = ae.acse_timeout = _CONNECT_S
    ae.dimse_timeout = ae.network_timeout = 120.0
    kinds = dict.fromkeys((one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in objects)
    ae.requested_contexts = [build_context(*kind) for kind in kinds]
    tls = (_client_tls(archive), host) if archive.tls else None
    association = ae.associate(host, port, ae_title=title, tls_args=tls)
    try:
        if not association.is_established:
            turned = association.is_rejected
            raise SendError("the archive turned the call down" if turned else "the archive cannot be reached")
        for one in objects:
            try:
                status = association.send_c_store(one)
            except ValueError:  # of the kinds of objects that it takes
                raise SendError("the archive takes no objects of this kind") from None
            code = status.get("Status") if status else None
            if code is None:
                raise SendError("the archive broke off")
            if code != _SUCCESS and not 0xB000 <= code <= 0xBFFF:  # warnings: it was stored
                raise SendError(f"the archive refused an object (status 0x{code:04X})")
    finally:
        if association.is_established:
            association.release()
        else:
            with suppress(Exception):
                association.abort()


class _LazyContext(ssl.SSLContext):
    """TLS whose handshake waits for the first message: in the caller's own thread, not in that of all callers."""

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*args, **{**options, "do_handshake_on_connect": False})


def _server_tls(listen: Listen) -> ssl.SSLContext | None:
    if listen.certificate is None:
        return None
    try:
        context = _LazyContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(listen.certificate, listen.key)
        if listen.authority is not None:
            context.load_verify_locations(listen.authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        got, advice = f"an error ({error})", "Check listen.certificate, listen.key and listen.authority"
        raise VolsegError(sentence("certificate", "readable PEM files that fit", got, advice)) from None
    return context


def _client_tls(archive: Archive) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=archive.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
