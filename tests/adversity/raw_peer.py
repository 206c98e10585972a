"""A peer that writes PDUs byte by byte as it likes (PS3.8 9.3)."""

import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)

from dicom_scp.receiving.upper_layer import parse_command

ABORT, ACCEPT, REJECT, DATA, RELEASE_RP = 0x07, 0x02, 0x03, 0x04, 0x06
RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
C_STORE_RQ, WITH_DATA_SET = 0x0001, 0x0001


def associate_rq(contexts: Sequence[tuple[str, str]], calling: str = "RAW") -> bytes:
    """Return an A-ASSOCIATE-RQ; the contexts get the ids 1, 3, 5 …"""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = calling, "SONONODE"
    items = [build_context(abstract, syntax) for abstract, syntax in contexts]
    for number, item in enumerate(items):
        item.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = items
    longest, implementation = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
    )
    longest.maximum_length_received = 131_072
    implementation.implementation_class_uid = UID(str(AE().implementation_class_uid))
    primitive.user_information = [longest, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def store_command(sop_class: str, sop_instance: str, message_id: int = 1) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    elements = [
        (0x0002, _even(sop_class.encode())),
        (0x0100, struct.pack("<H", C_STORE_RQ)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", WITH_DATA_SET)),
        (0x1000, _even(sop_instance.encode())),
    ]
    body = b"".join(_element(number, value) for number, value in elements)
    return _element(0, struct.pack("<L", len(body))) + body


def data_pdus(context_id: int, message: bytes, *, command: bool) -> bytes:
    """Return a command or data set as P-DATA-TF PDUs with one PDV each."""
    pieces = [message[at : at + 65_536] for at in range(0, len(message), 65_536)]
    written = bytearray()
    for number, piece in enumerate(pieces or [b""], start=1):
        last = number >= len(pieces)
        control = (1 if command else 0) | (2 if last else 0)
        pdv = struct.pack(">LBB", len(piece) + 2, context_id, control) + piece
        written += struct.pack(">BxL", DATA, len(pdv)) + pdv
    return bytes(written)


class RawPeer:
    """One connection. Whatever the node does with it ends within `patience_s`."""

    def __init__(self, port: int, *, patience_s: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), patience_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Write; a node that has hung up already is no fault."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def read_pdu(self) -> tuple[int, bytes] | None:
        """Return type and body of the next PDU, None when the node hung up.

        Raises TimeoutError when it does neither: a hang.
        """
        header = self._read(6)
        if header is None:
            return None
        kind, length = struct.unpack(">BxL", header)
        body = self._read(length)
        return None if body is None else (kind, body)

    def read_status(self) -> int | None:
        """Return the status of the next response, None when the node ended it."""
        answer = self.read_pdu()
        if answer is None or answer[0] != DATA:
            return None
        return int.from_bytes(parse_command(answer[1][6:])[0x0900], "little")

    def finish(self) -> None:
        """Say no more, and wait until the node has hung up."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(65_536):
                pass
        except (ConnectionResetError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            try:
                more = self._socket.recv(size - len(data))
            except ConnectionResetError:
                return None
            if not more:
                return None
            data += more
        return bytes(data)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) & 1)
