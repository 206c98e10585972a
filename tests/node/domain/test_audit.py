"""The hash chain: any change to any entry is seen."""

from dataclasses import replace
from datetime import UTC, datetime

from node.domain.audit import GENESIS, AuditEntry, Outcome, chain_hash

ENTRY = AuditEntry(
    at=datetime(2026, 11, 21, tzinfo=UTC),
    actor="dr-li",
    role="radiologist",
    action="report-final",
    entity="report/1",
    detail={"reason": "x"},
)


def test_every_field_and_the_past_are_bound_into_the_hash() -> None:
    original = chain_hash(GENESIS, ENTRY)
    changed = [
        replace(ENTRY, at=datetime(2026, 11, 22, tzinfo=UTC)),
        replace(ENTRY, actor="dr-wu"),
        replace(ENTRY, role="auditor"),
        replace(ENTRY, action="read"),
        replace(ENTRY, entity="report/2"),
        replace(ENTRY, outcome=Outcome.REFUSED),
        replace(ENTRY, detail={}),
    ]
    hashes = {chain_hash(GENESIS, entry) for entry in changed}
    assert original not in hashes
    assert len(hashes) == len(changed)
    assert chain_hash(original, ENTRY) != original
