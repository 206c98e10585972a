"""The DICOM upper layer (PS3.8) under hospital conditions: pynetdicom 3.0.4, mended.

pynetdicom negotiates associations and serves every message but C-STORE. What it leaves
open is closed here: a peer that stays silent in a TLS handshake or in the middle of a
PDU, a PDU of any length, a long store, a data set left behind by a peer that died,
silent connections that take the place of real ones, a clock that steps. C-STORE data
sets never gather in memory: their fragments go straight from one reused buffer to a
`Sink`.
"""

import os
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import structlog
from pynetdicom import _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.timer import Timer
from pynetdicom.transport import (
    AddressInformation,
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

from dicom_scp.receiving.peers import Peer
from dicom_scp.receiving.tls import WrapsSockets

log = structlog.get_logger(__name__)

# pynetdicom would write whole messages, names included, to its log.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False

# An A-ASSOCIATE-RQ with 128 contexts of every transfer syntax has some 150 KB.
MAX_CONTROL_PDU: Final = 1 << 20
MAX_COMMAND: Final = 1 << 16
READ_AHEAD: Final = 1 << 18  # bytes that one look at the socket takes at most
MAX_IDENTIFIER: Final = 1 << 22  # data sets of messages other than C-STORE
LOOK_AROUND_S: Final = 0.1  # how soon timers and a stop are noticed
P_DATA_TF: Final = 0x04
C_STORE_RQ: Final = 0x0001
NO_DATA_SET: Final = 0x0101
_PDU_HEADER: Final = struct.Struct(">2xL")
_PDV_HEADER: Final = struct.Struct(">LBB")


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE-RQ command (PS3.7 9.3.1.1) and what its association is known for."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax: str
    transfer_syntax_uid: str
    calling_ae: str
    address: str
    association: str


@dataclass(frozen=True)
class StoreResponse:
    """A status of PS3.4 B.2.3 and, for people, at most 64 characters without PHI."""

    status: int
    comment: str = ""


class Sink(Protocol):
    """Takes the data set of one C-STORE; remembers its failures until `finish`."""

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes; they are valid only during the call."""
        ...

    def finish(self) -> StoreResponse:
        """Store the instance durably and say what became of it."""
        ...

    def close(self) -> None:
        """Do what is left to do once the peer has its answer."""
        ...

    def abort(self) -> None:
        """Leave nothing behind: the peer is gone."""
        ...


OpenSink = Callable[[StoreRequest], Sink]
# What is served without pynetdicom: by kind of message and abstract syntax.
OwnRequests = Mapping[
    tuple[type, str], Callable[["Acceptor", Any, PresentationContext], None]
]


@dataclass(frozen=True)
class Limits:
    """What one peer may ask for: seconds and bytes."""

    acse_timeout_s: float = 10.0
    network_timeout_s: float = 60.0
    tls_handshake_timeout_s: float = 5.0
    max_pdu: int = 131_072
    connections_per_address: int = 32
    connections: int = 512
    reserved_connections: int = 128  # of these, for addresses that a peer entry names


class MonotonicTimer(Timer):
    """A timer that a step of the wall clock cannot end."""

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1
        if self._start_time is None:
            return float(self.timeout)
        end = time.monotonic() if self._end_time is None else self._end_time
        return float(self.timeout) - (end - self._start_time)

    @property
    def expired(self) -> bool:
        return self._start_time is not None and self.remaining < 0


class PatientSocket(AssociationSocket):
    """A socket that waits for data instead of asking for it, and not for ever.

    A PDU has to arrive whole within the timeout, however slowly its bytes drip. What
    the peer has sent is taken in one piece, several PDUs at a time.
    """

    def __init__(
        self, assoc: Association, client_socket: socket.socket, limits: Limits
    ) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self.limits = limits
        # Pages that nothing was read into take no memory.
        self._buffer = memoryview(bytearray(max(READ_AHEAD, limits.max_pdu + 12)))
        self._start = self._end = 0  # of what was received and not yet taken
        client_socket.setblocking(False)  # mostly there is no need to wait
        self._poll = select.poll()  # select() fails at the 1024th file descriptor
        self._poll.register(client_socket, select.POLLIN)
        self._waiting = select.poll()  # inside a PDU nothing else counts

    def watch(self, fd: int) -> None:
        """Let bytes on `fd` end the wait for data too."""
        self._poll.register(fd, select.POLLIN)

    @property
    def ready(self) -> bool:
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if self._start < self._end:
            return True
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        try:
            mine = connection.fileno()
            # The state machine takes one event a round: what is queued goes first.
            patience_ms = LOOK_AROUND_S * 1000 if self.event_queue.empty() else 0
            return any(fd == mine for fd, _ in self._poll.poll(patience_ms))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Return `nr_bytes`, or fewer when the peer is gone."""
        if nr_bytes > MAX_CONTROL_PDU:
            raise OSError("the PDU is longer than any peer needs")
        taken = bytearray()
        end = time.monotonic() + self._timeout()
        while len(taken) < nr_bytes:
            if self._start == self._end and not self._receive(end):
                break
            stop = min(self._end, self._start + nr_bytes - len(taken))
            taken += self._buffer[self._start : stop]
            self._start = stop
        return taken

    def peek(self, nr_bytes: int) -> memoryview:
        """Return the next bytes of a PDU, not taken yet; fewer when the peer is gone.

        They are valid until the next call.
        """
        if self._start + nr_bytes > len(self._buffer):
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        if self._end - self._start < nr_bytes:
            end = time.monotonic() + self._timeout()
            while self._end - self._start < nr_bytes and self._receive(end):
                pass
        return self._buffer[self._start : min(self._end, self._start + nr_bytes)]

    def skip(self, nr_bytes: int) -> None:
        """Take bytes that were peeked at; they stay valid until the next call."""
        self._start += nr_bytes

    def send(self, bytestream: bytes) -> None:
        """Write all of `bytestream`; a gone peer shows at the next read."""
        connection = cast(socket.socket, self.socket)
        view, end = memoryview(bytestream), time.monotonic() + self._timeout()
        try:
            while view:
                try:
                    view = view[connection.send(view) :]
                except ssl.SSLWantReadError:
                    self._wait_for(connection, select.POLLIN, end)
                except (ssl.SSLWantWriteError, BlockingIOError):
                    self._wait_for(connection, select.POLLOUT, end)
        except (OSError, ValueError):  # TimeoutError too
            self.event_queue.put("Evt17")

    def _receive(self, end: float) -> bool:
        """Append what the peer sends before `end` to the buffer; False: it is gone."""
        connection = cast(socket.socket, self.socket)
        if self._start == self._end:
            self._start = self._end = 0
        while True:
            try:
                received = connection.recv_into(self._buffer[self._end :])
            except (ssl.SSLWantReadError, BlockingIOError):
                self._wait_for(connection, select.POLLIN, end)
            except ssl.SSLWantWriteError:
                self._wait_for(connection, select.POLLOUT, end)
            else:
                self._end += received
                return received > 0

    def _wait_for(self, connection: socket.socket, event: int, end: float) -> None:
        left = end - time.monotonic()
        self._waiting.register(connection, event)
        if left <= 0 or not self._waiting.poll(1000 * left):
            raise TimeoutError("the peer fell silent inside a PDU")

    def _timeout(self) -> float:
        established = self.assoc.is_established
        limits = self.limits
        return limits.network_timeout_s if established else limits.acse_timeout_s


class Doorbell(threading.Event):
    """What an association waits on: pynetdicom looks around every millisecond instead.

    It stays the event that it replaces, by which the association is paused; whoever
    has something for the association rings.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rung = threading.Event()
        self.set()

    def ring(self) -> None:
        """End the wait, or the next one."""
        self._rung.set()

    def wait(self, timeout: float | None = None) -> bool:
        self._rung.wait(LOOK_AROUND_S)
        self._rung.clear()
        return super().wait(timeout)


class _RingingQueue(queue.Queue[Any]):
    """A queue whose reader sleeps at a doorbell."""

    def __init__(self, bell: Doorbell) -> None:
        super().__init__()
        self._bell = bell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._bell.ring()


class StreamingUpperLayer(DULServiceProvider):
    """The upper layer state machine, with a C-STORE path of its own in state Sta6."""

    def __init__(self, assoc: "Acceptor") -> None:
        super().__init__(assoc)
        self._idle_timer = MonotonicTimer(60)
        self.artim_timer = MonotonicTimer(30)
        self._run_loop_delay = 0  # the socket does the waiting
        self.to_user_queue = _RingingQueue(assoc.bell)
        self.daemon = True  # a silent peer must not keep the process from ending
        self._wake: int | None = None  # an eventfd; None while nobody waits on it
        self._waking = threading.Lock()
        self._command = bytearray()
        self._request: StoreRequest | None = None
        self._sink: Sink | None = None
        self._sink_context = 0
        self._forwarding = 0  # bytes so far of a data set that is not C-STORE's
        self._storing = False

    @property
    def acceptor(self) -> "Acceptor":
        return cast("Acceptor", self.assoc)

    @property
    def connection(self) -> PatientSocket:
        return cast(PatientSocket, self.socket)

    def run_reactor(self) -> None:
        """Serve until the association is over, then leave nothing behind."""
        wake = self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.connection.watch(wake)
        try:
            super().run_reactor()
        except InvalidEventError as error:
            # A peer said something at a moment for which PS3.8 Table 9-10 has no row.
            log.info("dicom.protocol_error", error=str(error))
            self._give_up()
        finally:
            if self._sink is not None:
                self._sink.abort()
                self._sink = None
            with self._waking:  # its number may be another file's in a moment
                self._wake = None
                os.close(wake)
            cast(Any, self.to_user_queue).put(
                None
            )  # nobody need wait for a PDU any longer

    def _give_up(self) -> None:
        """End the association under a peer to which no answer is defined."""
        self.acceptor.cut()
        self.assoc.is_aborted, self.assoc.is_established = True, False
        self.assoc._kill = self._kill_thread = True

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        self._rouse()

    def kill_dul(self) -> None:
        super().kill_dul()
        self._rouse()

    def _rouse(self) -> None:
        with self._waking:
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def idle_timer_expired(self) -> bool:
        """Tell whether the peer was silent too long; our own work does not count."""
        return not self._storing and bool(super().idle_timer_expired())

    def _process_recv_primitive(self) -> bool:
        # Before the queue is looked at: what is put there later wakes the socket.
        with suppress(BlockingIOError):
            os.eventfd_read(cast(int, self._wake))
        return bool(super()._process_recv_primitive())

    def _read_pdu_data(self) -> None:
        """Read one PDU, or those of data sets as long as they come without a pause."""
        connection = self.connection
        while self.state_machine.current_state == "Sta6":
            try:
                header = connection.peek(_PDU_HEADER.size)
                if len(header) < _PDU_HEADER.size or header[0] != P_DATA_TF:
                    break
                (length,) = _PDU_HEADER.unpack(header)
                # Peers may leave the six bytes of the PDV header out of the maximum.
                if length > connection.limits.max_pdu + 6:
                    raise OSError("the PDU is longer than was agreed")
                body = connection.peek(_PDU_HEADER.size + length)[_PDU_HEADER.size :]
                if len(body) < length:
                    raise OSError("the peer closed the connection inside a PDU")
            except OSError:  # TimeoutError too
                self.event_queue.put("Evt17")
                return
            connection.skip(_PDU_HEADER.size + length)
            if not self._take_pdvs(body):
                self.event_queue.put("Evt19")
                return
            self._idle_timer.restart()
            if self._sink is None and not self._may_wait_for_more:
                return
        super()._read_pdu_data()

    @property
    def _may_wait_for_more(self) -> bool:
        """Tell whether the peer goes on and nobody here has something to say."""
        busy = self._kill_thread or not self.to_provider_queue.empty()
        return not busy and self.connection.ready

    def _take_pdvs(self, body: memoryview) -> bool:
        """Take the data values of a PDU (PS3.8 9.3.5); False when malformed."""
        at, end = 0, len(body)
        while at < end:
            if end - at < _PDV_HEADER.size:
                return False
            length, context_id, control = _PDV_HEADER.unpack_from(body, at)
            if length < 2 or at + 4 + length > end:
                return False
            fragment = body[at + 6 : at + 4 + length]
            taken = (
                self._take_command(context_id, fragment, last=bool(control & 2))
                if control & 1
                else self._take_data(context_id, fragment, last=bool(control & 2))
            )
            if not taken:
                return False
            at += 4 + length
        return True

    def _take_command(
        self, context_id: int, fragment: memoryview, *, last: bool
    ) -> bool:
        if self._sink is not None or len(self._command) + len(fragment) > MAX_COMMAND:
            return False
        self._command += fragment
        if not last:
            return True
        command, self._command = bytes(self._command), bytearray()
        context = self.assoc._accepted_cx.get(context_id)
        if context is None:
            return False
        try:
            elements = parse_command(command)
        except struct.error:
            return False
        if _us(elements, 0x0100) != C_STORE_RQ:
            self._forwarding = 0
            return self._forward(context_id, b"\x03", command)
        if not context.as_scp:  # a context in which the peer only receives (C-GET)
            return False
        self._request = self.acceptor.store_request(elements, context)
        self._sink, self._sink_context = (
            self.acceptor.open_sink(self._request),
            context_id,
        )
        if _us(elements, 0x0800) == NO_DATA_SET:
            self._finish()
        return True

    def _take_data(self, context_id: int, fragment: memoryview, *, last: bool) -> bool:
        if self._sink is None:
            self._forwarding += len(fragment)
            if self._forwarding > MAX_IDENTIFIER or self.assoc.dimse.message is None:
                return False
            return self._forward(context_id, b"\x02" if last else b"\x00", fragment)
        if context_id != self._sink_context:
            return False
        self._sink.write(fragment)
        if last:
            self._finish()
        return True

    def _forward(self, context_id: int, control: bytes, fragment: Any) -> bool:
        primitive: Any = P_DATA()
        primitive.presentation_data_value_list = [
            [context_id, control + bytes(fragment)]
        ]
        try:
            self.assoc.dimse.receive_primitive(primitive)
        except Exception as error:  # a command that pynetdicom cannot read
            log.warning("dicom.malformed_message", error=type(error).__name__)
            return False
        self.acceptor.bell.ring()
        return True

    def _finish(self) -> None:
        """Store what came and answer, in this thread: nothing overtakes the answer."""
        sink, request = cast(Sink, self._sink), cast(StoreRequest, self._request)
        self._storing = True
        try:
            response = sink.finish()
            self._sink = self._request = None
            answer = encode_response(request, response, self._sink_context)
            self.connection.send(answer)
            sink.close()
        finally:
            self._idle_timer.restart()
            self._storing = False


class Acceptor(Association):
    """An association that peers ask of us."""

    def __init__(self, listener: "Listener", address: str) -> None:
        super().__init__(listener.ae, MODE_ACCEPTOR)
        self.listener = listener
        self.address = address
        self.peer: Peer | None = None  # known once the request is accepted
        self.association = listener.name_of_association()
        # pynetdicom finds the acceptors by this word in the thread's name.
        self.name = f"AcceptorThread@{self.association}"
        self.was_established = False
        self.bell = Doorbell()
        self._reactor_checkpoint = self.bell
        self.dul = StreamingUpperLayer(self)
        # Both live in the upper layer that was just replaced.
        self.acse_timeout = listener.limits.acse_timeout_s
        self.network_timeout = listener.limits.network_timeout_s

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        finally:
            self.listener.connection_ended(self.address)
            if self.was_established:
                self.listener.association_ended(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Serve a message, by a service of ours where it does so without pynetdicom."""
        context: Any = self._accepted_cx.get(context_id)
        syntax = "" if context is None else str(context.abstract_syntax)
        serve = self.listener.own_requests.get((type(msg), syntax))
        if serve is None or not msg.is_valid_request:
            super()._serve_request(msg, context_id)
            return
        self.dimse.cancel_req = {}
        self._is_paused = True
        try:
            serve(self, msg, context)
        finally:
            self._is_paused = False
            self.dimse.cancel_req = {}
            self.dul._idle_timer.restart()  # our own work is no silence of the peer

    def cut(self) -> None:
        """Close the connection under a peer that we cannot wait for."""
        connection = self.dul.socket
        if connection is not None and connection.socket is not None:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    @property
    def calling_ae(self) -> str:
        """The title that the peer gave itself, checked by nobody."""
        title = str(self.requestor.ae_title or "").strip()
        return "".join(sign for sign in title if sign.isprintable())

    def store_request(
        self, elements: dict[int, bytes], context: PresentationContext
    ) -> StoreRequest:
        """Return the command of a C-STORE-RQ under its presentation context."""
        return StoreRequest(
            message_id=_us(elements, 0x0110),
            sop_class_uid=_ui(elements, 0x0002),
            sop_instance_uid=_ui(elements, 0x1000),
            abstract_syntax=str(context.abstract_syntax),
            transfer_syntax_uid=str(context.transfer_syntax[0]),
            calling_ae=self.calling_ae,
            address=self.address,
            association=self.association,
        )

    def open_sink(self, request: StoreRequest) -> Sink:
        """Return where the data set of `request` goes."""
        return self.listener.open_sink(request)


class _Connection(RequestHandler):
    """Makes an `Acceptor` of a connection."""

    def _create_association(self) -> Association:
        listener = cast("Listener", self.server)
        assoc = Acceptor(listener, str(self.client_address[0]))
        assoc._server = listener
        assoc.set_socket(PatientSocket(assoc, self.request, listener.limits))
        assoc.acceptor.maximum_length = listener.limits.max_pdu
        assoc.acceptor.ae_title = listener.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = self.ae.implementation_version_name
        assoc.acceptor.supported_contexts = listener.copied_contexts()
        assoc.requestor.address_info = AddressInformation.from_tuple(
            self.client_address
        )
        for event, bound in listener._handlers.items():
            handlers = cast(Any, bound)
            if event.is_intervention and handlers:
                assoc.bind(event, *handlers)
            elif isinstance(event, evt.NotificationEvent):
                for handler in handlers:
                    assoc.bind(event, handler[0], handler[1])
        return assoc


class Listener(ThreadedAssociationServer):
    """Accepts connections; no peer can keep it from accepting the next one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        ssl_context: WrapsSockets | None = None,
        *,
        evt_handlers: list[Any] | None = None,
        limits: Limits,
        open_sink: OpenSink,
        name_of_association: Callable[[], str],
        association_ended: "Callable[[Acceptor], None]",
        connection_failed: Callable[[str, Exception], None] | None = None,
        own_requests: OwnRequests | None = None,
        is_known_address: Callable[[str], bool] = lambda _address: False,
    ) -> None:
        self.limits = limits
        self.is_known_address = is_known_address
        self.own_requests = own_requests or {}
        self.open_sink = open_sink
        self.name_of_association = name_of_association
        self.association_ended = association_ended
        self.connection_failed = connection_failed
        self._counted = Counter[str]()
        self._counting = threading.Lock()
        super().__init__(
            ae,
            address,
            ae_title,
            contexts,
            cast(ssl.SSLContext, ssl_context),  # only its wrap_socket is asked for
            evt_handlers=evt_handlers,
            request_handler=_Connection,
        )

    def service_actions(self) -> None:
        """Leave garbage to Python: collecting all of it at once stops everybody."""

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and nothing more: handshakes happen in its own thread."""
        connection, address = cast(socket.socket, self.socket).accept()
        connection.settimeout(self.limits.acse_timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse an address that already has its share of connections.

        Strangers never get all of them, from however many addresses they come.
        """
        address, limits = str(client_address[0]), self.limits
        reserved = 0 if self.is_known_address(address) else limits.reserved_connections
        with self._counting:
            if (
                self._counted[address] >= limits.connections_per_address
                or self._counted.total() >= limits.connections - reserved
            ):
                log.warning("dicom.too_many_connections", address=address)
                return False
            self._counted[address] += 1
            return True

    def connection_ended(self, address: str) -> None:
        """Take a connection out of the count."""
        with self._counting:
            self._counted[address] -= 1
            if self._counted[address] <= 0:
                del self._counted[address]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands where TLS is spoken, then start the association."""
        try:
            connection = request
            if self.ssl_context is not None:
                request.settimeout(self.limits.tls_handshake_timeout_s)
                connection = self.ssl_context.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
                connection.do_handshake()
            self.finish_request(connection, client_address)
        except Exception as error:
            log.info(
                "dicom.connection_failed",
                address=str(client_address[0]),
                error=type(error).__name__,
            )
            if self.connection_failed is not None:
                self.connection_failed(str(client_address[0]), error)
            self.connection_ended(str(client_address[0]))
            self.shutdown_request(request)

    def copied_contexts(self) -> list[PresentationContext]:
        """Return the supported contexts; negotiation writes into them."""
        copies = []
        for context in self.contexts:
            copy = PresentationContext()
            copy._abstract_syntax = context._abstract_syntax
            copy._transfer_syntax = list(context._transfer_syntax)
            copies.append(copy)
        return copies


# -- commands --------------------------------------------------------------------------


def parse_command(command: bytes) -> dict[int, bytes]:
    """Return the elements of a command set by element number (PS3.7 6.3.1)."""
    elements, at = {}, 0
    while at < len(command):
        group, element, length = struct.unpack_from("<HHL", command, at)
        value = command[at + 8 : at + 8 + length]
        if group != 0 or len(value) != length:
            raise struct.error("not a command set")
        elements[element] = value
        at += 8 + length
    return elements


def encode_response(
    request: StoreRequest, response: StoreResponse, context_id: int
) -> bytes:
    """Return the P-DATA-TF PDU of a C-STORE-RSP (PS3.7 9.3.1.2)."""
    body = b"".join(
        (
            _element(0x0002, _uid_bytes(request.sop_class_uid)),
            _element(0x0100, struct.pack("<H", 0x8000 | C_STORE_RQ)),
            _element(0x0120, struct.pack("<H", request.message_id)),
            _element(0x0800, struct.pack("<H", NO_DATA_SET)),
            _element(0x0900, struct.pack("<H", response.status)),
            _element(0x0902, _text_bytes(response.comment))
            if response.comment
            else b"",
            _element(0x1000, _uid_bytes(request.sop_instance_uid)),
        )
    )
    command = _element(0x0000, struct.pack("<L", len(body))) + body
    return (
        bytes((P_DATA_TF, 0))
        + (len(command) + _PDV_HEADER.size).to_bytes(4, "big")
        + _PDV_HEADER.pack(len(command) + 2, context_id, 3)
        + command
    )


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _uid_bytes(value: str) -> bytes:
    raw = value.encode("ascii", "replace")[:64]
    return raw + b"\0" * (len(raw) & 1)


def _text_bytes(value: str) -> bytes:
    raw = value.encode("ascii", "replace")[:64]
    return raw + b" " * (len(raw) & 1)


def _us(elements: dict[int, bytes], number: int) -> int:
    value = elements.get(number, b"")
    return int.from_bytes(value[:2], "little")


def _ui(elements: dict[int, bytes], number: int) -> str:
    return elements.get(number, b"").rstrip(b"\0 ").decode("ascii", "replace")
