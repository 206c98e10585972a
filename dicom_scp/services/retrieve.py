"""C-MOVE and C-GET of the Patient Root and Study Root models (PS3.4 C.4.2, C.4.3).

pynetdicom decodes the request; the sub-operations are ours, so that a receiver gets the
very bytes that were stored where it takes their syntax, and an instance that it cannot
take is one failed sub-operation among the others. Whoever retrieves is audited before a
byte leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context

from dicom_scp.receiving.peers import ServiceName
from dicom_scp.sending.scu import Destination, associate, outcome
from dicom_scp.services.answers import NotAnIdentifier, read_identifier
from dicom_scp.services.query import PEER_ROLE
from dicom_scp.services.query_model import (
    GET_MODELS,
    MOVE_MODELS,
    PATIENT_ID,
    Asked,
    Level,
    failure,
    read_asked,
    require_retrievable,
)
from dicom_scp.services.service import Service
from dicom_scp.services.sub_operations import Broken, Originator, StoreChannel
from dicom_scp.services.transcode import encoded_for, reachable
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, catalogue, studies

if TYPE_CHECKING:
    from dicom_scp.receiving.intake import StoreThread
    from dicom_scp.receiving.upper_layer import Acceptor
    from node.store.catalogue import Retrievable
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
CANCELLED: Final = 0xFE00
SOME_FAILED: Final = 0xB000
NONE_DONE: Final = 0xA702  # Out of resources: unable to perform sub-operations
NOT_COUNTABLE: Final = 0xA701
UNKNOWN_DESTINATION: Final = 0xA801
UNFORESEEN: Final = 0xC002
MOST_INSTANCES: Final = 0xFFFF  # counts are unsigned shorts
MOST_CONTEXTS: Final = 128
DATABASE_TIMEOUT_S: Final = 60.0
PAGE: Final = 500

# The conformance statement is generated from this table.
RETRIEVE_STATUS: Final = {
    ErrorKind.INVALID: 0xA900,  # Identifier does not match SOP Class
    ErrorKind.EXHAUSTED: NOT_COUNTABLE,
    ErrorKind.UNAVAILABLE: NOT_COUNTABLE,
    ErrorKind.NOT_FOUND: UNKNOWN_DESTINATION,
}


@dataclass(frozen=True)
class RetrieveSettings:
    """Where instances may go, and how.

    `destinations` are the peers that we can reach, by AE title. `relational` and
    `rejected_too` as for queries; `answer_s` is how long a receiver may take over one
    instance.
    """

    ae_title: str = "SONONODE"
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    relational: bool = False
    rejected_too: bool = False
    answer_s: float = 60.0


def service(settings: RetrieveSettings) -> Service:
    """Return the retrieve service for peers that may use it."""
    syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    return Service(
        ServiceName.RETRIEVE,
        tuple(build_context(model, syntaxes) for model in (*MOVE_MODELS, *GET_MODELS)),
        handlers={},
        requests={
            C_MOVE: partial(_serve, settings, MOVE_MODELS),
            C_GET: partial(_serve, settings, GET_MODELS),
        },
    )


def _serve(
    settings: RetrieveSettings,
    models: Mapping[str, Sequence[Level]],
    acceptor: Acceptor,
    request: C_MOVE | C_GET,
    context: PresentationContext,
    thread: StoreThread,
) -> None:
    """Answer one request to its end."""
    levels = models[str(context.abstract_syntax)]
    retrieval = _Retrieval(settings, acceptor, request, context, thread)
    try:
        retrieval.run(levels)
    except NodeError as error:
        retrieval.refuse(error)
    except Exception as error:
        # What it says may quote a header.
        log.error("retrieve.failed", error=type(error).__name__)
        retrieval.end(UNFORESEEN)


@dataclass
class _Counts:
    """Sub-operations by what became of them, and which failed."""

    remaining: int = 0
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def add(self, uid: str, status: int | None) -> None:
        """Count one sub-operation by the status of its response; None: none came."""
        self.remaining -= 1
        if status is None or outcome(status)[0] is not None:
            self.failed += 1
            self.failed_uids.append(uid)
        elif status >> 12 == 0xB:
            self.warning += 1
        else:
            self.completed += 1

    @property
    def final_status(self) -> int:
        """Return the status of the final response (PS3.4 C.4.2.3.1, C.4.3.3.1)."""
        if not self.failed and not self.warning:
            return SUCCESS
        return SOME_FAILED if self.completed or self.warning else NONE_DONE


class _Retrieval:
    """One C-MOVE or C-GET."""

    def __init__(
        self,
        settings: RetrieveSettings,
        acceptor: Acceptor,
        request: C_MOVE | C_GET,
        context: PresentationContext,
        thread: StoreThread,
    ) -> None:
        self._settings = settings
        self._acceptor = acceptor
        self._request = request
        self._context = context
        self._thread = thread
        self._counts = _Counts()
        self._channel: StoreChannel | None = None
        self._given_up = False
        self._destination: Destination | None = None
        self._receiver = acceptor.calling_ae
        self._found: list[Retrievable] = []

    def run(self, levels: Sequence[Level]) -> None:
        """Find, audit and send; NodeError when nothing may or can be sent."""
        if isinstance(self._request, C_MOVE):
            self._destination = self._reached(self._request)
        identifier = read_identifier(
            self._request.Identifier or BytesIO(), self._syntax
        )
        asked = read_asked(identifier, levels, relational=self._settings.relational)
        require_retrievable(asked)
        self._found = self._find(asked)
        self._audit_begin(asked)
        self._counts.remaining = len(self._found)
        try:
            self._send_all()
        finally:
            self._close()
            self._audit_end()

    def refuse(self, error: NodeError) -> None:
        """Answer that nothing was done, and audit who was refused what."""
        status = failure(error, RETRIEVE_STATUS)
        entry = self._entry(
            f"ae/{self._receiver}",
            {"reason": error.message, "status": f"{status.Status:04X}"},
            Outcome.REFUSED,
        )
        self._thread.later(_recorded(self._thread.store, [entry]))
        self._respond(status.Status, error)

    def end(self, status: int) -> None:
        """Send a final response."""
        self._respond(status)

    # -- what and whereto -------------------------------------------------------------

    def _reached(self, request: C_MOVE) -> Destination:
        """Return the destination; one that the caller may not use is unknown to it."""
        title = str(request.MoveDestination or "").strip()
        self._receiver = title
        caller = self._acceptor.peer
        allowed = {caller.ae_title, *caller.move_to} if caller is not None else set()
        destination = self._settings.destinations.get(title)
        if destination is None or title not in allowed:
            raise NodeError("the move destination is unknown", ErrorKind.NOT_FOUND)
        return destination

    def _find(self, asked: Asked) -> list[Retrievable]:
        narrowing = asked.narrowing
        patient = asked.key(PATIENT_ID)
        found: list[Retrievable] = []
        after, more = None, True
        while more:
            page = self._call(
                catalogue.studies_page(self._store, narrowing, after=after, limit=PAGE)
            )
            after, more = page.last, page.more
            uids = [
                study.study_instance_uid
                for study in page.entries
                # The index folds case; the identity does not. Any number of hers is
                # hers: what a search finds by it can be had by it.
                if patient.universal
                or any(
                    row.identity.patient_id in patient.values
                    for row in study.patient.rows
                )
            ]
            found += self._call(
                catalogue.retrievable(
                    self._store,
                    narrowing,
                    uids,
                    rejected_too=self._settings.rejected_too,
                )
            )
            if len(found) > MOST_INSTANCES:
                raise NodeError(
                    f"more than {MOST_INSTANCES} instances: ask for less",
                    ErrorKind.EXHAUSTED,
                )
        return found

    # -- sub-operations ---------------------------------------------------------------

    def _send_all(self) -> None:
        for instance in self._found:
            if not self._acceptor.is_established:
                return  # nobody is there to be told
            if self._is_cancelled():
                self.end(CANCELLED)
                return
            self._counts.add(instance.sop_instance_uid, self._send(instance))
            if self._counts.remaining:
                self._respond(PENDING)
        if self._acceptor.is_established:
            self.end(self._counts.final_status)

    def _send(self, wanted: Retrievable) -> int | None:
        """Return the status of one sub-operation, None when there was no answer."""
        uid = wanted.sop_instance_uid
        try:
            channel = self._open()
            instance = self._call(self._stored(uid))
            if instance is None:
                raise NodeError("it is not stored any more", ErrorKind.NOT_FOUND)
            accepted = channel.accepted(wanted.sop_class_uid)
            with studies.open_blob(self._store, instance) as reader:
                encoded = encoded_for(reader, instance, accepted)
                return channel.store(
                    wanted.sop_class_uid, uid, encoded, self._originator
                )
        except Broken as error:
            self._close()
            self._log(uid, error.message)
        except NodeError as error:
            self._log(uid, error.message)
        except Exception as error:  # an instance that cannot be sent, not the others
            self._close()
            self._log(uid, type(error).__name__)
        return None

    def _open(self) -> StoreChannel:
        """Return the channel; a receiver that let us down is asked once again."""
        if self._channel is None:
            if self._given_up:
                raise Broken("the receiver is away")
            self._channel = StoreChannel(
                self._association(), answer_s=self._settings.answer_s
            )
        return self._channel

    def _association(self) -> Any:
        if self._destination is None:
            return self._acceptor
        try:
            return associate(self._destination, _contexts(self._found))
        except NodeError:
            self._given_up = True
            raise

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def _stored(self, uid: str) -> StoredInstance | None:
        async with self._store.db.connection() as tx:
            return await studies.instance(tx, self._store, uid)

    @property
    def _originator(self) -> Originator | None:
        if self._destination is None:
            return None
        return Originator(self._acceptor.calling_ae, self._message_id)

    def _is_cancelled(self) -> bool:
        return self._acceptor.dimse.cancel_req.pop(self._message_id, None) is not None

    # -- responses --------------------------------------------------------------------

    def _respond(self, status: int, error: NodeError | None = None) -> None:
        counts, pending = self._counts, status == PENDING
        response: Any = type(self._request)()
        response.MessageIDBeingRespondedTo = self._message_id
        response.AffectedSOPClassUID = self._request.AffectedSOPClassUID
        response.Status = status
        if pending or status == CANCELLED:
            response.NumberOfRemainingSuboperations = counts.remaining
        response.NumberOfCompletedSuboperations = counts.completed
        response.NumberOfFailedSuboperations = counts.failed
        response.NumberOfWarningSuboperations = counts.warning
        if error is not None:
            response.ErrorComment = error.message[:64]
            if isinstance(error, NotAnIdentifier):
                response.OffendingElement = int(error.tag, 16)
        elif not pending and counts.failed_uids:
            response.Identifier = BytesIO(self._failed_list())
        self._acceptor.dimse.send_msg(response, int(self._context.context_id or 0))

    def _failed_list(self) -> bytes:
        """Return the Failed SOP Instance UID List (0008,0058), encoded."""
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = self._counts.failed_uids
        syntax = self._syntax
        return encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian) or b""

    # -- audit ------------------------------------------------------------------------

    def _audit_begin(self, asked: Asked) -> None:
        """Record what is about to leave, study by study; without it nothing leaves."""
        by_study: dict[str, int] = {}
        for instance in self._found:
            uid = instance.study_instance_uid
            by_study[uid] = by_study.get(uid, 0) + 1
        entries = [
            self._entry(
                f"study/{uid}",
                {
                    "study_instance_uid": uid,
                    "instances": str(count),
                    "level": asked.level.name,
                },
            )
            for uid, count in by_study.items()
        ]
        self._call(_record(self._store, entries))

    def _audit_end(self) -> None:
        counts = self._counts
        detail = {
            "completed": str(counts.completed),
            "warning": str(counts.warning),
            "failed": str(counts.failed),
            "not_sent": str(counts.remaining),
        }
        entry = self._entry(f"ae/{self._receiver}", detail)
        self._thread.later(_recorded(self._store, [entry]))

    def _entry(
        self,
        entity: str,
        detail: Mapping[str, str],
        result: Outcome = Outcome.SUCCESS,
    ) -> AuditEntry:
        return AuditEntry(
            at=self._store.clock(),
            actor=self._acceptor.calling_ae,
            role=PEER_ROLE,
            action="retrieve",
            entity=entity,
            outcome=result,
            detail={
                **detail,
                "verb": "move" if isinstance(self._request, C_MOVE) else "get",
                "destination": self._receiver,
                "association": self._acceptor.association,
            },
        )

    def _log(self, uid: str, reason: str) -> None:
        log.warning(
            "retrieve.not_sent",
            sop_instance_uid=uid,
            destination=self._receiver,
            reason=reason,
        )

    # -- shorthands -------------------------------------------------------------------

    @property
    def _message_id(self) -> int:
        return int(self._request.MessageID or 0)

    @property
    def _syntax(self) -> UID:
        return UID(self._context.transfer_syntax[0])

    @property
    def _store(self) -> Store:
        return self._thread.store

    def _call(self, coroutine: Any) -> Any:
        return self._thread.call(coroutine, timeout_s=DATABASE_TIMEOUT_S)


def _contexts(found: Sequence[Retrievable]) -> list[PresentationContext]:
    """Return what is proposed to a destination: one syntax a context (PS3.8 7.1.1.13).

    What was stored as it is comes first, so that a receiver of few contexts can still
    take the instances otherwise.
    """
    return [build_context(c, s) for c, s in _pairs(found)][:MOST_CONTEXTS]


def _pairs(found: Sequence[Retrievable]) -> Iterator[tuple[str, str]]:
    own = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in found)
    yield from own
    told = set(own)
    for sop_class, syntax in own:
        for other in reachable(syntax)[1:3]:
            if (sop_class, other) not in told:
                told.add((sop_class, other))
                yield sop_class, other


async def _record(store: Store, entries: Sequence[AuditEntry]) -> None:
    async with store.db.transaction() as tx:
        for entry in entries:
            await audit.record(tx, entry)


async def _recorded(store: Store, entries: Sequence[AuditEntry]) -> None:
    try:
        await _record(store, entries)
    except NodeError as error:
        log.error("dicom.not_audited", action="retrieve", error=error.message)
