"""Storage commitment with an Orthanc, which asks us and is asked by us (PS3.4 J)."""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from pydicom.uid import UltrasoundImageStorage

from dicom_scp.receiving.peers import Peer, Peers
from dicom_scp.receiving.scp import ScpSettings, StorageScp
from dicom_scp.results.sr import to_part10
from dicom_scp.sending.scu import Destination, send_part10
from dicom_scp.services.commitment import (
    CommitmentSettings,
    commitment_service,
    report_commitment,
    request_commitment,
)
from node.store import commitments
from node.store.commitments import DeliveryState, Reference
from node.store.store import Store, open_store
from node.worker import Worker
from node.workflow.commitment import (
    LANE,
    REPORT_COMMITMENT,
    REQUEST_COMMITMENT,
    instance_sent,
)
from tests.conformance.orthanc import Orthanc
from tests.conftest import FrozenClock
from tests.dicom_scp.instances import make_instance
from tests.intake import receive_object

SETTINGS = CommitmentSettings(grace_s=0)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def scp(store: Store, orthanc: Orthanc) -> Any:
    """Our port, known to Orthanc as `node`."""

    async def open_another() -> Store:
        return await open_store(
            store.db._dsn, store.ring._root_path, store.blobs._root, store.clock
        )

    peer = Peer("ORTHANC", host="127.0.0.1", port=orthanc.dicom)
    settings = ScpSettings(
        host="127.0.0.1", port=0, peers=Peers([peer]), min_free_bytes=0
    )
    scp = StorageScp(settings, open_another, [commitment_service(SETTINGS)])
    await asyncio.to_thread(scp.start)
    modality = {"AET": "SONONODE", "Host": "127.0.0.1", "Port": scp.ports[0]}
    orthanc.put("/modalities/node", modality)
    yield scp
    await asyncio.to_thread(scp.stop, grace_s=0)


async def until(looked_for: Callable[[], Any]) -> Any:
    """Return what another program comes to say, polled for some seconds."""
    for _ in range(int(PATIENCE_S / 0.05)):
        if found := await asyncio.to_thread(looked_for):
            return found
        await asyncio.sleep(0.05)
    pytest.fail(f"nothing came within {PATIENCE_S} s")


def ask(orthanc: Orthanc, *wanted: tuple[str, str]) -> str:
    """Have Orthanc ask us; return the path of its record."""
    body = {
        "DicomInstances": [
            {"SOPClassUID": sop_class, "SOPInstanceUID": uid}
            for sop_class, uid in wanted
        ]
    }
    path = "/modalities/node/storage-commitment"
    return str(json.loads(orthanc.get(path, json.dumps(body).encode()))["Path"])


def settled(orthanc: Orthanc, path: str) -> dict[str, Any] | None:
    record: dict[str, Any] = json.loads(orthanc.get(path))
    return None if record["Status"] == "Pending" else record


async def do(store: Store, kind: str, handler: Any) -> None:
    worker = Worker(store.jobs, {kind: handler}, lane=LANE)
    job = await store.jobs.claim([kind], "w1", lane=LANE)
    assert job is not None
    await worker._carry_out(job)


async def test_orthanc_is_told_what_is_kept_and_what_is_not(
    store: Store, scp: StorageScp, orthanc: Orthanc
) -> None:
    for uid in ("2.25.1", "2.25.2"):
        instance = make_instance(SOPInstanceUID=uid)
        await receive_object(store, instance, to_part10(instance))
    us, sc = str(UltrasoundImageStorage), "1.2.840.10008.5.1.4.1.1.7"
    address = Destination("ORTHANC", "127.0.0.1", orthanc.dicom)
    report = partial(
        report_commitment, store, settings=SETTINGS, addresses={"ORTHANC": address}
    )
    whole = await asyncio.to_thread(ask, orthanc, (us, "2.25.1"), (us, "2.25.2"))
    await do(store, REPORT_COMMITMENT, report)
    record = await until(lambda: settled(orthanc, whole))
    assert record["Status"] == "Success"
    assert len(record["Success"]) == 2
    half = await asyncio.to_thread(
        ask, orthanc, (us, "2.25.1"), (sc, "2.25.2"), (us, "2.25.404")
    )
    await do(store, REPORT_COMMITMENT, report)
    record = await until(lambda: settled(orthanc, half))
    assert record["Status"] == "Failure"
    reasons = {f["SOPInstanceUID"]: f["FailureReason"] for f in record["Failures"]}
    assert reasons == {"2.25.2": 0x0119, "2.25.404": 0x0112}


async def test_orthanc_commits_itself_to_what_we_sent(
    store: Store, scp: StorageScp, orthanc: Orthanc, clock: FrozenClock
) -> None:
    destination = Destination(
        "ORTHANC", "127.0.0.1", orthanc.dicom, commitment=True, commitment_wait_s=0
    )
    here, lost = make_instance(), make_instance()
    await asyncio.to_thread(send_part10, to_part10(here), destination)
    for instance in (here, lost):
        await receive_object(store, instance, to_part10(instance))
        uid = str(instance.SOPInstanceUID)
        async with store.db.transaction() as tx:
            await instance_sent(
                store,
                tx,
                sop_instance_uid=uid,
                destination="PACS",
                sent=Reference(str(instance.SOPClassUID), uid),
                commitment=True,
            )
    clock.advance(seconds=6)
    await do(
        store,
        REQUEST_COMMITMENT,
        partial(request_commitment, store, destinations={"PACS": destination}),
    )
    states: dict[str, DeliveryState] = {}
    for _ in range(int(PATIENCE_S / 0.05)):
        async with store.db.transaction() as tx:
            found = await commitments.deliveries_of_study(tx, "2.25.71")
            resent = await store.jobs.counts(tx)
        states = {delivery.sop_instance_uid: delivery.state for delivery in found}
        if DeliveryState.COMMITTED in states.values():
            break
        await asyncio.sleep(0.05)
    assert states[str(here.SOPInstanceUID)] is DeliveryState.COMMITTED
    assert states[str(lost.SOPInstanceUID)] is DeliveryState.SENT
    assert resent[("send_instance", "ready")] == 1  # what it does not have
