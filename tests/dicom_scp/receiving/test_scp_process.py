"""The receiving process is killed and comes back; what it acknowledged is there."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_scp.receiving.scp import StorageScp
from node.store import studies
from node.store.database import Database
from node.store.keys import create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.store.store import Store, open_store
from node.workflow.intake import settle_abandoned
from tests.dicom_scp.conftest import SETTINGS
from tests.dicom_scp.instances import make_instance
from tests.ports import free_port

PROGRAM = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from dicom_scp.receiving.scp import ScpSettings, run_scp
from node.store.store import open_store
dsn, key, objects, port = json.loads(sys.argv[1])

async def open_it():
    clock = lambda: datetime.now(UTC)
    return await open_store(dsn, Path(key), Path(objects), clock, pool_size=3)

run_scp(ScpSettings(host="127.0.0.1", port=port, grace_s=5.0), open_it)
"""
PATIENCE_S = 60.0


class Process:
    """A receiving process on a free port of this machine."""

    def __init__(self, store: Store, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        told = [
            store.db._dsn,
            str(store.ring._root_path),
            str(store.blobs._root),
            port,
        ]
        with log.open("ab") as written:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(told)],
                stdout=subprocess.DEVNULL,
                stderr=written,
            )

    def wait_until_it_listens(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            association = self.associate()
            if association.is_established:
                association.release()
                return
            assert self.process.poll() is None
            time.sleep(0.05)
        raise AssertionError("it does not listen")

    def associate(self, *instances: Dataset) -> Association:
        entity = AE("SCANNER")
        entity.acse_timeout = entity.dimse_timeout = 60
        entity.add_requested_context("1.2.840.10008.1.1")
        for instance in instances:
            entity.add_requested_context(
                instance.SOPClassUID, instance.file_meta.TransferSyntaxUID
            )
        return entity.associate("127.0.0.1", self.port, ae_title="SONONODE")


@pytest.fixture
def start_process(store: Store, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []
    port = free_port()

    def start() -> Process:
        started.append(Process(store, port, tmp_path / "scp.log"))
        started[-1].wait_until_it_listens()
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()


async def test_killed_process_has_kept_all_that_it_acknowledged(
    store: Store, start_process: Callable[[], Process]
) -> None:
    process = await asyncio.to_thread(start_process)
    acknowledged: list[str] = []

    def send_until_it_dies() -> None:
        instance = make_instance()
        association = process.associate(instance)
        while association.is_established:
            instance = make_instance(rows=32)
            try:
                if association.send_c_store(instance).Status == 0x0000:
                    acknowledged.append(instance.SOPInstanceUID)
            except (AttributeError, RuntimeError):
                return  # no answer came any more
            if len(acknowledged) == 12:
                os.kill(process.process.pid, signal.SIGKILL)

    await asyncio.to_thread(send_until_it_dies)
    process.process.wait()
    assert len(acknowledged) >= 12
    async with store.db.transaction() as tx:
        for uid in acknowledged:
            instance = await studies.instance(tx, store, uid)
            assert instance is not None
            with studies.open_blob(store, instance) as reader:
                assert len(reader.read()) == instance.size
        held = await tx.fetchval("select count(*) from open_associations")
    assert held == 1

    await asyncio.to_thread(start_process)
    async with store.db.transaction() as tx:
        held = await tx.fetchval("select count(*) from open_associations")
        how = await tx.fetchval("select ended_how from studies")
        kept = await studies.instances_of(tx, store, "2.25.71")
    assert (held, how) == (0, "lost")
    assert {i.sop_instance_uid for i in kept} >= set(acknowledged)
    for instance in kept:  # also those that were on their way
        with studies.open_blob(store, instance) as reader:
            assert len(reader.read()) == instance.size


async def test_sigterm_lets_an_open_association_finish(
    store: Store, start_process: Callable[[], Process]
) -> None:
    process = await asyncio.to_thread(start_process)
    instances = [make_instance() for _ in range(2)]

    def send_around_the_signal() -> list[int]:
        association = process.associate(instances[0])
        statuses = [association.send_c_store(instances[0]).Status]
        process.process.terminate()
        assert not_listening(process)
        statuses.append(association.send_c_store(instances[1]).Status)
        association.release()
        return statuses

    assert await asyncio.to_thread(send_around_the_signal) == [0x0000, 0x0000]
    assert process.process.wait(PATIENCE_S) == 0


def not_listening(process: Process) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        probe = process.associate()
        if not probe.is_established:
            return True
        probe.release()
        time.sleep(0.05)
    return False


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder in which the server's socket keeps its place over a restart."""
    folder = Path(tempfile.mkdtemp(prefix="scp-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def test_database_that_is_away_costs_time_but_no_instance(
    tmp_path: Path, short_folder: Path
) -> None:
    server = EmbeddedPostgres(short_folder / "pg", {"fsync": "off"})
    dsn = await asyncio.to_thread(
        lambda: server.start() and server.create_database("node")
    )
    database = await Database.connect(dsn)
    await migrate(database)
    await database.close()
    create_root_key(tmp_path / "root.key")

    async def open_it() -> Store:
        return await open_store(
            dsn,
            tmp_path / "root.key",
            tmp_path / "objects",
            lambda: datetime.now(UTC),
            pool_size=3,
        )

    scp = StorageScp(SETTINGS, open_it)
    await asyncio.to_thread(scp.start)
    instance = make_instance()

    def send_through_an_outage() -> list[int]:
        entity = AE("SCANNER")
        entity.add_requested_context(
            instance.SOPClassUID, instance.file_meta.TransferSyntaxUID
        )
        association = entity.associate("127.0.0.1", scp.ports[0], ae_title="SONONODE")
        try:
            server.stop()
            statuses = [association.send_c_store(instance).Status]
            server.start()
            statuses.append(association.send_c_store(instance).Status)
            return statuses
        finally:
            association.release()

    try:
        assert await asyncio.to_thread(send_through_an_outage) == [0xA700, 0x0000]
        store = scp._intake.store
        assert (
            await asyncio.to_thread(scp._thread.call, settle_abandoned(store)) == 1
        )  # the object of which nobody knew whether it had been noted
    finally:
        await asyncio.to_thread(scp.stop, grace_s=0)
        await asyncio.to_thread(server.stop)
    assert list((tmp_path / "objects" / "unfinished").iterdir()) == []
