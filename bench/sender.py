"""A sender that is no bottleneck: everything is encoded before the clock starts.

`python -m bench.sender '{"port": …, "ae_title": …, "files": …, "associations": …}'`
prints the seconds between the first A-ASSOCIATE-RQ and the last release, and checks
every response. Each association is a process and a study of its own; UIDs and Patient
ID are replaced in the bytes, so that nobody answers from a duplicate check.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import dcmread
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

MAX_PDU = 131_072
AT_ONCE = 512  # parts of a message that one call hands to the system
PDU = struct.Struct(">BxL")
PDV = struct.Struct(">LBB")
RELEASE = PDU.pack(5, 4) + bytes(4)


@dataclass(frozen=True)
class Instance:
    """An encoded data set whose identity is new."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: memoryview


def renewed(path: Path, study: int, number: int) -> Instance:
    """Return the instance of a file as number `number` of another study."""
    content = bytearray(path.read_bytes())
    header = dcmread(path, stop_before_pixels=True)
    place = 144 + int.from_bytes(content[140:144], "little")
    head = content[place : place + 4096]
    fresh = {
        str(header.StudyInstanceUID): _uid(header.StudyInstanceUID, study, 0),
        str(header.SeriesInstanceUID): _uid(header.SeriesInstanceUID, study, 1),
        str(header.SOPInstanceUID): _uid(header.SOPInstanceUID, study, 2 + number),
        str(header.PatientID): f"{study % 10**10:010d}"[-len(header.PatientID) :],
    }
    for old, new in fresh.items():
        head = head.replace(old.encode(), new.encode())
    content[place : place + 4096] = head
    return Instance(
        str(header.SOPClassUID),
        fresh[str(header.SOPInstanceUID)],
        str(header.file_meta.TransferSyntaxUID),
        memoryview(content)[place:],
    )


def _uid(old: str, study: int, number: int) -> str:
    """Return another UID of the same length: no byte around it moves."""
    digits = len(old) - len("2.25.9")
    return f"2.25.9{(study * 10_000 + number) % 10**digits:0{digits}d}"


def messages(
    instances: list[Instance], contexts: list[tuple[str, str]], max_pdu: int
) -> Iterator[list[bytes | memoryview]]:
    """Yield each C-STORE-RQ as parts that can be sent as they are."""
    for number, instance in enumerate(instances):
        key = (instance.sop_class_uid, instance.transfer_syntax_uid)
        context = 2 * contexts.index(key) + 1
        elements = (
            _element(0x0002, _padded(instance.sop_class_uid)),
            _element(0x0100, struct.pack("<H", 1)),
            _element(0x0110, struct.pack("<H", number & 0xFFFF)),
            _element(0x0700, struct.pack("<H", 0)),
            _element(0x0800, struct.pack("<H", 1)),
            _element(0x1000, _padded(instance.sop_instance_uid)),
        )
        body = b"".join(elements)
        command = _element(0, struct.pack("<L", len(body))) + body
        head = PDU.pack(4, len(command) + 6) + PDV.pack(len(command) + 2, context, 3)
        parts: list[bytes | memoryview] = [head + command]
        data, room = instance.data_set, max_pdu - 6
        for at in range(0, len(data), room):
            piece = data[at : at + room]
            control = 2 if at + room >= len(data) else 0
            head = PDU.pack(4, len(piece) + 6) + PDV.pack(
                len(piece) + 2, context, control
            )
            parts += [head, piece]
        yield parts


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) & 1)


def associate_request(called: str, contexts: list[tuple[str, str]]) -> bytes:
    """Return an A-ASSOCIATE-RQ for `contexts`, numbered 1, 3, 5 …"""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "BENCH", called
    proposed = []
    for number, (abstract, syntax) in enumerate(contexts):
        context = build_context(abstract, syntax)
        context.context_id = 2 * number + 1
        proposed.append(context)
    request.presentation_context_definition_list = proposed
    length, implementation = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
    )
    length.maximum_length_received = MAX_PDU
    implementation.implementation_class_uid = "2.25.9"
    request.user_information = [length, implementation]
    return A_ASSOCIATE_RQ(request).encode()


class Wire:
    """One connection."""

    def __init__(self, port: int, *, tls: bool) -> None:
        plain = socket.create_connection(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket: socket.socket = plain
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(plain)

    def send(self, parts: list[bytes | memoryview]) -> None:
        """Send all of `parts` without joining them where the socket can do that."""
        if isinstance(self.socket, ssl.SSLSocket):
            for part in parts:
                self.socket.sendall(part)
            return
        for at in range(0, len(parts), AT_ONCE):
            batch = parts[at : at + AT_ONCE]
            sent, whole = self.socket.sendmsg(batch), sum(map(len, batch))
            if sent < whole:
                self.socket.sendall(b"".join(batch)[sent:])

    def receive(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU."""
        kind, length = PDU.unpack(self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        taken = b""
        while len(taken) < length:
            piece = self.socket.recv(length - len(taken))
            if not piece:
                raise SystemExit("the peer closed the connection")
            taken += piece
        return taken


def send(told: dict[str, object], instances: list[Instance], go: int) -> None:
    """Send `instances` over one association as soon as `go` can be read."""
    contexts = sorted({(i.sop_class_uid, i.transfer_syntax_uid) for i in instances})
    encoded = list(messages(instances, contexts, MAX_PDU))
    os.read(go, 1)
    wire = Wire(int(str(told["port"])), tls=bool(told.get("tls")))
    wire.send([associate_request(str(told["ae_title"]), contexts)])
    kind, accepted = wire.receive()
    at = accepted.find(b"\x51\x00\x00\x04")
    agreed = int.from_bytes(accepted[at + 4 : at + 8], "big") or MAX_PDU
    if kind != 2:
        raise SystemExit(f"no association: PDU type {kind}")
    if agreed < MAX_PDU:
        encoded = list(messages(instances, contexts, agreed))
    for parts in encoded:
        wire.send(parts)
        kind, response = wire.receive()
        at = response.find(b"\x00\x00\x00\x09\x02\x00\x00\x00")
        if kind != 4 or response[at + 8 : at + 10] != b"\0\0":
            raise SystemExit(f"refused: PDU type {kind}, {response!r}")
    wire.send([RELEASE])
    wire.receive()


def main(told: dict[str, object]) -> float:
    """Return the seconds that `associations` took side by side."""
    files = sorted(Path(str(told["files"])).glob("*.dcm"))
    count = int(str(told["associations"]))
    (ready, tell_ready), (wait_go, go) = os.pipe(), os.pipe()
    children = []
    study = time.time_ns() // 1_000_000 % 10**9 * 10
    for number in range(count):
        child = os.fork()
        if child == 0:
            mine = files[number::count]
            instances = [renewed(f, study + number, n) for n, f in enumerate(mine)]
            os.write(tell_ready, b"r")
            send(told, instances, wait_go)
            os._exit(0)
        children.append(child)
    for _ in children:
        os.read(ready, 1)
    start = time.perf_counter()
    os.write(go, b"g" * count)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    seconds = time.perf_counter() - start
    if failed:
        raise SystemExit(f"{len(failed)} of {count} associations failed")
    return seconds


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
