"""Instances to an archive by C-STORE (PS3.4 B).

pynetdicom works in threads of its own, so the event loop never waits for a peer. An
association is kept for a moment: the next instance of a study follows at once.
Whatever an archive answers ends as done, as an error worth another try, or as one
that only people can mend, told in a line that they understand.
"""

from __future__ import annotations

import asyncio
import copy
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from dicom_scp.receiving.intake import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_scp.receiving.scp import quiet_pynetdicom
from dicom_scp.receiving.tls import WrapsSockets
from dicom_scp.results.sr import (
    SR_CLASSES,
    as_sop_class,
    names_documents,
    naming_documents_as,
)
from dicom_scp.sending.delivery import Pace, Sent, Unconfirmed
from dicom_scp.services.transcode import NATIVE, encoded_for
from node.domain.errors import ErrorKind, NodeError
from node.imaging import BytesReader

if TYPE_CHECKING:
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

KEEP_S: Final = 2.0
_LOOK_S: Final = 0.5
_MOST_CONTEXTS: Final = 128  # PS3.8 9.3.2.2: odd numbers of one byte
_OFTEN: Final = (
    str(UltrasoundImageStorage),
    str(UltrasoundMultiFrameImageStorage),
    str(SecondaryCaptureImageStorage),
)
PROPOSED_SYNTAXES: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))

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
    context, None for an unencrypted connection. With `commitment` it is asked to
    commit itself to what it stored (PS3.4 J); an archive that reports on the same
    association does so within `commitment_wait_s`.
    """

    ae_title: str
    host: str
    port: int
    calling_ae_title: str = "SONONODE"
    sr_sop_classes: tuple[str, ...] = SR_CLASSES
    tls: WrapsSockets | None = None
    commitment: bool = False
    commitment_wait_s: float = 2.0
    connection_timeout_s: float = 10.0
    association_timeout_s: float = 15.0
    response_timeout_s: float = 120.0

    def __str__(self) -> str:
        return f"archive {self.ae_title} at {self.host}:{self.port}"


@dataclass
class _Line:
    """An association that is kept, what was offered on it, and since when it rests."""

    association: Association
    offered: frozenset[tuple[str, str]]
    rests_since: float = 0.0
    used: bool = False


@dataclass
class DimseSender:
    """Sends to one archive; one association carries what follows within `keep_s`.

    The associations together leave no faster than `pace` allows.
    """

    destination: Destination
    pace: Pace | None = None
    keep_s: float = KEEP_S
    opened: int = 0
    _resting: list[_Line] = field(default_factory=list)
    _wanted: set[tuple[str, str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def commitment(self) -> bool:
        """Tell whether the archive is asked to commit itself to what it got."""
        return self.destination.commitment

    async def send(
        self,
        part10: bytes,
        *,
        instance: StoredInstance | None = None,
        before: str | None = None,
    ) -> Sent:
        """Send a Part 10 file, as `delivery.Sender` promises."""
        sent = await asyncio.to_thread(
            self.send_part10, part10, instance=instance, before=before
        )
        loop = asyncio.get_running_loop()
        loop.call_later(self.keep_s, lambda: loop.run_in_executor(None, self._tidy))
        return sent

    async def close(self) -> None:
        """Release what is kept."""
        await asyncio.to_thread(self._tidy, everything=True)

    def send_part10(
        self,
        part10: bytes,
        *,
        instance: StoredInstance | None = None,
        before: str | None = None,
    ) -> Sent:
        """Send a Part 10 file. Blocks."""
        dataset: Dataset = dcmread(BytesIO(part10))
        pairs = _pairs(dataset, self.destination)
        doubt: Unconfirmed | None = None
        while True:
            try:
                line = self._take(pairs)
                return self._send_over(line, dataset, part10, instance, before)
            except Unconfirmed as error:
                # A line that rested may have been closed by the archive meanwhile:
                # that is no failure. The same UID arrives at most once more.
                if not line.used:
                    raise
                doubt = error
            except NodeError as error:
                if doubt is None:
                    raise
                raise doubt from error

    def _send_over(
        self,
        line: _Line,
        dataset: Dataset,
        part10: bytes,
        instance: StoredInstance | None,
        before: str | None,
    ) -> Sent:
        try:
            if instance is not None:
                dataset = _readable(dataset, part10, line, instance)
            return self._store(dataset, line, len(part10), before)
        finally:
            self._put_back(line)

    def _take(self, pairs: Iterable[tuple[str, str]]) -> _Line:
        needed = frozenset(pairs)
        with self._lock:
            for line in self._resting:
                if needed <= line.offered and line.association.is_established:
                    self._resting.remove(line)
                    line.used = True
                    return line
            if len(needed | self._wanted) > _MOST_CONTEXTS:
                self._wanted.clear()
            self._wanted |= needed
            offered = frozenset(self._wanted)
            self.opened += 1
        # One syntax a context: an archive picks what it likes of several.
        contexts = [build_context(c, s) for c, s in sorted(offered)]
        handlers = [] if self.pace is None else [_slow_down(self.pace)]
        association = associate(self.destination, contexts, handlers=handlers)
        if self.pace is not None:
            # The idle timer counts from what was received last: at a slow pace it
            # would end an association in the middle of a cine.
            association.network_timeout = None
        return _Line(association, offered)

    def _put_back(self, line: _Line) -> None:
        if not line.association.is_established:
            return
        if not self.keep_s:
            line.association.release()
            return
        line.rests_since = time.monotonic()
        with self._lock:
            self._resting.append(line)

    def _tidy(self, *, everything: bool = False) -> None:
        """Release what has rested for `keep_s`."""
        latest = time.monotonic() - 0.9 * self.keep_s
        with self._lock:
            done = [
                line
                for line in self._resting
                if everything or line.rests_since <= latest
            ]
            self._resting = [line for line in self._resting if line not in done]
        for line in done:
            if line.association.is_established:
                line.association.release()

    def _store(
        self, dataset: Dataset, line: _Line, size: int, before: str | None
    ) -> Sent:
        association, destination = line.association, self.destination
        try:
            dataset = _as_accepted(dataset, association, destination, before)
            association.dimse_timeout = destination.response_timeout_s
            if self.pace is not None:
                association.dimse_timeout += size / self.pace.bytes_per_s
            response = association.send_c_store(dataset)
        except (ValueError, RuntimeError) as error:
            # pynetdicom says so when the peer left or no accepted context fits.
            if not association.is_established:
                raise _unconfirmed(destination, "broke the association") from error
            raise NodeError(
                f"{destination} takes neither this class nor this transfer syntax",
                ErrorKind.UNSUPPORTED,
            ) from error
        _judge(response, destination)
        return Sent(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))


def send_part10(part10: bytes, destination: Destination) -> str:
    """Send one Part 10 file; return the SOP Instance UID under which it went.

    That is another one only for a document whose class the archive refuses:
    then it goes under the best class that it takes (`sr.as_sop_class`). Blocks.
    """
    return DimseSender(destination, keep_s=0).send_part10(part10).sop_instance_uid


def _pairs(dataset: Dataset, destination: Destination) -> list[tuple[str, str]]:
    """Return the pairs of class and transfer syntax that an instance may go under.

    What a study is made of is offered together, so that one association carries it.
    """
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    native = {*PROPOSED_SYNTAXES, str(DeflatedExplicitVRLittleEndian)}
    own = str(dataset.SOPClassUID)
    documents = [c for c in destination.sr_sop_classes if c in SR_CLASSES]
    classes: Iterable[str] = (own,)
    if own in SR_CLASSES:
        classes = documents or [own]
    elif names_documents(dataset):
        classes = (own, *documents)
    if own in _OFTEN:
        classes = dict.fromkeys((*classes, *_OFTEN, *documents))
    pairs = [(c, s) for c in classes for s in PROPOSED_SYNTAXES]
    return pairs if syntax in native else [*pairs, (own, syntax)]


def _readable(
    dataset: Dataset, part10: bytes, line: _Line, instance: StoredInstance
) -> Dataset:
    """Return the instance in a transfer syntax that the archive accepted for it.

    It stays as it is where no syntax of its class was accepted: that is the
    archive's refusal, and told as such.
    """
    accepted = [
        str(context.transfer_syntax[0])
        for context in line.association.accepted_contexts
        if context.abstract_syntax == instance.sop_class_uid
    ]
    stored = str(dataset.file_meta.TransferSyntaxUID)
    if not accepted or stored in accepted or stored in NATIVE:
        return dataset  # pynetdicom itself writes one native syntax as another
    encoded = encoded_for(BytesReader(part10), instance, accepted)
    meta = copy.deepcopy(dataset.file_meta)
    meta.TransferSyntaxUID = UID(encoded.transfer_syntax_uid)
    file = DicomBytesIO()
    file.write(bytes(128) + b"DICM")
    write_file_meta_info(file, meta)
    for chunk in encoded.chunks:
        file.write(chunk)
    return dcmread(BytesIO(file.getvalue()))


def _slow_down(pace: Pace) -> tuple[Any, Callable[[evt.Event], None]]:
    """Return a handler that holds up the next PDU until the line is free again."""
    return evt.EVT_DATA_SENT, lambda event: time.sleep(pace.wait_s(len(event.data)))


def associate(
    destination: Destination,
    contexts: list[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[Any] = (),
) -> Association:
    """Return an established association. Blocks.

    Raises NodeError: UNAVAILABLE when nobody answers or wants us just now,
    FORBIDDEN and UNSUPPORTED when the peer says no for good.
    """
    quiet_pynetdicom()
    ae = AE(ae_title=destination.calling_ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION
    ae.connection_timeout = destination.connection_timeout_s
    ae.acse_timeout = destination.association_timeout_s
    ae.dimse_timeout = destination.response_timeout_s
    ae.network_timeout = destination.response_timeout_s
    tls: Any = destination.tls  # pynetdicom only asks it to wrap the socket
    association = ae.associate(
        destination.host,
        destination.port,
        contexts=contexts,
        ae_title=destination.ae_title,
        max_pdu=0,
        tls_args=None if tls is None else (tls, destination.host),
        ext_neg=list(roles),
        evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once), *handlers],
    )
    if association.is_established:
        _wait_no_longer_than_it_lives(association)
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


def _wait_no_longer_than_it_lives(association: Association) -> None:
    """End the wait for an answer when the connection has gone.

    pynetdicom waits as long as the DIMSE timeout for an archive that dies in the
    middle of a message: its thread ends, and nobody tells the one that waits.
    """
    dimse: Any = association.dimse

    def get_msg(block: bool = False) -> tuple[int | None, Any]:
        timeout_s = dimse.dimse_timeout
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            alive = association.dul.is_alive()
            with suppress(queue.Empty):
                answer: tuple[int | None, Any] = dimse.msg_queue.get(
                    block and alive, timeout=_LOOK_S
                )
                return answer
            if not block or not alive:
                return None, None
            if until is not None and time.monotonic() > until:
                return None, None

    dimse.get_msg = get_msg


def _rejected(association: Association, destination: Destination) -> NodeError:
    answer: Any = association.acceptor.primitive
    told = (answer.result, answer.result_source, answer.diagnostic)
    words = {
        (1, 1, 1): "rejects us without a reason: enter"
        f" {destination.calling_ae_title} and the address of this machine there",
        (1, 1, 3): f"does not know the calling AE title {destination.calling_ae_title}:"
        " enter it there, with the address of this machine",
        (1, 1, 7): f"does not go by the AE title {destination.ae_title}:"
        " set ae_title to its own",
        (2, 3, 1): "has no room for an association just now",
        (2, 3, 2): "has as many associations as it allows",
    }.get(told, f"rejects the association ({told[0]}, {told[1]}, {told[2]})")
    final = answer.result == _REJECTED_FOR_GOOD
    kind = ErrorKind.FORBIDDEN if final else ErrorKind.UNAVAILABLE
    return NodeError(f"{destination} {words}", kind)


def _as_accepted(
    dataset: Dataset,
    association: Association,
    destination: Destination,
    before: str | None,
) -> Dataset:
    """Return the instance as the archive takes it.

    A document goes in the best class that was accepted, or in the one in which it
    went `before`. What names documents names them as they went.
    """
    own = str(dataset.SOPClassUID)
    document = own in SR_CLASSES
    if not document and not names_documents(dataset):
        return dataset
    accepted = {str(c.abstract_syntax) for c in association.accepted_contexts}
    make = as_sop_class if document else naming_documents_as
    possible = [make(dataset, c) for c in destination.sr_sop_classes if c in accepted]
    if not possible:
        if not document:
            return dataset
        raise NodeError(
            f"{destination} takes no Structured Report of any class",
            ErrorKind.UNSUPPORTED,
        )
    chosen = next((d for d in possible if str(d.SOPInstanceUID) == before), possible[0])
    if chosen is not dataset:
        chosen.file_meta.MediaStorageSOPClassUID = chosen.SOPClassUID
        chosen.file_meta.MediaStorageSOPInstanceUID = chosen.SOPInstanceUID
    return chosen


def _judge(response: Dataset, destination: Destination) -> None:
    """Raise what the C-STORE response status means; return when it has arrived."""
    if "Status" not in response:
        raise _unconfirmed(destination, "did not confirm in time or went away")
    status = int(response.Status)
    kind, words = outcome(status)
    if kind is not None:
        raise NodeError(f"{destination} {words} ({status:04X})", kind)
    if status:
        log.warning("scu.warning", status=f"{status:04X}", destination=str(destination))


def outcome(status: int) -> tuple[ErrorKind | None, str]:
    """Return what becomes of an instance that was answered so, and in words."""
    for low, high, kind, words in SEND_OUTCOMES:
        if low <= status <= high:
            return kind, words
    return ErrorKind.INVALID, "answered with an unknown status"


def _away(destination: Destination, words: str) -> NodeError:
    return NodeError(f"{destination} {words}", ErrorKind.UNAVAILABLE)


def _unconfirmed(destination: Destination, words: str) -> Unconfirmed:
    return Unconfirmed(f"{destination} {words}")
