"""What `doctor` says of an installation, as far as only whole archives show it."""

from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from config.settings import Settings, load_settings
from node.administration import Finding, examine, kept_versions, write_version
from node.domain.errors import NodeError
from node.domain.study import Duplicates
from node.store import audit, commitments
from node.store.commitments import DeliveryState, Reference
from node.store.store import Store
from node.workflow.commitment import instance_sent, receive_request
from node.workflow.intake import receive_instance
from tests.agreements import KEPT, compared_reports, record_all
from tests.conftest import FrozenClock
from tests.dicom_scp.instances import make_instance
from tests.intake import receive_object
from tests.node.workflow.test_completion import make_arrival
from tests.node.workflow.test_orders import OTHER, matched, placed, received

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
WHAT = "agreement of AI and doctors"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        {
            "SONONODE_DATA": str(tmp_path),
            "SONONODE_INFERENCE__AGREEMENT_WINDOW": "60",
        }
    )


async def told(store: Store, settings: Settings) -> list[Finding]:
    found = await examine(store, settings)
    return [finding for finding in found if finding.what == WHAT]


async def test_doctor_says_when_agreement_has_changed(
    store: Store, settings: Settings
) -> None:
    assert await told(store, settings) == []
    before = NOW - timedelta(days=30)
    await record_all(store, compared_reports(100, ends=before, seed=1))
    (early,) = await told(store, settings)
    assert early.well
    assert "100 signed reports compared, too few" in early.told
    await record_all(
        store,
        compared_reports(80, ends=NOW, seed=2, kept={**KEPT, "orientation": 0.5}),
    )
    (alarm,) = await told(store, settings)
    assert not alarm.well
    assert "changed in orientation;" in alarm.told


async def test_doctor_says_which_results_an_archive_does_not_keep(
    store: Store, settings: Settings
) -> None:
    async def archive() -> list[Finding]:
        found = await examine(store, settings)
        return [finding for finding in found if finding.what == "results at PACS"]

    assert await archive() == []
    for number in (1, 2):
        arrival = make_arrival(number)
        await receive_instance(store, arrival)
        async with store.db.transaction() as tx:
            await instance_sent(
                store,
                tx,
                sop_instance_uid=arrival.instance.sop_instance_uid,
                destination="PACS",
                sent=Reference("1.2.3", arrival.instance.sop_instance_uid),
                commitment=True,
            )
    assert await archive() == [Finding("results at PACS", True, "2 waiting")]
    async with store.db.transaction() as tx:
        one, two = await commitments.deliveries_of_study(tx, "2.25.71")
        await commitments.settle(tx, one, DeliveryState.COMMITTED, at=NOW)
        await commitments.settle(tx, two, DeliveryState.FAILED, at=NOW)
    assert await archive() == [
        Finding("results at PACS", False, "1 committed, 1 failed")
    ]


async def test_doctor_names_the_machine_that_does_not_take_its_report(
    store: Store, settings: Settings, clock: FrozenClock
) -> None:
    await receive_request(
        store,
        calling_ae="LOGIQ_1",
        transaction_uid="2.25.9",
        references=[Reference("1.2.3", "2.25.1")],
    )

    async def late() -> list[Finding]:
        found = await examine(store, settings)
        return [finding for finding in found if finding.what == "storage commitment"]

    assert await late() == []
    clock.advance(seconds=3601)
    (finding,) = await late()
    assert not finding.well
    assert finding.told.startswith("LOGIQ_1 has not taken its report since 2026-11-21")


async def test_kept_version_is_listed_and_written_for_an_administrator(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    first = make_instance()
    other = make_instance(SOPInstanceUID=first.SOPInstanceUID, Rows=32)
    await receive_version(store, first)
    assert await kept_versions(store) == []
    part10 = await receive_version(store, other)
    (version,) = await kept_versions(store)
    assert (version.sop_instance_uid, version.number) == (first.SOPInstanceUID, 2)
    target = tmp_path / "other.dcm"
    await write_version(store, version.sop_instance_uid, 2, target)
    assert target.read_bytes() == part10
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(NodeError, match="cannot be written"):
        await write_version(store, version.sop_instance_uid, 2, target)
    with pytest.raises(NodeError, match="no version 3"):
        await write_version(store, version.sop_instance_uid, 3, tmp_path / "x")
    (finding,) = (f for f in await examine(store, settings) if f.what == "duplicates")
    assert finding.well
    assert finding.told.startswith("1 other version")
    async with store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"instance/{first.SOPInstanceUID}")
    assert entries[2].action == "export"
    assert entries[2].detail["kept_version"] == "2"


async def receive_version(store: Store, instance: Dataset) -> bytes:
    """Receive an instance of a site that keeps every version; return its file."""
    file = BytesIO()
    dcmwrite(file, instance, enforce_file_format=True)
    await receive_object(
        store, instance, file.getvalue(), duplicates=Duplicates.KEEP_BOTH
    )
    return file.getvalue()


async def test_doctor_names_studies_with_the_order_of_another_patient(
    store: Store, settings: Settings
) -> None:
    async def told_of_orders() -> Finding:
        found = await examine(store, settings)
        return next(finding for finding in found if finding.what == "orders")

    await placed(store)
    assert (await told_of_orders()).well
    await received(store, accession="ACC-1", identity=OTHER)
    await matched(store)
    told = await told_of_orders()
    assert not told.well
    assert told.told.startswith("1 with another patient")
