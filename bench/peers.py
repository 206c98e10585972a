"""Storage SCPs beside ours, each in a directory and on a port of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 60.0
# Without it DCMTK's tools wait for acknowledgements and any comparison is unfair.
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Peer:
    """A program that takes C-STORE: its name, AE title and port."""

    name: str
    ae_title: str
    port: int
    durable: str
    tls: bool = False


@contextlib.contextmanager
def sononode(folder: Path) -> Iterator[list[Peer]]:
    """Run our storage SCP with its own database, on a plain and on a TLS port."""
    port, tls_port = free_port(), free_port()
    ports = [str(port), str(tls_port)]
    command = [sys.executable, "-m", "bench.storage_scp", str(folder), *ports]
    with _running(command, port, folder):
        promise = "encrypted, fsync, committed, audited"
        yield [
            Peer("sononode", "SONONODE", port, promise),
            Peer("sononode over TLS", "SONONODE", tls_port, promise, tls=True),
        ]


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[list[Peer]]:
    """Run DCMTK's storescp, a process an association, where it is installed."""
    program = _program("storescp")
    if program is None:
        yield []
        return
    port = free_port()
    options = ["--fork", "+xa", "+B", "--max-pdu", "131072", "-od", str(folder)]
    with _running([program, *options, str(port)], port, folder):
        yield [Peer("DCMTK storescp", "STORESCP", port, "plain files, no fsync")]


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[list[Peer]]:
    """Run Orthanc with PDUs of 128 KB and 8 threads, where it is installed."""
    program = _program("Orthanc")
    if program is None:
        yield []
        return
    dicom, http = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "Plugins": [],
                "HttpPort": http,
                "DicomAet": "ORTHANC",
                "DicomPort": dicom,
                "MaximumPduLength": 131_072,
                "DicomThreadsCount": 8,
                "RemoteAccessAllowed": False,
            }
        )
    )
    with _running([program, str(configuration)], dicom, folder):
        yield [Peer("Orthanc", "ORTHANC", dicom, "plain files, fsync, and SQLite")]


def send(peer: Peer, files: Path, associations: int) -> float:
    """Send a folder over `associations` side by side; return seconds."""
    told = {
        "port": peer.port,
        "ae_title": peer.ae_title,
        "files": str(files),
        "associations": associations,
        "tls": peer.tls,
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.sender", json.dumps(told)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bench: {peer.name}: {done.stderr.strip()}")
    return float(done.stdout)


def send_with_storescu(peer: Peer, files: Path) -> float:
    """Send a folder with DCMTK's storescu over one association; return seconds.

    New SOP Instance UIDs are made on the way, so nobody sees a duplicate.
    """
    program = _program("storescu")
    if program is None:
        raise SystemExit("bench: DCMTK's storescu is needed as the sender")
    command = [
        program,
        "-xf",
        str(ROOT / "bench" / "storescu.cfg"),
        "Ultrasound",
        "--max-pdu",
        "131072",
        "+II",
        "-aec",
        peer.ae_title,
        "+sd",
        "127.0.0.1",
        str(peer.port),
        str(files),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return time.perf_counter() - start


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _program(name: str) -> str | None:
    # A Python environment may carry a script of the same name; DCMTK's is meant.
    return shutil.which(name, path="/usr/bin:/usr/local/bin:/usr/sbin:/opt/dcmtk/bin")


@contextlib.contextmanager
def _running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=ENVIRONMENT
        )
        try:
            _wait(port, process, folder)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"bench: {process.args!r} ended; see {folder}/log.txt")
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1),
        ):
            return
        time.sleep(0.05)
    raise SystemExit(f"bench: nothing listens on port {port} after {START_S:.0f} s")
