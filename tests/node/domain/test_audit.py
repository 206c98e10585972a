"""The hash chain: any change to any entry is seen."""

from dataclasses import replace
from datetime import UTC, datetime

from node.domain.audit import GENESIS, AuditEntry, Outcome, chain_hash
from node.domain.audit_codes import act_of

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


def test_what_the_pages_show_is_told_as_a_look_and_the_trail_as_the_trail() -> None:
    for action, code, letter in (
        ("review read", "110110", "R"),
        ("review/reconciliation read", "110110", "R"),
        ("review/audit read", "110101", "R"),
        ("audit-who", "110101", "R"),
        ("logout sign-on", "110114", "E"),
        ("something new", "110100", "E"),
    ):
        act = act_of(action)
        assert (act.code, act.letter) == (code, letter), action
    assert act_of("logout sign-on").subtype == "110123"
