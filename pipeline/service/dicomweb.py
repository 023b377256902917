"""DICOMweb: the node asks a service for new studies (QIDO), fetches them (WADO) and stores results (STOW)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from dicomweb_client.web import DICOMwebClient

from pipeline.service.dicom_node import SendError, file_name, is_uid
from pipeline.service.queue import RefusedError, Study, StudyQueue
from pipeline.service.settings import Archive, Limits, secret

_TIMEOUT_S = (10.0, 120.0)  # to connect, and between two bytes
_PAGE = 100  # studies asked for at once
_PAGES = 100
_COUNT = "00201209"  # NumberOfSeriesRelatedInstances
_STUDY, _SERIES = "0020000D", "0020000E"
_AS_STORED = (("application/dicom", "*"),)


class FetchError(Exception):
    """A study could not be fetched; the text says why."""


def client(archive: Archive, url: str) -> DICOMwebClient:
    """A client of a service, with the user and authority of the settings."""
    session = create_session_from_user_pass(archive.user, secret(archive.password_file)) if archive.user else None
    session = session or requests.Session()
    if archive.authority is not None:
        session.verify = str(archive.authority)
    session.trust_env = False  # no proxy and no .netrc of whoever started the node
    return DICOMwebClient(url, session=session, timeout=_TIMEOUT_S)


class Poller:
    """Looks for studies that are complete: nothing of them changed for some time.

    Args:
        archive: The service, and which studies are wanted.
        queue: Where they are noted.
        quiet_s: For how long they must not have changed.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self, archive: Archive, queue: StudyQueue, quiet_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.archive, self.queue, self.quiet_s, self._clock = archive, queue, quiet_s, clock
        self._client = client(archive, archive.poll)
        self._seen: dict[str, tuple[dict[str, int], float]] = {}

    def look(self) -> list[Study]:
        """Ask once; the studies that were noted.

        Raises:
            FetchError: If the service does not answer as it should.
        """
        noted: list[Study] = []
        with _as_reason():
            new = [uid for uid in self._studies() if not self.queue.knows(uid)]
            self._seen = {uid: seen for uid, seen in self._seen.items() if uid in new}
            for uid in new:
                series = self._series(uid)
                before, since = self._seen.get(uid, ({}, 0.0))
                if not series or series != before:
                    self._seen[uid] = series, self._clock()
                elif self._clock() - since >= self.quiet_s:
                    try:
                        study = self.queue.fetch(uid, {"series": series})
                    except RefusedError:
                        break  # later, when others are done
                    noted += [study] if study else []
        return noted

    def fetch(self, study: Study, folder: Path, limits: Limits) -> dict[str, int]:
        """Fetch all files of a study into a folder; name → bytes.

        Raises:
            FetchError: If they cannot be fetched, or are fewer than the service said.
            RefusedError: If the study is too large.
        """
        sizes: dict[str, int] = {}
        with _as_reason():
            for uid, count in study.about["series"].items():
                before = len(sizes)
                for image in self._client.iter_series(study.uid, uid, media_types=_AS_STORED):
                    path = folder / file_name(str(image.SOPInstanceUID))
                    image.save_as(path, enforce_file_format=True)
                    sizes[path.name] = path.stat().st_size
                    if sum(sizes.values()) > limits.study_mb << 20 or len(sizes) > limits.study_files:
                        rule = f"a study of at most {limits.study_mb} MB and {limits.study_files} files"
                        raise RefusedError(rule)
                if len(sizes) - before < count:
                    raise FetchError(f"{len(sizes) - before} images of a series of {count} came")
        return sizes

    def _studies(self) -> Iterator[str]:
        today, archive = date.today(), self.archive
        filters: dict[str, Any] = {
            "ModalitiesInStudy": archive.modality,
            "StudyDate": f"{today - timedelta(days=archive.days):%Y%m%d}-{today + timedelta(days=1):%Y%m%d}",
        }
        for page in range(_PAGES):
            found = self._client.search_for_studies(limit=_PAGE, offset=page * _PAGE, search_filters=filters)
            yield from (uid for uid in (_value(item, _STUDY) for item in found) if is_uid(uid))
            if len(found) < _PAGE:
                return

    def _series(self, uid: str) -> dict[str, int]:
        """Series → number of its images, 0 where the service does not tell."""
        filters = {"Modality": self.archive.modality, **self.archive.filters}
        found = self._client.search_for_series(uid, fields=[_COUNT], search_filters=filters)
        # Some services take no notice of filters that they do not know; the modality must be right.
        wanted = [item for item in found if _value(item, "00080060") in ("", self.archive.modality)]
        return {
            _value(item, _SERIES): int(_value(item, _COUNT) or 0) for item in wanted if is_uid(_value(item, _SERIES))
        }


def store(files: Sequence[Path], archive: Archive) -> None:
    """Send objects by STOW.

    Raises:
        SendError: If the service cannot be reached, or does not take one of them.
    """
    try:
        answer = client(archive, archive.to).store_instances([pydicom.dcmread(file) for file in files])
    except requests.HTTPError as error:
        code = None if error.response is None else error.response.status_code
        raise SendError(f"the archive refused the objects (HTTP {code})") from None
    except (requests.RequestException, OSError):
        raise SendError("the archive cannot be reached") from None
    except Exception as error:  # an answer that is none
        raise SendError(f"the archive did not answer as it should ({type(error).__name__})") from None
    failed = len(answer.get("FailedSOPSequence") or ())  # some services always send one, and leave it empty
    if failed:
        raise SendError(f"the archive refused {failed} of {len(files)} objects")


def _value(item: Mapping[str, Any], tag: str) -> str:
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0])


@contextmanager
def _as_reason() -> Iterator[None]:
    """Turn what libraries raise into a reason without the texts of answers, which may name patients."""
    try:
        yield
    except (FetchError, RefusedError):
        raise
    except requests.HTTPError as error:
        code = None if error.response is None else error.response.status_code
        raise FetchError(f"the service refused (HTTP {code})") from None
    except requests.RequestException:
        raise FetchError("the service cannot be reached") from None
    except OSError as error:
        raise FetchError(f"a file cannot be written ({error.strerror})") from None
    except Exception as error:
        raise FetchError(f"the service did not answer as it should ({type(error).__name__})") from None
