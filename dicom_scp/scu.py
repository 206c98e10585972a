"""The job `send_instance`: one stored instance to one archive by C-STORE (PS3.4 B).

pynetdicom works in a thread of its own, so the event loop never waits for a peer.
Whatever an archive answers ends as done, as an error worth another try, or as one
that only people can mend, told in a line that they understand.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from dicom_scp.intake import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_scp.scp import quiet_pynetdicom
from dicom_scp.sr import SR_CLASSES, as_sop_class
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, studies

if TYPE_CHECKING:
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

_UNCOMPRESSED: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))

# The conformance statement is generated from this table: first match counts.
# (low, high, what becomes of the job, words); None = the instance has arrived.
SEND_OUTCOMES: Final[tuple[tuple[int, int, ErrorKind | None, str], ...]] = (
    (0x0000, 0x0000, None, "stored"),
    (0xB000, 0xBFFF, None, "stored, with a warning"),
    (0x0111, 0x0111, None, "is there already"),
    (0x0110, 0x0110, ErrorKind.UNAVAILABLE, "failed while processing it"),
    (0x0122, 0x0122, ErrorKind.UNSUPPORTED, "does not take this class of object"),
    (0x0124, 0x0124, ErrorKind.FORBIDDEN, "does not allow us to store"),
    (0xA700, 0xA7FF, ErrorKind.EXHAUSTED, "is out of resources"),
    (0xA900, 0xA9FF, ErrorKind.INVALID, "says the object is not what was announced"),
    (0xC000, 0xCFFF, ErrorKind.INVALID, "cannot understand the object"),
)
_REJECTED_FOR_GOOD: Final = 0x01  # Result of A-ASSOCIATE-RJ (PS3.8 9.3.4)


@dataclass(frozen=True)
class Destination:
    """An archive: where it listens, how we introduce ourselves, and its limits.

    `sr_sop_classes` are the SR classes to try, best first. `tls` is a client
    context, None for an unencrypted connection.
    """

    ae_title: str
    host: str
    port: int
    calling_ae_title: str = "SONONODE"
    sr_sop_classes: tuple[str, ...] = SR_CLASSES
    tls: ssl.SSLContext | None = None
    connection_timeout_s: float = 10.0
    association_timeout_s: float = 15.0
    response_timeout_s: float = 120.0

    def __str__(self) -> str:
        return f"archive {self.ae_title} at {self.host}:{self.port}"


async def send_instance(
    store: Store,
    payload: Mapping[str, Any],
    destinations: Mapping[str, Destination],
) -> None:
    """Send one stored instance to the destination that the payload names.

    Raises NodeError: EXHAUSTED and UNAVAILABLE are worth another try, the other
    kinds are final. An instance that arrived twice is the same instance.
    """
    uid, name = payload["sop_instance_uid"], payload["destination"]
    destination = destinations.get(name)
    if destination is None:
        raise NodeError(
            f"there is no destination {name} in the settings", ErrorKind.SETTING
        )
    async with store.db.connection() as tx:
        instance = await studies.instance(tx, store, uid)
    if instance is None:
        raise NodeError(f"there is no instance {uid}", ErrorKind.NOT_FOUND)
    sent_as = await asyncio.to_thread(_send_stored, store, instance, destination)
    log.info("scu.sent", sop_instance_uid=uid, destination=name, sent_as=sent_as)
    async with store.db.transaction() as tx:
        await audit.record(
            tx,
            AuditEntry(
                at=store.clock(),
                actor="sononode",
                role="device",
                action="export",
                entity=f"instance/{uid}",
                detail={"destination": name, "sent_as": sent_as},
            ),
        )


def _send_stored(
    store: Store, instance: StoredInstance, destination: Destination
) -> str:
    with studies.open_blob(store, instance) as reader:
        part10 = reader.read()
    return send_part10(part10, destination)


def send_part10(part10: bytes, destination: Destination) -> str:
    """Send a Part 10 file; return the SOP Instance UID under which it went.

    That is another one only for a document whose class the archive refuses:
    then it goes under the best class that it takes (`sr.as_sop_class`). Blocks.
    """
    dataset: Dataset = dcmread(BytesIO(part10))
    association = _associate(destination, _contexts(dataset, destination))
    try:
        dataset = _as_accepted(dataset, association, destination)
        response = association.send_c_store(dataset)
        _judge(response, destination)
        return str(dataset.SOPInstanceUID)
    except (ValueError, RuntimeError) as error:
        # pynetdicom says so when the peer left or no accepted context fits.
        if not association.is_established:
            raise _away(destination, "broke the association") from error
        raise NodeError(
            f"{destination} takes neither this class nor this transfer syntax",
            ErrorKind.UNSUPPORTED,
        ) from error
    finally:
        if association.is_established:
            association.release()


def _contexts(dataset: Dataset, destination: Destination) -> list[PresentationContext]:
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    native = {*_UNCOMPRESSED, str(DeflatedExplicitVRLittleEndian)}
    syntaxes = list(_UNCOMPRESSED) if syntax in native else [syntax]
    own = str(dataset.SOPClassUID)
    classes: Sequence[str] = (own,)
    if own in SR_CLASSES:
        classes = [c for c in destination.sr_sop_classes if c in SR_CLASSES] or [own]
    # One syntax a context: an archive picks what it likes of several.
    return [build_context(c, s) for c in classes for s in syntaxes]


def _associate(
    destination: Destination, contexts: list[PresentationContext]
) -> Association:
    quiet_pynetdicom()
    ae = AE(ae_title=destination.calling_ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION
    ae.connection_timeout = destination.connection_timeout_s
    ae.acse_timeout = destination.association_timeout_s
    ae.dimse_timeout = destination.response_timeout_s
    ae.network_timeout = destination.response_timeout_s
    tls = destination.tls
    association = ae.associate(
        destination.host,
        destination.port,
        contexts=contexts,
        ae_title=destination.ae_title,
        max_pdu=0,
        tls_args=None if tls is None else (tls, destination.host),
        evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once)],
    )
    if association.is_established:
        return association
    if association.is_rejected:
        raise _rejected(association, destination)
    if association.is_aborted and association.acceptor.primitive is not None:
        raise NodeError(
            f"{destination} takes none of the offered classes", ErrorKind.UNSUPPORTED
        )
    secured = " or shows no certificate that we trust" if tls is not None else ""
    raise _away(destination, f"does not answer{secured}")


def send_at_once(event: evt.Event) -> None:
    """Set TCP_NODELAY: with Nagle's algorithm every message waits for an ACK."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _rejected(association: Association, destination: Destination) -> NodeError:
    answer: Any = association.acceptor.primitive
    told = (answer.result, answer.result_source, answer.diagnostic)
    words = {
        (1, 1, 3): f"does not know the calling AE title {destination.calling_ae_title}",
        (1, 1, 7): f"does not go by the AE title {destination.ae_title}",
    }.get(told, f"rejects the association ({told[0]}, {told[1]}, {told[2]})")
    final = answer.result == _REJECTED_FOR_GOOD
    kind = ErrorKind.FORBIDDEN if final else ErrorKind.UNAVAILABLE
    return NodeError(f"{destination} {words}", kind)


def _as_accepted(
    dataset: Dataset, association: Association, destination: Destination
) -> Dataset:
    """Return the document in the best class that the archive accepted."""
    own = str(dataset.SOPClassUID)
    if own not in SR_CLASSES:
        return dataset
    accepted = {str(c.abstract_syntax) for c in association.accepted_contexts}
    for sop_class_uid in destination.sr_sop_classes:
        if sop_class_uid in accepted:
            other = as_sop_class(dataset, sop_class_uid)
            if other is not dataset:
                other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
                other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
            return other
    raise NodeError(
        f"{destination} takes no Structured Report of any class", ErrorKind.UNSUPPORTED
    )


def _judge(response: Dataset, destination: Destination) -> None:
    """Raise what the C-STORE response status means; return when it has arrived."""
    if "Status" not in response:
        raise _away(destination, "did not confirm in time or went away")
    status = int(response.Status)
    kind, words = _outcome(status)
    if kind is not None:
        raise NodeError(f"{destination} {words} ({status:04X})", kind)
    if status:
        log.warning("scu.warning", status=f"{status:04X}", destination=str(destination))


def _outcome(status: int) -> tuple[ErrorKind | None, str]:
    for low, high, kind, words in SEND_OUTCOMES:
        if low <= status <= high:
            return kind, words
    return ErrorKind.INVALID, "answered with an unknown status"


def _away(destination: Destination, words: str) -> NodeError:
    return NodeError(f"{destination} {words}", ErrorKind.UNAVAILABLE)
