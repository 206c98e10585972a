"""A C-STORE data set on its way from the network to the store (PS3.4 B.2).

Its bytes are encrypted as they come; no plaintext touches the disk and memory holds
only the beginning, where the header is. It is acknowledged when the object is durable
and its rows are committed.
"""

import asyncio
import hashlib
import math
import re
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import orjson
import structlog
import uvloop
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from dicom_scp.receiving.coercion import Coercer
from dicom_scp.receiving.encoding import check_whole
from dicom_scp.receiving.json_header import (
    LARGE_BINARY,
    UNDEFINED,
    JsonHeader,
    ScannedHeader,
    Unusual,
    encapsulated_end,
    scan_header,
)
from dicom_scp.receiving.peers import Peer, Peers
from dicom_scp.receiving.status import (
    COERCED,
    SUCCESS,
    DataSetMismatch,
    error_comment,
    storage_status,
)
from dicom_scp.receiving.upper_layer import StoreRequest, StoreResponse
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Duplicates, PatientIdentity, ReceivedInstance
from node.imaging import FrameTable, ReaderFile, frames_at, read_part10
from node.store import audit, studies
from node.workflow.completion import end_association
from node.workflow.intake import (
    Arrival,
    KnownStudies,
    Received,
    new_object,
    prepare,
    receive_instances,
    withdraw,
    withdraw_version,
)

if TYPE_CHECKING:
    from node.store.associations import EndedHow
    from node.store.blobs import BlobWriter
    from node.store.store import Store

log = structlog.get_logger(__name__)

# A database that is away for an hour does not cost the trail a refusal.
_AUDIT_TRIES: Final = 100
T = TypeVar("T")
Header = Dataset | JsonHeader
OpenStore = Callable[[], Awaitable["Store"]]

HEAD_BYTES: Final = 4 << 20
GLANCE_BYTES: Final = 64 << 10  # in which the header of an image is
DEFLATED_BYTES: Final = 64 << 20  # a deflated data set has to be inflated whole
TAIL_BYTES: Final = 4096
COMMIT_BATCH: Final = 64
ROOM_COUNTS_FOR_S: Final = 0.5
# The plan of the one statement that stores is the same for one row and for many.
_PLAN_ONCE: Final = "set plan_cache_mode = force_generic_plan"
IMPLEMENTATION_UID: Final = "2.25.302567410295148372091187634512093847562"
IMPLEMENTATION_VERSION: Final = "SONONODE_1"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class IntakeSettings:
    """How much one instance may take, and the room that has to stay for others.

    What is done for one peer alone (coercion, duplicates) stands in `peers`.
    """

    ae_title: str = "SONONODE"
    peers: Peers = field(default_factory=Peers)
    process: str = "scp"
    max_instance_bytes: int = 8 << 30
    min_free_bytes: int = 256 << 20
    commit_timeout_s: float = 30.0


class StoreThread:
    """The store on an event loop of its own, for threads to hand over to and wait.

    Instances that arrive while one commit runs share the next one: durable rows
    cost one flush for all associations together.
    """

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="store", daemon=True
        )
        self._arrivals: asyncio.Queue[tuple[Arrival, Future[Received]]]
        self.known = KnownStudies()
        self.store: Store

    def start(self) -> None:
        """Open the store; what goes wrong is raised here."""
        self._thread.start()
        try:
            self.call(self._start())
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def stop(self) -> None:
        """Close the store and end the thread."""
        if not self._thread.is_alive():
            return
        with suppress(NodeError):
            self.call(self._stop(), timeout_s=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def call(
        self, coroutine: Coroutine[Any, Any, T], *, timeout_s: float | None = None
    ) -> T:
        """Run `coroutine` on the store's loop and wait for its result."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return _result(future, timeout_s)

    def receive(self, arrival: Arrival) -> Future[Received]:
        """Commit the rows of one instance, together with whatever else is waiting."""
        future: Future[Received] = Future()
        self._loop.call_soon_threadsafe(self._arrivals.put_nowait, (arrival, future))
        return future

    def later(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run `coroutine` on the store's loop without waiting."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _start(self) -> None:
        self.store = await self._open_store()
        self._arrivals = asyncio.Queue()
        self._committing = asyncio.create_task(self._keep_committing())

    async def _stop(self) -> None:
        self._committing.cancel()
        with suppress(asyncio.CancelledError):
            await self._committing
        await self.store.close()

    async def _keep_committing(self) -> None:
        """Commit what arrives on one connection, or on the next when that is lost."""
        while True:
            waiting = await self._batch()
            try:
                async with self.store.db.connection() as connection:
                    await connection.execute(_PLAN_ONCE)
                    while True:
                        arrivals = [arrival for arrival, _ in waiting]
                        results = await receive_instances(
                            self.store, arrivals, self.known, connection=connection
                        )
                        _tell(waiting, results)
                        waiting = await self._batch()
            except Exception as error:
                _tell(waiting, [error for _ in waiting])

    async def _batch(self) -> list[tuple[Arrival, Future[Received]]]:
        """Return what waits, at least one."""
        batch = [await self._arrivals.get()]
        while len(batch) < COMMIT_BATCH and not self._arrivals.empty():
            batch.append(self._arrivals.get_nowait())
        return batch


def _tell(
    waiting: Sequence[tuple[Arrival, "Future[Received]"]],
    results: Sequence[Received | Exception],
) -> None:
    for (_, future), result in zip(waiting, results, strict=True):
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _place(error: BaseException) -> str:
    """Return where `error` was raised: its message may quote a header."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _result(future: "Future[T]", timeout_s: float | None) -> T:
    try:
        return future.result(timeout_s)
    except FutureTimeoutError:
        raise NodeError("the database does not answer", ErrorKind.UNAVAILABLE) from None


class Intake:
    """Opens a sink for every C-STORE of this process."""

    def __init__(
        self,
        thread: StoreThread,
        settings: IntakeSettings,
        *,
        feeds: Callable[[str], None],
    ) -> None:
        self.thread = thread
        self.settings = settings
        self.feeds = feeds
        self._room, self._room_seen_at = True, -math.inf

    @property
    def store(self) -> "Store":
        """Return the store; its blobs may be used from every thread."""
        return self.thread.store

    def has_room(self) -> bool:
        """Tell whether there is room for others too, as it was a moment ago."""
        now = time.monotonic()
        if now - self._room_seen_at > ROOM_COUNTS_FOR_S:
            free = self.store.blobs.free_bytes()
            self._room, self._room_seen_at = free >= self.settings.min_free_bytes, now
        return self._room

    def open_sink(self, request: StoreRequest) -> "InstanceSink":
        """Return where the data set of `request` goes."""
        return InstanceSink(self, request)

    def association_ended(self, association: str, how: "EndedHow") -> None:
        """Tell the studies, now or as soon as the database is there again."""
        self.thread.later(self._end(association, how))

    def audit(self, entry: AuditEntry) -> None:
        """Record `entry`; an association is not held up by it."""
        self.thread.later(self._record(entry))

    async def _end(self, association: str, how: "EndedHow") -> None:
        for attempt in range(100):
            try:
                await end_association(self.store, association, how)
                return
            except Exception as error:
                # Whatever it was: a study whose end nobody noted is never read.
                log.warning("dicom.association_end_waits", error=type(error).__name__)
                await asyncio.sleep(min(30.0, 0.2 * 2**attempt))

    async def _record(self, entry: AuditEntry) -> None:
        for attempt in range(_AUDIT_TRIES):
            try:
                async with self.store.db.transaction() as tx:
                    await audit.record(tx, entry)
                return
            except NodeError as error:
                log.error("dicom.not_audited", action=entry.action, error=error.message)
                if error.kind is not ErrorKind.UNAVAILABLE:
                    return
            await asyncio.sleep(min(30.0, 0.2 * 2**attempt))


class InstanceSink:
    """Takes one data set; its first failure decides the answer."""

    def __init__(self, intake: Intake, request: StoreRequest) -> None:
        self._intake = intake
        self._request = request
        self._failure: BaseException | None = None
        self._writer: BlobWriter | None = None
        self._digest = hashlib.sha256()
        self._head = bytearray()
        self._tail = b""
        self._size = 0
        self._usual: ScannedHeader | None = None
        deflated = request.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
        self._head_limit = DEFLATED_BYTES if deflated else HEAD_BYTES
        title = request.calling_ae
        self._peer = intake.settings.peers.caller(title) or Peer(title)
        self._coercer = self._coercer_of_peer()
        try:
            check_command(request)
            self._check_room()
            self._open()
        except Exception as error:
            self._fail(error)

    def write(self, fragment: memoryview) -> None:
        """Digest the next bytes as they came, and keep them as the site wants them."""
        if self._failure is not None or self._writer is None:
            return
        try:
            self._digest.update(fragment)
            self._keep(
                fragment if self._coercer is None else self._coercer.take(fragment)
            )
        except Exception as error:
            self._fail(error)

    def finish(self) -> StoreResponse:
        """Make the object durable, commit its rows, and say what became of it."""
        try:
            if self._failure is None:
                return StoreResponse(self._store())
        except Exception as error:
            self._fail(error)
        failure = cast(BaseException, self._failure)
        response = StoreResponse(storage_status(failure), error_comment(failure))
        uid = self._request.sop_instance_uid
        log.warning(
            "dicom.instance_refused",
            sop_instance_uid=uid if _UID.fullmatch(uid) else "not a UID",
            calling_ae=self._request.calling_ae,
            status=f"{response.status:04X}",
            reason=failure.message if isinstance(failure, NodeError) else None,
            error=f"{type(failure).__name__} {_place(failure)}",
        )
        return response

    def abort(self) -> None:
        """Remove what came of an instance that never was complete."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()

    def close(self) -> None:
        """Move the object to its place: nobody waits for that any more."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.publish()
            except NodeError as error:  # where it is, it is found as well
                writer.leave()
                log.warning("dicom.object_not_moved", error=error.message)

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and count bytes of the object."""
        writer = cast("BlobWriter", self._writer)
        self._size += len(data)
        if self._size > self._intake.settings.max_instance_bytes:
            raise NodeError("the instance is too large", ErrorKind.EXHAUSTED)
        writer.write(data)
        room = self._head_limit + self._meta_length - len(self._head)
        if room > 0:
            before = len(self._head)
            self._head += data[:room]
            if before < GLANCE_BYTES <= len(self._head):
                self._glance()
        self._tail = (self._tail + bytes(data[-TAIL_BYTES:]))[-TAIL_BYTES:]

    def _coercer_of_peer(self) -> Coercer | None:
        if not self._peer.coerce:
            return None
        return Coercer(
            self._peer.coerce,
            self._request.transfer_syntax_uid,
            source=self._peer.ae_title,
            system=self._intake.settings.ae_title,
            at=self._intake.store.clock(),
        )

    def _check_room(self) -> None:
        if not self._intake.has_room():
            raise NodeError("the disk of the node is full", ErrorKind.EXHAUSTED)

    def _open(self) -> None:
        request = self._request
        self._writer, self._name, self._key = new_object(
            self._intake.store, request.sop_instance_uid
        )
        meta = file_meta(request)
        self._meta_length = len(meta)
        self._head += meta
        self._writer.write(meta)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self.abort()

    def _store(self) -> int:
        if self._coercer is not None:
            self._keep(self._coercer.finish())
        size = self._meta_length + self._size
        received = self._described(size)
        intake = self._intake
        arrival = Arrival(
            received,
            self._key,
            intake.settings.process,
            coerced=() if self._coercer is None else self._coercer.changes,
            duplicates=self._peer.duplicates,
        )
        prepared = prepare(intake.store, arrival, intake.thread.known)
        return self._commit(replace(arrival, prepared=prepared))

    def _glance(self) -> None:
        """Read the header as soon as it is here: of native pixels no more is needed."""
        with suppress(Unusual):
            seen = usual_header(self._head, self._meta_length, self._request)
            if seen.value_at:
                self._usual = seen
            if seen.native:
                self._head_limit = 0

    def _described(self, size: int) -> ReceivedInstance:
        """Return what the rows need: the short way, or pydicom's for the unusual."""
        head, start = self._head, self._meta_length
        with suppress(Unusual):
            usual = self._usual or usual_header(head, start, self._request)
            header = JsonHeader(usual.elements)
            syntax = self._request.transfer_syntax_uid
            frames = usual_frames(usual, header, head, size, syntax)
            return self._checked(header, frames, size)
        view, syntax = memoryview(head), self._request.transfer_syntax_uid
        check_whole(view[start:], self._size, self._tail, syntax)
        received = self._checked(*read_beginning(view, size), size)
        if len(head) == size or not received.number_of_frames:
            return received
        return replace(
            received, frame_table=received.frame_table or self._late_frames()
        )

    def _checked(
        self, header: Header, frames: FrameTable, size: int
    ) -> ReceivedInstance:
        check_data_set(header, self._request)
        return describe(
            header,
            self._request,
            frames=frames,
            blob_name=self._name,
            size=size,
            sha256=self._digest.digest(),
        )

    def _late_frames(self) -> FrameTable:
        """Locate the frames of a compressed cine too long to keep in memory."""
        cast("BlobWriter", self._writer).complete()
        reader = self._intake.store.blobs.reader(
            self._name,
            key=self._key,
            associated_data=studies.associated_data(self._request.sop_instance_uid),
        )
        with reader:
            return read_part10(BufferedReader(ReaderFile(reader), 4096))[1]

    def _commit(self, arrival: Arrival) -> int:
        """Commit object and rows side by side: one wait for the disk, not two.

        Nobody is told that they are stored before both are. Whatever ends this
        process or the machine in between, the next start takes back a row without
        a whole object, and an object without a row. Of a further version the object
        comes first: its row may be the one of many.
        """
        intake, writer = self._intake, cast("BlobWriter", self._writer)
        if arrival.prepared is None or arrival.duplicates is not Duplicates.REJECT:
            writer.complete()
        rows = intake.thread.receive(arrival)
        try:
            writer.complete()
            writer.sync()
        except BaseException:
            self._withdraw(arrival, rows)
            raise
        try:
            result = self._rows(rows)
        except NodeError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                # The database went away in a commit, or answers only later.
                self._writer = None
                rows.add_done_callback(partial(_settle, writer))
            raise
        if result is Received.DUPLICATE:
            self.abort()
        if result is not Received.KEPT:
            intake.feeds(arrival.instance.association)
        coerced = arrival.coerced and result is not Received.DUPLICATE
        return COERCED if coerced else SUCCESS

    def _withdraw(self, arrival: Arrival, rows: "Future[Received]") -> None:
        with suppress(NodeError):  # the failure that led here is the one to tell
            result, intake = self._rows(rows), self._intake
            if result is Received.STORED:
                uid = arrival.instance.sop_instance_uid
                intake.thread.call(withdraw(intake.store, uid))
            elif result is Received.KEPT:
                intake.thread.call(withdraw_version(intake.store, self._name))

    def _rows(self, rows: "Future[Received]") -> Received:
        return _result(rows, self._intake.settings.commit_timeout_s)


def _settle(writer: "BlobWriter", rows: "Future[Received]") -> None:
    """Do with an object what its rows say, once they say it."""
    if rows.exception() is not None:
        writer.leave()
    elif rows.result() is Received.DUPLICATE:
        writer.abort()
    else:
        writer.publish()


# -- what an instance has to be --------------------------------------------------------


def check_uid(value: str, keyword: str) -> str:
    """Return a UID that is one (PS3.5 9.1); leading zeros are common and let pass."""
    if len(value) > 64 or _UID.fullmatch(value) is None:
        raise NodeError(
            f"{keyword} is missing or not a UID", ErrorKind.INVALID, expression=keyword
        )
    return value


def check_command(request: StoreRequest) -> None:
    """Raise NodeError when the command cannot lead to a stored instance."""
    check_uid(request.sop_class_uid, "AffectedSOPClassUID")
    check_uid(request.sop_instance_uid, "AffectedSOPInstanceUID")
    if request.sop_class_uid != request.abstract_syntax:
        raise NodeError(
            "not the SOP Class of its presentation context", ErrorKind.UNSUPPORTED
        )


def read_beginning(head: memoryview, size: int) -> tuple[Dataset, FrameTable]:
    """Return header and frame table of a file of `size` that starts with `head`.

    Damage deep in a sequence comes to light only when its text is decoded; that
    is the sender's fault as much as damage at the top.
    """
    try:
        return read_part10(cast(Any, _Prefix(head, size)))
    except NodeError:
        raise
    except Exception as error:
        raise NodeError(
            f"the header cannot be read ({type(error).__name__})", ErrorKind.INVALID
        ) from None


def usual_header(head: bytearray, start: int, request: StoreRequest) -> ScannedHeader:
    """Return the header of a data set in a usual encoding; raise Unusual."""
    syntax = request.transfer_syntax_uid
    if syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        raise Unusual
    explicit = syntax != ImplicitVRLittleEndian
    return scan_header(memoryview(head), start, explicit=explicit)


def usual_frames(
    scanned: ScannedHeader,
    header: JsonHeader,
    head: bytearray,
    size: int,
    transfer_syntax_uid: str,
) -> FrameTable:
    """Return the frame table of a whole data set; raise Unusual when it may not be."""
    value_at, length, beginning = scanned.value_at, scanned.length, memoryview(head)
    if not value_at:
        end = len(head)
    elif length == UNDEFINED:
        end = encapsulated_end(beginning, value_at)
    else:
        end = value_at + length
    if end != size:
        raise Unusual
    if not value_at:
        return ()
    file = cast(Any, _Prefix(beginning, size))
    return frames_at(file, header, value_at, length, transfer_syntax_uid)


def check_data_set(header: Header, request: StoreRequest) -> None:
    """Raise NodeError when a UID that everything hangs on is missing or another one."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        check_uid(_text(header, keyword), keyword)
    told = {
        "SOPClassUID": request.sop_class_uid,
        "SOPInstanceUID": request.sop_instance_uid,
    }
    for keyword, expected in told.items():
        if check_uid(_text(header, keyword), keyword) != expected:
            raise DataSetMismatch(keyword)


def describe(
    header: Header,
    request: StoreRequest,
    *,
    frames: FrameTable,
    blob_name: str,
    size: int,
    sha256: bytes,
) -> ReceivedInstance:
    """Return what the rows of an instance need, from its Unicode header."""
    return ReceivedInstance(
        study_instance_uid=_text(header, "StudyInstanceUID"),
        series_instance_uid=_text(header, "SeriesInstanceUID"),
        sop_instance_uid=request.sop_instance_uid,
        sop_class_uid=request.sop_class_uid,
        transfer_syntax_uid=request.transfer_syntax_uid,
        patient=patient_identity(header),
        accession_number=_text(header, "AccessionNumber"),
        study_date=_date(header, "StudyDate"),
        study_description=_text(header, "StudyDescription"),
        modality=_text(header, "Modality"),
        number_of_frames=_frames(header),
        metadata=json_header(header),
        frame_table=frames,
        blob_name=blob_name,
        size=size,
        sha256=sha256,
        calling_ae=request.calling_ae,
        association=request.association,
    )


def patient_identity(header: Header) -> PatientIdentity:
    """Return who the header says the patient is."""
    return PatientIdentity(
        patient_id=_text(header, "PatientID"),
        name=_text(header, "PatientName"),
        birth_date=_date(header, "PatientBirthDate"),
        sex=_text(header, "PatientSex") or None,
        issuer=_text(header, "IssuerOfPatientID"),
        id_number=_national_number(header),
        phone=_text(header, "PatientTelephoneNumbers") or None,
    )


def _national_number(header: Header) -> str | None:
    """Return the resident identity number among Other Patient IDs (PS3.3 C.2.2).

    Its form (GB 11643: 17 digits and a check sign) tells it from other numbers;
    whether it is valid is not ours to judge.
    """
    for item in header.get("OtherPatientIDsSequence", None) or ():
        number = _text(item, "PatientID").upper()
        if len(number) == 18 and number[:17].isdigit() and number.isascii():
            return number
    return None


def json_header(header: Header) -> bytes:
    """Return the header as DICOM JSON (PS3.18 F.2) without large binary values."""
    if isinstance(header, JsonHeader):
        return orjson.dumps(header.elements)
    told = header.to_json_dict(
        bulk_data_threshold=LARGE_BINARY,
        bulk_data_element_handler=lambda _element: "",
        suppress_invalid_tags=True,
    )
    return orjson.dumps(
        {tag: element for tag, element in told.items() if "BulkDataURI" not in element}
    )


def file_meta(request: StoreRequest) -> bytes:
    """Return preamble and file meta information of the stored file (PS3.10 7.1)."""
    body = b"".join(
        (
            b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\0\x01",
            _meta(0x0002, b"UI", request.sop_class_uid),
            _meta(0x0003, b"UI", request.sop_instance_uid),
            _meta(0x0010, b"UI", request.transfer_syntax_uid),
            _meta(0x0012, b"UI", IMPLEMENTATION_UID),
            _meta(0x0013, b"SH", IMPLEMENTATION_VERSION),
            _meta(0x0016, b"AE", request.calling_ae[:16]),
        )
    )
    length = b"\x02\x00\x00\x00UL\x04\x00" + len(body).to_bytes(4, "little")
    return bytes(128) + b"DICM" + length + body


def _meta(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) & 1)
    head = b"\x02\x00" + element.to_bytes(2, "little") + vr
    return head + len(value).to_bytes(2, "little") + value


def _text(header: Header, keyword: str) -> str:
    value = header.get(keyword, None)
    return "" if value is None else str(value).strip(" \0")


def _date(header: Header, keyword: str) -> date | None:
    text = _text(header, keyword)[:8]
    try:
        if len(text) == 8 and text.isascii() and text.isdecimal():
            return date(int(text[:4]), int(text[4:6]), int(text[6:]))
        return None
    except ValueError:
        return None  # missing or not a date: never guessed


def _frames(header: Header) -> int:
    try:
        return int(header.get("NumberOfFrames", None) or ("Rows" in header))
    except (TypeError, ValueError):
        return 0


# -- files that are not files ----------------------------------------------------------


class _Prefix(RawIOBase):
    """The beginning of a file whose size is known; the rest reads as its end."""

    def __init__(self, head: memoryview, size: int) -> None:
        super().__init__()
        self._head, self._size, self._at = head, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._head) if size is None or size < 0 else self._at + size
        taken = bytes(self._head[self._at : end])
        self._at += len(taken)
        return taken
