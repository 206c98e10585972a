"""Instances to a DICOMweb archive by STOW-RS (PS3.18 10.5).

One instance a request: an answer that is lost then concerns one instance, and the order
of a study is kept. The URL comes from the settings alone; an answer that sends us to
another place is refused, as is everything that is not an answer of PS3.18.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import aiohttp
import structlog
from pydicom import dcmread

from dicom_scp.results.sr import (
    SR_CLASSES,
    as_sop_class,
    names_documents,
    naming_documents_as,
    to_part10,
)
from dicom_scp.sending.delivery import Pace, Sent, Unconfirmed
from dicom_scp.sending.scu import outcome
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

_CHUNK: Final = 1 << 16
_MOST_ANSWER: Final = 1 << 20
_ACCEPT: Final = "application/dicom+json"
# Attributes of the response (PS3.18 10.5.3, table I.2-1).
_REFERENCED, _FAILED = "00081199", "00081198"
_REFERENCED_UID, _REASON, _WARNING = "00081155", "00081197", "00081196"

# What an HTTP status means when the body names no instance.
HTTP_OUTCOMES: Final[Mapping[int, tuple[ErrorKind, str]]] = {
    400: (ErrorKind.INVALID, "cannot understand the request"),
    401: (ErrorKind.FORBIDDEN, "does not accept who we say we are: look at the token"),
    403: (ErrorKind.FORBIDDEN, "does not allow us to store"),
    404: (ErrorKind.SETTING, "has no DICOMweb service under this URL"),
    405: (ErrorKind.SETTING, "takes no instances under this URL"),
    406: (ErrorKind.INVALID, "cannot answer in application/dicom+json"),
    409: (ErrorKind.INVALID, "refused the instance and does not say why"),
    411: (ErrorKind.INVALID, "takes no request without Content-Length"),
    413: (ErrorKind.EXHAUSTED, "finds the instance too large"),
    415: (ErrorKind.INVALID, "does not take this media type"),
    429: (ErrorKind.UNAVAILABLE, "asks us to wait"),
}


@dataclass(frozen=True)
class StowDestination:
    """A DICOMweb archive: its base URL, and how we say who we are.

    `authorize` returns the value of the Authorization header anew for each request,
    so that a renewed token counts at once; empty: none is sent.
    """

    name: str
    url: str
    authorize: Callable[[], str] = field(default=lambda: "", repr=False)
    tls: Callable[[], ssl.SSLContext] | None = None
    sr_sop_classes: tuple[str, ...] = SR_CLASSES
    connection_timeout_s: float = 10.0
    response_timeout_s: float = 120.0

    def __str__(self) -> str:
        return f"archive {self.name} at {self.url}"


def bearer_of(file: Path) -> Callable[[], str]:
    """Return what reads a bearer token from a file."""
    return lambda: f"Bearer {_secret(file)}"


def basic_of(user: str, password_file: Path) -> Callable[[], str]:
    """Return what makes an HTTP Basic header of a user and a password in a file."""

    def header() -> str:
        told = f"{user}:{_secret(password_file)}".encode()
        return f"Basic {base64.b64encode(told).decode()}"

    return header


def _secret(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError(
            f"{file.name} cannot be read ({type(error).__name__})", ErrorKind.SETTING
        ) from None


@dataclass
class StowSender:
    """Sends to one DICOMweb archive; what classes of documents it refuses is kept."""

    destination: StowDestination
    session: aiohttp.ClientSession
    pace: Pace | None = None
    refused: set[str] = field(default_factory=set)
    sleep: Callable[[float], Any] = asyncio.sleep
    commitment: bool = False

    async def send(
        self,
        part10: bytes,
        *,
        instance: StoredInstance | None = None,
        before: str | None = None,
    ) -> Sent:
        """Send a Part 10 file, as `delivery.Sender` promises.

        DICOMweb negotiates no classes: a document goes in the best class that was
        not refused so far, and on a refusal in the next.
        """
        forms = await asyncio.to_thread(self._forms, part10, before)
        for number, (sent, body) in enumerate(forms, start=1):
            try:
                await self._store(sent, body)
            except NodeError as error:
                last = number == len(forms)
                if error.kind is not ErrorKind.UNSUPPORTED or last:
                    raise
                self.refused.add(sent.sop_class_uid)
                log.info("stow.class_refused", sop_class_uid=sent.sop_class_uid)
            else:
                return sent
        raise NodeError(
            f"{self.destination} takes no Structured Report of any class",
            ErrorKind.UNSUPPORTED,
        )

    async def close(self) -> None:
        """Let go of nothing: the session belongs to the process."""

    def _forms(self, part10: bytes, before: str | None) -> list[tuple[Sent, bytes]]:
        """Return the instance in each class in which it may go, best first."""
        dataset = dcmread(BytesIO(part10), stop_before_pixels=True)
        own = str(dataset.SOPClassUID)
        as_it_is = [(Sent(own, str(dataset.SOPInstanceUID)), part10)]
        possible = [c for c in self.destination.sr_sop_classes if c not in self.refused]
        if own not in SR_CLASSES:
            if not possible or not names_documents(dataset):
                return as_it_is
            other = naming_documents_as(dcmread(BytesIO(part10)), possible[0])
            if str(other.SOPInstanceUID) == str(dataset.SOPInstanceUID):
                return as_it_is
            return [(Sent(own, str(other.SOPInstanceUID)), to_part10(other))]
        forms = []
        for sop_class_uid in possible:
            other = as_sop_class(dataset, sop_class_uid)
            body = part10 if other is dataset else to_part10(other)
            forms.append((Sent(sop_class_uid, str(other.SOPInstanceUID)), body))
        # Where it went before comes first, so that it is not there twice.
        return sorted(forms, key=lambda form: form[0].sop_instance_uid != before)

    async def _store(self, sent: Sent, part10: bytes) -> None:
        destination = self.destination
        boundary = _boundary(part10)
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=destination.connection_timeout_s,
            sock_read=destination.response_timeout_s,
        )
        headers = {
            "Content-Type": 'multipart/related; type="application/dicom";'
            f" boundary={boundary}",
            "Accept": _ACCEPT,
        }
        if authorization := destination.authorize():
            headers["Authorization"] = authorization
        try:
            async with self.session.post(
                f"{destination.url.rstrip('/')}/studies",
                data=self._body(part10, boundary),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                ssl=True if destination.tls is None else destination.tls(),
            ) as response:
                answer = await response.content.read(_MOST_ANSWER)
                _judge(response.status, answer, sent, destination)
        except aiohttp.ClientConnectorCertificateError as error:
            raise NodeError(
                f"{destination} shows no certificate that we trust",
                ErrorKind.UNAVAILABLE,
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise NodeError(
                f"{destination} does not answer", ErrorKind.UNAVAILABLE
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unconfirmed(
                f"{destination} did not confirm in time or went away"
            ) from error

    async def _body(self, part10: bytes, boundary: str) -> AsyncIterator[bytes]:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        view = memoryview(part10)
        for start in range(0, len(part10), _CHUNK):
            chunk = bytes(view[start : start + _CHUNK])
            yield chunk
            if self.pace is not None and (pause := self.pace.wait_s(len(chunk))):
                await self.sleep(pause)
        yield f"\r\n--{boundary}--\r\n".encode()


def _boundary(part10: bytes) -> str:
    """Return a boundary that does not occur in the data (PS3.18 8.6.1.2)."""
    while True:
        boundary = uuid4().hex
        if boundary.encode() not in part10:
            return boundary


def _judge(
    status: int, answer: bytes, sent: Sent, destination: StowDestination
) -> None:
    """Raise what the answer means; return when the instance has arrived."""
    if 300 <= status < 400:
        raise NodeError(
            f"{destination} sends us to another place ({status}): set the URL to it",
            ErrorKind.SETTING,
        )
    reason = _reason(answer, sent.sop_instance_uid)
    if reason is not None:
        kind, words = outcome(reason)
        if kind is None:
            return  # there already (0111), or stored with a warning
        raise NodeError(f"{destination} {words} ({reason:04X})", kind)
    if status in (200, 202):
        return
    kind, words = HTTP_OUTCOMES.get(
        status,
        (ErrorKind.UNAVAILABLE, "fails itself")
        if status >= 500
        else (ErrorKind.INVALID, "refuses the request"),
    )
    raise NodeError(f"{destination} {words} (HTTP {status})", kind)


def _reason(answer: bytes, sop_instance_uid: str) -> int | None:
    """Return the Failure Reason of our instance, None when the answer names none."""
    try:
        told = json.loads(answer)
        failed = told.get(_FAILED, {}).get("Value", [])
        for item in failed:
            uid = item.get(_REFERENCED_UID, {}).get("Value", [sop_instance_uid])[0]
            if uid == sop_instance_uid:
                return int(item[_REASON]["Value"][0])
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return None  # no JSON, or not as PS3.18 has it: the HTTP status counts
    return None
