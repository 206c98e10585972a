"""The trail at an ATNA repository: RFC 5424 and 5425, PS3.15 A.5, at least once."""

import base64
import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree as Xml

import pytest

from node.atna import (
    FEED,
    Repository,
    SyslogFeed,
    Unconfirmed,
    audit_messages,
    deliver,
    syslog_messages,
)
from node.domain.audit import GENESIS, AuditEntry, Outcome
from node.domain.errors import NodeError
from node.store import audit, audit_feeds
from node.store.audit import Recorded
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.dicom_scp.sending.test_scu import make_certificate
from tests.factories import NOW

HEADER = re.compile(
    rb"<85>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (\S+) sononode (\d+)"
    rb" DICOM\+RFC3881 - \xef\xbb\xbf(<AuditMessage.*)",
    re.DOTALL,
)


@dataclass
class Receiver:
    """A syslog receiver as RFC 5425 has it: counts octets, ends with close_notify."""

    context: ssl.SSLContext
    listening: socket.socket
    messages: list[bytes] = field(default_factory=list)
    dies_after: int | None = None
    rude: bool = False

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def serve(self) -> None:
        while True:
            try:
                raw, _ = self.listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError, ValueError):
                self._take(raw)

    def _take(self, raw: socket.socket) -> None:
        with self.context.wrap_socket(raw, server_side=True) as secured:
            reader = secured.makefile("rb")
            while length := _length(reader):
                self.messages.append(reader.read(length))
                if self.dies_after == len(self.messages):
                    self.dies_after = None
                    reader.close()  # as a killed process: with bytes unread
                    return
            if not self.rude:
                secured.unwrap()


def _length(reader: object) -> int:
    digits = b""
    while (sign := reader.read(1)).isdigit():  # type: ignore[attr-defined]
        digits += sign
    assert sign in (b" ", b"")
    return int(digits or b"0")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Receiver(context, listening)
        thread = threading.Thread(target=made.serve, daemon=True)
        thread.start()
        yield made
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@pytest.fixture
def repository(receiver: Receiver, tmp_path: Path) -> Repository:
    return Repository.of_files(
        "127.0.0.1",
        receiver.port,
        trusted=tmp_path / "archive.pem",
        certificate=None,
        key=None,
        needs_receipt=False,
    )


def feed(store: Store, repository: Repository) -> SyslogFeed:
    return SyslogFeed(store, repository, "sononode NODE", "node.hospital")


def entry(number: int, **changes: object) -> AuditEntry:
    made = AuditEntry(
        NOW, "dr-li", "radiologist", "fhir read", f"DiagnosticReport/{number}"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


async def record(store: Store, first: int, last: int) -> None:
    async with store.db.connection() as connection:
        await audit.append(connection, [entry(n) for n in range(first, last + 1)])


def numbers(receiver: Receiver) -> list[int]:
    told = []
    for message in receiver.messages:
        match = HEADER.fullmatch(message)
        assert match is not None, message
        told.append(int(match[3]))
    return told


async def test_every_entry_arrives_once_and_in_order(
    store: Store, receiver: Receiver, repository: Repository
) -> None:
    await record(store, 1, 1200)
    assert await feed(store, repository).send() == 1200
    assert numbers(receiver) == list(range(1, 1201))
    await record(store, 1201, 1203)
    assert await feed(store, repository).send() == 3
    assert await feed(store, repository).send() == 0
    assert numbers(receiver)[-3:] == [1201, 1202, 1203]


async def test_what_a_dying_repository_may_not_have_read_is_sent_again(
    store: Store, receiver: Receiver, repository: Repository, clock: FrozenClock
) -> None:
    await record(store, 1, 20)
    receiver.dies_after = 7
    sending = feed(store, repository)
    assert await sending.send() == 0
    assert await sending.send() == 0  # it waits
    clock.advance(seconds=3)
    assert await sending.send() == 20
    told = numbers(receiver)
    assert told[7:] == list(range(1, 21))
    async with store.db.connection() as connection:
        kept = await audit_feeds.find(connection, FEED)
    assert kept is not None
    assert (kept.sequence, kept.trouble, kept.trouble_since) == (20, "", None)


async def test_a_repository_that_is_away_for_days_loses_nothing(
    store: Store, receiver: Receiver, repository: Repository, clock: FrozenClock
) -> None:
    await record(store, 1, 5)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    sending = feed(store, replace(repository, port=port))
    since = clock.now
    for _ in range(20):
        assert await sending.send() == 0
        clock.advance(seconds=4 * 3600)
    async with store.db.connection() as connection:
        kept = await audit_feeds.find(connection, FEED)
    assert kept is not None
    assert (
        kept.trouble == "the audit repository: cannot be reached (Connection refused)"
    )
    assert kept.trouble_since == since
    assert await feed(store, repository).send() == 5
    assert numbers(receiver) == [1, 2, 3, 4, 5]


async def test_a_sender_that_was_killed_is_followed_by_another(
    store: Store, receiver: Receiver, repository: Repository, clock: FrozenClock
) -> None:
    await record(store, 1, 3)
    async with store.db.transaction() as tx:  # it took hold and was killed
        lease = timedelta(seconds=120)
        assert await audit_feeds.claim(tx, FEED, now=clock(), lease=lease) == 0
    assert await feed(store, repository).send() == 0
    clock.advance(seconds=121)
    assert await feed(store, repository).send() == 3
    assert numbers(receiver) == [1, 2, 3]


def test_a_bare_end_is_a_receipt_unless_the_site_wants_more(
    receiver: Receiver, repository: Repository
) -> None:
    receiver.rude = True
    deliver(repository, [b"x"])
    with pytest.raises(Unconfirmed, match="without close_notify"):
        deliver(replace(repository, needs_receipt=True), [b"x"])


def test_a_repository_with_another_certificate_gets_nothing(
    receiver: Receiver,
) -> None:
    stranger = Repository("127.0.0.1", receiver.port, ssl.create_default_context)
    with pytest.raises(Unconfirmed, match="certificate is refused"):
        deliver(stranger, [b"secret"])
    assert receiver.messages == []


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    repository = Repository.of_files(
        "h",
        6514,
        trusted=tmp_path / "none.pem",
        certificate=None,
        key=None,
        needs_receipt=True,
    )
    with pytest.raises(NodeError, match="ca, certificate or key"):
        repository.check()


# --- the message --------------------------------------------------------------------


def recorded(made: AuditEntry) -> Recorded:
    return Recorded(7, made, GENESIS, b"\xab" * 32)


def message(made: AuditEntry) -> Xml.Element:
    (told,) = audit_messages(recorded(made), "sononode NODE")
    return Xml.fromstring(told)


def test_a_read_in_the_words_of_dicom() -> None:
    patient = UUID(int=5, version=4)
    told = message(
        entry(
            1,
            detail={
                "address": "10.0.0.7",
                "client": "client-1",
                "patients": str(patient),
                "request": "r1",
            },
        )
    )
    event = told.find("EventIdentification")
    assert event is not None
    assert event.attrib == {
        "EventActionCode": "R",
        "EventDateTime": NOW.isoformat(timespec="microseconds"),
        "EventOutcomeIndicator": "0",
    }
    assert event.find("EventID").attrib == {  # type: ignore[union-attr]
        "csd-code": "110110",
        "codeSystemName": "DCM",
        "originalText": "Patient Record",
    }
    caller, node = told.findall("ActiveParticipant")
    assert caller.attrib == {
        "UserID": "dr-li",
        "AlternativeUserID": "client-1",
        "UserIsRequestor": "true",
        "NetworkAccessPointID": "10.0.0.7",
        "NetworkAccessPointTypeCode": "2",
    }
    roles = [code.attrib["csd-code"] for code in caller.findall("RoleIDCode")]
    assert roles == ["110152", "radiologist"]
    assert node.find("RoleIDCode").attrib["csd-code"] == "110153"  # type: ignore[union-attr]
    objects = told.findall("ParticipantObjectIdentification")
    assert [one.attrib["ParticipantObjectTypeCodeRole"] for one in objects] == [
        "1",
        "4",
        "13",
    ]
    assert objects[0].attrib["ParticipantObjectID"] == str(patient)
    for one in objects:  # the schema wants a name or a query, and the type first
        assert one[0].tag == "ParticipantObjectIDTypeCode"
        assert one[1].tag in ("ParticipantObjectName", "ParticipantObjectQuery")
    details = {
        d.attrib["type"]: base64.b64decode(d.attrib["value"]).decode()
        for d in objects[2].findall("ParticipantObjectDetail")
    }
    assert details["hash"] == "ab" * 32


def test_hostile_words_stay_words() -> None:
    hostile = '"><x/>&\n<85>1 - forged\x00\ud800'.encode("utf-8", "replace").decode()
    made = entry(
        1,
        actor=hostile,
        role=hostile,
        action=hostile,
        entity=hostile,
        outcome=Outcome.REFUSED,
        detail={"reason": hostile, "query": hostile, "address": hostile, "x": hostile},
    )
    for line in syslog_messages(recorded(made), hostile, hostile):
        match = HEADER.fullmatch(line)
        assert match is not None
        assert b"\n" not in line
        assert b"\x00" not in line
        told = Xml.fromstring(match[4])
        assert told.tag == "AuditMessage"
        assert told.find("x") is None
        assert "forged" in told.findall("ActiveParticipant")[0].attrib["UserID"]


def test_many_patients_go_in_several_messages_that_receivers_can_take() -> None:
    patients = [str(UUID(int=n, version=4)) for n in range(1, 41)]
    made = entry(1, action="fhir search-type", detail={"patients": " ".join(patients)})
    lines = list(syslog_messages(recorded(made), "sononode", "host"))
    assert len(lines) == 4
    assert all(len(line) < 8192 for line in lines)
    assert sum(line.count(b'TypeCodeRole="1"') for line in lines) == len(patients)
