"""The trail taken away: whoever has the lines can prove them, in any language."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import fhirkit
import pytest

from node.audit_commands import verify_file, who_saw, write_export
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.store import audit
from node.store.audit import Anchor
from node.store.store import Store
from tests.factories import NOW, make_patient
from tests.fhir.rig import receive_study


def entry(number: int) -> AuditEntry:
    detail = {"why": "急诊", "status": "200"}
    return AuditEntry(
        NOW, "dr-li", "radiologist", "fhir read", f"X/{number}", detail=detail
    )


async def recorded(store: Store, count: int) -> Anchor:
    async with store.db.connection() as connection:
        await audit.append(connection, [entry(n) for n in range(count)])
        return await audit.head(connection)


async def test_an_export_proves_itself_without_us(store: Store, tmp_path: Path) -> None:
    head = await recorded(store, 5)
    target = tmp_path / "trail.ndjson"
    assert await write_export(store, target, 1, None, None) == 5
    previous = bytes(32)
    for line in target.read_text("utf-8").splitlines():
        told = json.loads(line)
        assert told["previous_hash"] == previous.hex()
        previous = hashlib.sha256(previous + told["entry"].encode()).digest()
        assert told["hash"] == previous.hex()
    assert previous == head.hash
    assert verify_file(target, None) == (5, head)
    async with store.db.connection() as connection:
        (own,) = await audit.following(connection, 5, 10)
    assert (own.entry.action, own.entry.entity) == ("audit-export", "audit/1-5")


async def test_parts_join_at_the_head_that_was_kept(
    store: Store, tmp_path: Path
) -> None:
    await recorded(store, 6)
    old, new = tmp_path / "old.ndjson", tmp_path / "new.ndjson"
    await write_export(store, old, 1, 4, None)
    await write_export(store, new, 5, 6, None)
    _, kept = verify_file(old, Anchor())
    assert verify_file(new, kept)[0] == 2
    with pytest.raises(NodeError, match="was changed"):
        verify_file(new, replace(kept, hash=b"\1" * 32))
    with pytest.raises(NodeError, match="was changed"):
        verify_file(new, Anchor())
    async with store.db.transaction() as tx:
        assert (await audit.verify_from(tx, kept)).sequence == 8
        with pytest.raises(NodeError, match="audit entry 5"):
            await audit.verify_from(tx, replace(kept, hash=b"\1" * 32))
        with pytest.raises(NodeError, match="not the one that was kept"):
            await audit.verify_from(tx, Anchor(8, b"\1" * 32))
        with pytest.raises(NodeError, match="not the one that was kept"):
            await audit.verify_from(tx, Anchor(99, b"\1" * 32))  # the end was cut off


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (("dr-li", "dr-he"), ErrorKind.INTEGRITY),
        (('"sequence": 2', '"sequence": 9'), ErrorKind.INTEGRITY),
        (('"hash"', '"cash"'), ErrorKind.INVALID),
        (("{", "["), ErrorKind.INVALID),
    ],
)
async def test_a_file_that_was_changed_is_found(
    store: Store, tmp_path: Path, change: tuple[str, str], kind: ErrorKind
) -> None:
    await recorded(store, 3)
    target = tmp_path / "trail.ndjson"
    await write_export(store, target, 1, None, None)
    target.write_text(target.read_text("utf-8").replace(*change), "utf-8")
    with pytest.raises(NodeError) as told:
        verify_file(target, None)
    assert told.value.kind is kind
    with pytest.raises(NodeError, match="File exists"):
        await write_export(store, target, 1, None, None)


async def test_an_export_of_audit_events_is_valid_fhir(
    store: Store, tmp_path: Path
) -> None:
    await receive_study(store, make_patient())
    await recorded(store, 3)
    target = tmp_path / "events.ndjson"
    await write_export(store, target, 1, None, "https://node.hospital/fhir")
    lines = target.read_bytes().splitlines()
    assert len(lines) == 3
    for line in lines:
        assert fhirkit.validate(line) == []


async def test_who_saw_a_patient_is_told_in_both_languages_and_recorded(
    store: Store,
) -> None:
    identity = make_patient()
    patient = await receive_study(store, identity)
    seen = replace(entry(1), detail={"patients": str(patient), "address": "10.0.0.7"})
    other = replace(entry(2), detail={"patients": str(UUID(int=9, version=4))})
    found = replace(seen, action="fhir search-type", entity="DiagnosticReport")
    async with store.db.connection() as connection:
        await audit.append(connection, [seen, other, found])
    rows = await who_saw(store, identity.patient_id, "", None, None, language="en")
    assert [row[3:] for row in rows] == [
        (
            "found in a search (fhir search-type)",
            "DiagnosticReport",
            "10.0.0.7",
            "served",
        ),
        ("saw (fhir read)", "X/1", "10.0.0.7", "served"),
    ]
    rows = await who_saw(store, str(patient), "", None, None, language="zh-CN")
    assert rows[0][3] == "查看 (audit-who)"
    assert rows[-1][3] == "查看 (fhir read)"
    with pytest.raises(NodeError, match="no such patient"):
        await who_saw(store, "MRN-unknown", "", None, None, language="en")


async def test_the_index_of_patients_cannot_be_thinned_out(store: Store) -> None:
    patient = UUID(int=9, version=4)
    seen = replace(entry(1), detail={"patients": str(patient)})
    async with store.db.connection() as connection:
        await audit.append(connection, [seen])
    for tampering in (
        "delete from audit_patients",
        "update audit_patients set patient_id = gen_random_uuid()",
        "insert into audit_patients values (gen_random_uuid(), now(), 1)",
    ):
        with pytest.raises(NodeError, match="does not fit audit entry 1"):  # noqa: PT012
            async with store.db.transaction() as tx:
                await tx.execute("alter table audit_patients disable trigger user")
                await tx.execute(tampering)
                await audit.verify(tx)
    async with store.db.transaction() as tx:
        assert await audit.verify(tx) == 1
