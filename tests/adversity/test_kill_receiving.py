"""`kill -9` of the receiving process in the middle of C-STORE, again and again.

What it acknowledged is there byte for byte (PS3.4 B.2.3, Success), what it did not
acknowledge is there whole or not at all, and no object is left that nobody knows of.
With SONONODE_ADVERSITY=full it is 500 kills, otherwise a few dozen; SONONODE_SEED
chooses other moments.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage
from pynetdicom.dsutils import encode

from node.store import audit, studies
from node.store.store import Store
from node.workflow.intake import data_set_offset
from tests.adversity.raw_peer import ACCEPT, RawPeer, associate_rq, data_pdus
from tests.adversity.raw_peer import store_command as c_store
from tests.dicom_scp.instances import make_instance
from tests.ports import free_port

FULL = os.environ.get("SONONODE_ADVERSITY") == "full"
SEED = int(os.environ.get("SONONODE_SEED", "20261121"))
KILLS = 500 if FULL else 30
ASSOCIATIONS = 3
LONGEST_LIFE_S = 0.2  # from the first answer on, or from the first association
CONTEXTS = ((UltrasoundImageStorage, ExplicitVRLittleEndian),)
UID = "1.2.3.99999999"  # of the template; as long as every other
STUDY = "2.25.71000000"
# What is imported once is forked as often as it is killed.
PROGRAM = """
import json, os, sys
from datetime import UTC, datetime
from pathlib import Path
from dicom_scp.receiving.scp import ScpSettings, run_scp
from node.store.store import open_store
told = json.loads(sys.argv[1])

async def open_it():
    clock = lambda: datetime.now(UTC)
    key, objects = Path(told["key"]), Path(told["objects"])
    return await open_store(told["dsn"], key, objects, clock, pool_size=3)

for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log
        port = told["port"]
        run_scp(ScpSettings(host="127.0.0.1", port=port, grace_s=1.0), open_it)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@dataclass
class Sent:
    """What a modality has sent under which UID, and what it was promised."""

    digests: dict[str, bytes] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)


@dataclass
class Killable:
    """The receiving process, started and killed as often as one likes."""

    parent: "subprocess.Popen[str]"
    port: int
    pid: int = 0

    def start(self) -> None:
        """Return when it listens."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.write("start\n")
        self.parent.stdin.flush()
        self.pid = int(self.parent.stdout.readline())
        end = time.monotonic() + 60.0
        while time.monotonic() < end:
            try:
                RawPeer(self.port).finish()
                return
            except ConnectionRefusedError:
                time.sleep(0.005)
        raise AssertionError("it does not listen")

    def end(self, number: signal.Signals) -> None:
        """Send a signal and return when it is gone."""
        assert self.parent.stdout is not None
        os.kill(self.pid, number)
        assert self.parent.stdout.readline() == "ended\n"


@pytest.fixture
def killable(store: Store) -> Iterator[Killable]:
    port = free_port()
    told = {
        "dsn": store.db._dsn,
        "key": str(store.ring._root_path),
        "objects": str(store.blobs._root),
        "port": port,
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield Killable(parent, port)
    parent.kill()
    parent.wait()


async def test_nothing_promised_is_lost_and_nothing_is_left_over(
    killable: Killable, store: Store
) -> None:
    chance = random.Random(SEED)
    sent = Sent()
    _kill_again_and_again(killable, chance, sent)
    killable.start()  # it puts everything in order
    killable.end(signal.SIGTERM)

    assert len(sent.acknowledged) > KILLS / 2
    async with store.db.transaction() as tx:
        for uid in sent.acknowledged:
            assert await studies.instance(tx, store, uid) is not None, uid
        uids = await tx.fetch("select sop_instance_uid from instances")
        for row in uids:
            kept = await studies.instance(tx, store, row["sop_instance_uid"])
            assert kept is not None
            with studies.open_blob(store, kept) as reader:
                content = reader.read()
            data_set = memoryview(content)[data_set_offset(content) :]
            digest = hashlib.sha256(data_set).digest()
            assert digest == sent.digests[kept.sop_instance_uid] == kept.sha256
        assert await audit.verify(tx) >= len(uids)
    on_disk = [path for path in store.blobs._root.rglob("*") if path.is_file()]
    assert len(on_disk) == len(uids)
    assert not any(store.blobs._unfinished.iterdir())
    print(
        f"\n{KILLS} kills: {len(sent.acknowledged)} acknowledged of"
        f" {len(sent.digests)} sent, {len(uids)} kept, all whole"
    )


def _kill_again_and_again(
    killable: Killable, chance: random.Random, sent: Sent
) -> None:
    numbers = iter(range(10_000_000, 99_999_999))
    templates = [_template(rows) for rows in (16, 16, 400, 1300)]  # up to 2 segments
    for _ in range(KILLS):
        killable.start()
        senders = [
            threading.Thread(
                target=_send_until_it_dies,
                args=(killable.port, study, numbers, templates, sent),
            )
            for study in range(ASSOCIATIONS)
        ]
        for sender in senders:
            sender.start()
        if chance.random() < 0.8:  # the others may end before their first answer
            _wait_for_another(sent, len(sent.acknowledged))
        time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))
        killable.end(signal.SIGKILL)
        for sender in senders:
            sender.join()


def _wait_for_another(sent: Sent, acknowledged: int) -> None:
    end = time.monotonic() + 60.0
    while len(sent.acknowledged) <= acknowledged:
        assert time.monotonic() < end, "nothing is acknowledged"
        time.sleep(0.005)


def _template(rows: int) -> bytes:
    instance = make_instance(
        rows=rows, columns=rows, SOPInstanceUID=UID, StudyInstanceUID=STUDY
    )
    encoded = encode(instance, is_implicit_vr=False, is_little_endian=True)
    assert encoded is not None
    return encoded


def _send_until_it_dies(
    port: int,
    study: int,
    numbers: Iterator[int],
    templates: list[bytes],
    sent: Sent,
) -> None:
    """Send one instance after the other; the last one gets no answer."""
    try:
        with RawPeer(port) as peer:
            peer.send(associate_rq(CONTEXTS))
            answer = peer.read_pdu()
            if answer is None or answer[0] != ACCEPT:
                return
            while True:
                uid = f"1.2.3.{next(numbers)}"
                data_set = _renewed(templates[int(uid[-2:]) % 4], uid, study)
                sent.digests[uid] = hashlib.sha256(data_set).digest()
                command = c_store(UltrasoundImageStorage, uid)
                peer.send(data_pdus(1, command, command=True))
                peer.send(data_pdus(1, data_set, command=False))
                if peer.read_status() != 0x0000:
                    return
                sent.acknowledged.add(uid)
    except OSError:
        return


def _renewed(template: bytes, uid: str, study: int) -> bytes:
    beginning = template[:1024].replace(UID.encode(), uid.encode())
    beginning = beginning.replace(STUDY.encode(), f"2.25.7100000{study}".encode())
    return beginning + template[1024:]
