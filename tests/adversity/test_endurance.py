"""A listener that outlasts its peers: many associations, stuck ones, too many of them.

It runs as a process of its own, so that its memory and its threads are its own. With
SONONODE_ADVERSITY=full there are ten thousand associations, otherwise a few hundred.
"""

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage
from pynetdicom.dsutils import encode

from dicom_scp.receiving.storage import VERIFICATION
from node.store.store import Store
from tests.adversity.raw_peer import (
    ACCEPT,
    RELEASE_RP,
    RELEASE_RQ,
    RawPeer,
    associate_rq,
    data_pdus,
    store_command,
)
from tests.dicom_scp.conftest import tls_certificate
from tests.dicom_scp.instances import make_instance
from tests.ports import free_port

__all__ = ["tls_certificate"]  # a fixture of this module too

FULL = os.environ.get("SONONODE_ADVERSITY") == "full"
ASSOCIATIONS = 10_000 if FULL else 300
STORE_EVERY = 10
TIMEOUT_S = 20.0 if FULL else 3.0
PATIENCE_S = 60.0
STUCK = 50
MB = 1 << 20
ENVIRONMENT = {"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"}
CONTEXTS = (
    (VERIFICATION, ExplicitVRLittleEndian),
    (UltrasoundImageStorage, ExplicitVRLittleEndian),
)
PROGRAM = """
import json, sys
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from dicom_scp.receiving.peers import Peer, Peers
from dicom_scp.receiving.scp import ScpSettings, run_scp
from node.store.store import open_store
told = json.loads(sys.argv[1])

async def open_it():
    clock = lambda: datetime.now(UTC)
    key, objects = Path(told["key"]), Path(told["objects"])
    return await open_store(told["dsn"], key, objects, clock, pool_size=3)

known = Peer("SCANNER", addresses=(ip_network("127.0.0.1/32"),))
run_scp(ScpSettings(
    host="127.0.0.1", port=told["port"], tls_port=told["tls_port"],
    tls_certificate=Path(told["certificate"]), peers=Peers([known, Peer("RAW")]),
    acse_timeout_s=told["timeout_s"], network_timeout_s=told["timeout_s"],
    tls_handshake_timeout_s=told["timeout_s"], grace_s=1.0, min_free_bytes=0), open_it)
"""


@dataclass
class Receiver:
    """The receiving process, seen from outside."""

    process: psutil.Process
    port: int
    tls_port: int

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)

    @property
    def threads(self) -> int:
        return int(self.process.num_threads())

    def connections(self) -> int:
        """Connections that it has not closed."""
        return sum(
            one.status == psutil.CONN_ESTABLISHED
            and one.laddr.port in (self.port, self.tls_port)
            for one in self.process.net_connections("tcp")
        )


@pytest.fixture
def receiver(
    request: pytest.FixtureRequest, store: Store, tls_certificate: Path
) -> Iterator[Receiver]:
    """The receiving process; its parameter is how long it waits for a silent peer."""
    ports = [free_port(), free_port()]
    told = {
        "dsn": store.db._dsn,
        "key": str(store.ring._root_path),
        "objects": str(store.blobs._root),
        "certificate": str(tls_certificate),
        "port": ports[0],
        "tls_port": ports[1],
        "timeout_s": getattr(request, "param", TIMEOUT_S),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(told)], stdout=subprocess.DEVNULL
    )
    try:
        _until(lambda: all(map(_listens, ports)), PATIENCE_S)
        yield Receiver(psutil.Process(process.pid), *ports)
    finally:
        process.terminate()
        process.wait(60)


def test_many_associations_leave_neither_memory_nor_threads(receiver: Receiver) -> None:
    instance = make_instance(SOPInstanceUID="1.2.3.100000")
    data_set = encode(instance, is_implicit_vr=False, is_little_endian=True)
    assert data_set is not None
    request = associate_rq(CONTEXTS, calling="SCANNER")
    baseline = receiver.threads
    settled = 0
    for number in range(ASSOCIATIONS):
        with RawPeer(receiver.port) as peer:
            peer.send(request)
            answer = peer.read_pdu()
            assert answer is not None
            assert answer[0] == ACCEPT
            if number % STORE_EVERY == 0:
                uid = f"1.2.3.{100_000 + number}"
                command = store_command(instance.SOPClassUID, uid)
                mine = data_set.replace(b"1.2.3.100000", uid.encode())
                peer.send(
                    data_pdus(3, command, command=True)
                    + data_pdus(3, mine, command=False)
                )
                assert peer.read_status() == 0x0000
            peer.send(RELEASE_RQ)
            answer = peer.read_pdu()
            assert answer is not None
            assert answer[0] == RELEASE_RP
        if number == ASSOCIATIONS // 3:
            settled = receiver.memory
    assert receiver.memory - settled < 16 * MB
    assert _until(lambda: receiver.threads <= baseline, 30.0)
    print(
        f"\n{ASSOCIATIONS} associations: {settled / MB:.0f} MB after a third,"
        f" {receiver.memory / MB:.0f} MB at the end, {receiver.threads} threads"
    )


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_stuck_peers_hold_up_nobody_and_are_gone_in_time(
    receiver: Receiver, tls: bool
) -> None:
    port = receiver.tls_port if tls else receiver.port
    request = associate_rq(CONTEXTS)
    before = receiver.memory
    with ExitStack() as stack:

        def stuck(address: str) -> socket.socket:
            return stack.enter_context(_connected(port, address, tls=tls))

        # Each kind from two addresses, as one alone gets no more than its share.
        for number in range(STUCK):
            host = number % 2
            plain = _connected(port, f"127.0.1.{host}", tls=False)
            stack.enter_context(plain)  # silent, also in its handshake
            stuck(f"127.0.2.{host}").sendall(request[: len(request) // 2])
            half = stuck(f"127.0.3.{host}")
            half.sendall(request)
            assert half.recv(1) == bytes([ACCEPT])
            half.sendall(struct.pack(">BxLLBB", 4, 60_000, 59_996, 3, 0) + b"half")
        stuck("127.0.4.1").sendall(struct.pack(">BxL", 1, 1 << 31))
        over = stuck("127.0.4.2")
        over.sendall(request)
        over.recv(1)
        over.sendall(struct.pack(">BxL", 4, 0xFFFFFFFF))

        started = time.monotonic()
        echo = _echo(receiver.port)
        assert echo < TIMEOUT_S, f"an echo took {echo:.2f} s"
        assert receiver.memory - before < 100 * MB
        assert _until(lambda: receiver.connections() == 0, TIMEOUT_S + 30.0)
        gone = time.monotonic() - started
    assert _echo(receiver.port) < TIMEOUT_S
    print(
        f"\n{3 * STUCK} stuck peers, {'TLS' if tls else 'plain'}: echo {echo:.2f} s,"
        f" +{(receiver.memory - before) / MB:.0f} MB, gone after {gone:.1f} s"
    )


@pytest.mark.parametrize("receiver", [PATIENCE_S], indirect=True)
def test_strangers_from_many_addresses_leave_room_for_a_known_peer(
    receiver: Receiver,
) -> None:
    with ExitStack() as stack:
        for number in range(520):  # more than the node takes from anybody
            address = f"127.1.0.{1 + number // 30}"
            stack.enter_context(_connected(receiver.port, address, tls=False))
        assert _until(lambda: receiver.connections() == 384, 30.0)  # and no more
        assert _echo(receiver.port) < PATIENCE_S / 2  # none of them was given up


def _connected(port: int, address: str, *, tls: bool) -> socket.socket:
    """Return a connection from `address` of this machine."""
    plain = socket.create_connection(("127.0.0.1", port), 10.0, (address, 0))
    if not tls:
        return plain
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def _echo(port: int) -> float:
    """Return the seconds that DCMTK's echoscu takes, its start included."""
    started = time.monotonic()
    titles = ("-aet", "SCANNER", "-aec", "SONONODE")
    command = ["echoscu", *titles, "127.0.0.1", str(port)]
    subprocess.run(
        command,
        check=True,
        timeout=PATIENCE_S,
        env={"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"},
    )
    return time.monotonic() - started


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
