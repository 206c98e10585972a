"""The audit trail on its way to an ATNA repository: syslog over TLS (IHE ITI-20).

Each entry is a DICOM audit message (PS3.15 A.5) in a syslog message (RFC 5424), framed
by its length (RFC 5425). Syslog has no answer, so a batch is a connection: we end it,
and the repository's own end of it says that it has read all of it: one that stops with
bytes unread resets the connection. Only then the feed goes on. What was sent before a
failure is sent again: at least once, in the order of the chain.
"""

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as Xml

import structlog

from node.domain.audit import AuditEntry
from node.domain.audit_codes import MEANINGS, Act, act_of, code_of, patients_of
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, audit_feeds
from node.store.audit import Recorded
from node.store.store import Store

FEED = "syslog"
BATCH = 500
TIMEOUT_S = 30.0
LEASE = timedelta(seconds=120)
_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(minutes=1)
# authpriv, notice (RFC 5424 6.2.1), as ATNA asks.
_PRIORITY = 10 * 8 + 5
_MESSAGE_ID = "DICOM+RFC3881"
# Receivers need not take longer messages than 8192 bytes (RFC 5425 4.3.1).
_PATIENTS_IN_ONE = 12
# The state of a TCP connection whose other side has ended (Linux, tcp(7)).
_CLOSE_WAIT = 8
_NOT_XML = re.compile("[^\t\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_HEADER = re.compile(r"[^\x21-\x7e]")

log = structlog.get_logger("audit")


@dataclass(frozen=True)
class Repository:
    """An ATNA repository. `context` makes the TLS context anew for each connection.

    With `needs_receipt` only TLS's own end (close_notify) counts, which rsyslog, for
    one, does not send.
    """

    host: str
    port: int
    context: Callable[[], ssl.SSLContext]
    needs_receipt: bool = False

    @classmethod
    def of_files(
        cls,
        host: str,
        port: int,
        *,
        trusted: Path | None,
        certificate: Path | None,
        key: Path | None,
        needs_receipt: bool,
    ) -> "Repository":
        """Return a repository whose certificates are read anew for each connection."""

        def context() -> ssl.SSLContext:
            made = ssl.create_default_context(cafile=trusted)
            made.minimum_version = ssl.TLSVersion.TLSv1_2
            if certificate is not None:
                made.load_cert_chain(certificate, key)
            return made

        return cls(host, port, context, needs_receipt)

    def check(self) -> None:
        """Raise SETTING when a file cannot be used."""
        try:
            self.context()
        except (OSError, ValueError) as error:
            raise NodeError(
                "audit.syslog: ca, certificate or key cannot be used"
                f" ({getattr(error, 'strerror', None) or type(error).__name__})",
                ErrorKind.SETTING,
            ) from None


class Unconfirmed(NodeError):
    """The repository did not take a batch, or did not say so."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the audit repository: {why}", ErrorKind.UNAVAILABLE)


# --- sending ----------------------------------------------------------------------


class SyslogFeed:
    """Sends what the repository has not confirmed yet."""

    def __init__(
        self, store: Store, repository: Repository, source: str, host_name: str
    ) -> None:
        self._store = store
        self._repository = repository
        self._source = source
        self._host_name = host_name
        self._pause = _FIRST_PAUSE

    async def send(self) -> int:
        """Send batch after batch until nothing is left; return how many entries.

        While the repository is away the next attempt waits, longer each time.
        """
        sent, clock = 0, self._store.clock
        async with self._store.db.transaction() as tx:
            after = await audit_feeds.claim(tx, FEED, now=clock(), lease=LEASE)
        if after is None:
            return 0
        while True:
            async with self._store.db.connection() as connection:
                batch = await audit.following(connection, after, BATCH)
                if not batch:
                    await audit_feeds.release(connection, FEED)
                    return sent
            lines = [
                line
                for one in batch
                for line in syslog_messages(one, self._source, self._host_name)
            ]
            try:
                await asyncio.to_thread(deliver, self._repository, lines)
            except Unconfirmed as error:
                await self._hold(error)
                return sent
            sent += len(batch)
            after = batch[-1].sequence
            self._pause = _FIRST_PAUSE
            async with self._store.db.transaction() as tx:
                await audit_feeds.confirm(
                    tx, FEED, after, now=clock(), held_until=clock() + LEASE
                )

    async def _hold(self, error: Unconfirmed) -> None:
        now = self._store.clock()
        log.warning("audit.feed_waits", error=error.message)
        async with self._store.db.transaction() as tx:
            until = now + self._pause
            await audit_feeds.hold(tx, FEED, error.message, now=now, until=until)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def deliver(repository: Repository, messages: Sequence[bytes]) -> None:
    """Send messages over one connection; Unconfirmed unless all were read. Blocks."""
    try:
        with socket.create_connection(
            (repository.host, repository.port), TIMEOUT_S
        ) as raw:
            context = repository.context()
            with context.wrap_socket(raw, server_hostname=repository.host) as secured:
                for message in messages:
                    secured.sendall(b"%d %b" % (len(message), message))
                _await_receipt(repository, secured)
    except (OSError, ValueError) as error:
        raise Unconfirmed(_why(error)) from None


def _await_receipt(repository: Repository, secured: ssl.SSLSocket) -> None:
    """End our side, and wait until the other side has ended its own."""
    state = secured.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    if state == _CLOSE_WAIT:
        raise Unconfirmed("ended the connection before we did")
    try:
        secured.unwrap().close()
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        if repository.needs_receipt:
            raise Unconfirmed("ended the connection without close_notify") from None


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or type(error).__name__})"
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be reached ({error.strerror})"
    return f"cannot be reached ({type(error).__name__})"


# --- the messages -----------------------------------------------------------------


def syslog_messages(recorded: Recorded, source: str, host_name: str) -> Iterator[bytes]:
    """Yield the syslog messages of an entry (RFC 5424 6), one for some patients each.

    The message begins with a byte order mark, as text in UTF-8 does there.
    """
    at = recorded.entry.at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    host = _NOT_HEADER.sub("", host_name)[:255] or "-"
    head = f"<{_PRIORITY}>1 {at} {host} sononode {recorded.sequence} {_MESSAGE_ID} - "
    for message in audit_messages(recorded, source):
        yield head.encode() + b"\xef\xbb\xbf" + message


def audit_messages(recorded: Recorded, source: str) -> Iterator[bytes]:
    """Yield the DICOM audit messages of an entry in XML (PS3.15 A.5.1)."""
    patients = patients_of(recorded.entry)
    for first in range(0, max(1, len(patients)), _PATIENTS_IN_ONE):
        some = patients[first : first + _PATIENTS_IN_ONE]
        yield Xml.tostring(_message(recorded, source, some), encoding="utf-8")


def _message(recorded: Recorded, source: str, patients: Sequence[str]) -> Xml.Element:
    entry, act = recorded.entry, act_of(recorded.entry.action)
    message = Xml.Element("AuditMessage")
    event = _add(
        message,
        "EventIdentification",
        EventActionCode=act.letter,
        EventDateTime=_time(entry.at),
        EventOutcomeIndicator=entry.outcome.value,
    )
    _code(event, "EventID", act.code, "DCM", act.meaning)
    if act.subtype is not None:
        _code(event, "EventTypeCode", act.subtype, "DCM", MEANINGS[act.subtype])
    _code(event, "EventTypeCode", code_of(entry.action), "99SONONODE", entry.action)
    if reason := entry.detail.get("reason"):
        _add(event, "EventOutcomeDescription").text = _text(reason)
    _participants(message, entry, act, source)
    _add(message, "AuditSourceIdentification", AuditSourceID=source)
    _objects(message, recorded, patients)
    return message


def _participants(
    message: Xml.Element, entry: AuditEntry, act: Act, source: str
) -> None:
    client, server = ("110153", "Source Role ID"), ("110152", "Destination Role ID")
    if act.letter == "R":
        client, server = server, client
    address = entry.detail.get("address", "")
    network = (
        {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": "2"}
        if address
        else {}
    )
    told = {"UserID": entry.actor or "unknown", "UserIsRequestor": "true", **network}
    if other := entry.detail.get("client"):
        told["AlternativeUserID"] = other
    caller = _add(message, "ActiveParticipant", **told)
    _code(caller, "RoleIDCode", client[0], "DCM", client[1])
    for role in entry.role.split(","):
        if role:
            _code(caller, "RoleIDCode", role, "99SONONODE", role)
    node = _add(message, "ActiveParticipant", UserID=source, UserIsRequestor="false")
    _code(node, "RoleIDCode", server[0], "DCM", server[1])


def _objects(message: Xml.Element, recorded: Recorded, patients: Sequence[str]) -> None:
    entry = recorded.entry
    for patient in patients:
        told = _object(message, patient, ("1", "1"), ("2", "Patient Number"))
        _add(told, "ParticipantObjectName").text = patient
    query = entry.detail.get("query")
    if query is not None:
        told = _object(message, entry.entity, ("2", "24"), ("10", "Search Criteria"))
        _add(told, "ParticipantObjectQuery").text = _base64(query)
    elif entry.entity:
        kind = ("110180", "Study Instance UID", "DCM")
        uri = ("12", "URI", "RFC-3881")
        of_study = entry.entity.startswith("study/")
        name = entry.entity.removeprefix("study/") if of_study else entry.entity
        told = _object(
            message, name, ("2", "3" if of_study else "4"), kind if of_study else uri
        )
        _add(told, "ParticipantObjectName").text = _text(entry.entity)
        _pairs(told, entry.detail)
    # With these the repository proves that nothing was taken out between.
    place = _object(message, str(recorded.sequence), ("2", "13"), ("12", "URI"))
    _add(place, "ParticipantObjectName").text = "place in the audit chain"
    _pairs(
        place,
        {
            "hash": recorded.hash.hex(),
            "previous_hash": recorded.previous_hash.hex(),
            **(entry.detail if query is not None else {}),
        },
    )


def _object(
    message: Xml.Element,
    id_: str,
    role: tuple[str, str],
    kind: tuple[str, ...],
) -> Xml.Element:
    told = _add(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=id_,
        ParticipantObjectTypeCode=role[0],
        ParticipantObjectTypeCodeRole=role[1],
    )
    system = kind[2] if len(kind) > 2 else "RFC-3881"
    _code(told, "ParticipantObjectIDTypeCode", kind[0], system, kind[1])
    return told


def _pairs(parent: Xml.Element, told: Mapping[str, str]) -> None:
    for key, value in sorted(told.items()):
        if key not in ("patients", "query", "address", "client", "reason") and value:
            _add(parent, "ParticipantObjectDetail", type=key, value=_base64(value))


def _code(parent: Xml.Element, name: str, code: str, system: str, meaning: str) -> None:
    attributes = {"csd-code": code, "codeSystemName": system, "originalText": meaning}
    _add(parent, name, **attributes)


def _add(parent: Xml.Element, name: str, **attributes: str) -> Xml.Element:
    return Xml.SubElement(
        parent, name, {key: _text(value) for key, value in attributes.items()}
    )


def _text(value: str) -> str:
    """Return one line of text that XML 1.0 can hold; other signs become U+FFFD.

    A repository that keeps lines must not be made to keep two of one.
    """
    return _NOT_XML.sub("\ufffd", " ".join(value.splitlines()))


def _base64(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _time(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")
