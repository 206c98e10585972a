"""What an auditor asks of the trail beside its entries, each question an entry too.

The entries themselves are AuditEvents under /fhir. Here a number of the hospital
becomes the ids by which the trail knows a woman, and the chain is verified: that takes
minutes among millions, so a job does it in pieces and a row tells how far it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from node.domain.access import Action, Identity
from node.domain.audit import AuditEntry, Outcome, by_the_node
from node.domain.disclosure import mask_name
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, audit_checks, clients, identities, merges, people, studies
from node.store.audit import Anchor
from node.store.audit_checks import Check
from node.store.jobs import Priority

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

CHECK_TRAIL = "check_trail"

Kind = Literal["person", "program", "other"]


@dataclass(frozen=True)
class Actor:
    """Somebody whom the trail names; `id` is what it says for them."""

    id: str
    name: str
    kind: Kind


@dataclass(frozen=True)
class Woman:
    """All rows of one patient; her masked name is "" after her data were erased."""

    patients: tuple[UUID, ...]
    masked: str = field(repr=False)


@dataclass(frozen=True)
class Chain:
    """What is known of the chain: its length, the check that runs, the last one."""

    entries: int
    running: Check | None
    newest: Check | None


# --- whom to ask about ------------------------------------------------------------


async def read_actors(store: "Store", identity: Identity) -> list[Actor]:
    """Return who may be asked for: people in the trail, every program, and the rest."""
    identity.require(Action.READ_AUDIT)
    async with store.db.reading() as tx:
        found = await audit.actors(tx)
        users = {str(u.user_id): u.identity.shown for u in await people.list_users(tx)}
        programs = {str(c.client_id): c.name for c in await clients.list_clients(tx)}
    kinds: dict[Kind, list[Actor]] = {"person": [], "program": [], "other": []}
    for one in dict.fromkeys([*found, *programs]):
        name = users.get(one) or programs.get(one) or one
        kind: Kind = (
            "person" if one in users else "program" if one in programs else "other"
        )
        kinds[kind].append(Actor(one, name, kind))
    return [one for some in kinds.values() for one in sorted(some, key=_by_name)]


def _by_name(actor: Actor) -> str:
    return actor.name


async def find_women(
    store: "Store", identity: Identity, number: str
) -> tuple[Woman, ...]:
    """Return whom a Patient ID or an accession number names, more than one if it may.

    The look is an entry of each woman's trail; the number stays out of it.
    """
    identity.require(Action.READ_AUDIT)
    number = number.strip()
    async with store.db.transaction() as tx:
        named = await identities.find_patients_by_number(tx, store, number)
        for uid in await studies.find_studies_by_accession(tx, store, number):
            found = await studies.study(tx, uid)
            named += [] if found is None else [found.patient_id]
        rows: dict[frozenset[UUID], UUID] = {}
        for one in named:
            rows.setdefault(await merges.rows_of(tx, one), one)
        women = [
            Woman((one, *sorted(hers - {one})), await _masked(tx, store, one))
            for hers, one in rows.items()
        ]
        for woman in women:
            told = {"patients": " ".join(map(str, woman.patients))}
            entity = f"patient/{woman.patients[0]}"
            await audit.record(tx, _entry(store, identity, "audit-who", entity, told))
    return tuple(women)


async def _masked(tx: "Transaction", store: "Store", patient_id: UUID) -> str:
    try:
        return mask_name((await identities.patient(tx, store, patient_id)).name)
    except NodeError as error:
        if error.kind is not ErrorKind.GONE:
            raise
        return ""


# --- what is taken away -----------------------------------------------------------


async def note_export(
    store: "Store", identity: Identity, form: str, first: int, last: int, count: int
) -> None:
    """Record that events of the entries from `first` to `last` become a file."""
    identity.require(Action.READ_AUDIT)
    told = {"form": form, "events": str(count)}
    entity = f"audit/{first}-{last}"
    async with store.db.transaction() as tx:
        await audit.record(tx, _entry(store, identity, "audit-export", entity, told))


# --- whether the chain holds ------------------------------------------------------


async def read_chain(store: "Store", identity: Identity) -> Chain:
    """Return how the chain stands."""
    identity.require(Action.READ_AUDIT)
    async with store.db.reading() as tx:
        return Chain(
            (await audit.head(tx)).sequence,
            await audit_checks.running(tx),
            await audit_checks.newest(tx),
        )


async def start_check(store: "Store", identity: Identity, *, whole: bool) -> None:
    """Let the chain be verified, from its first entry or from where it last held.

    Nothing is started beside a check that runs; one whose worker was lost goes on.
    """
    identity.require(Action.READ_AUDIT)
    async with store.db.transaction() as tx:
        after = Anchor() if whole else await _held(tx)
        head = (await audit.head(tx)).sequence
        check = await audit_checks.begin(
            tx, after, head, asked_by=identity.user_id, now=store.clock()
        )
        await store.jobs.defer(
            tx,
            CHECK_TRAIL,
            {"check_id": str(check.check_id)},
            key=str(check.check_id),
            priority=Priority.LOW,
        )
        told = {"asked": f"{check.first}-{check.last}"}
        await audit.record(tx, _entry(store, identity, "audit-verify", "audit", told))


async def _held(tx: "Transaction") -> Anchor:
    """Return up to where the last check found that the chain holds."""
    newest = await audit_checks.newest(tx)
    return Anchor() if newest is None or newest.fault else newest.reached


async def check_trail(store: "Store", payload: Mapping[str, Any]) -> None:
    """Verify what a check was asked to, piece by piece (the job `check_trail`)."""
    check_id = UUID(str(payload["check_id"]))
    while await _check_piece(store, check_id):
        pass


async def _check_piece(store: "Store", check_id: UUID) -> bool:
    """Verify the next piece; tell whether there is more."""
    async with store.db.transaction() as tx:
        check = await audit_checks.claim(tx, check_id)
        if check is None:
            return False
        reached, fault = check.reached, ""
        try:
            reached = await audit.verify_piece(tx, reached, check.last)
        except NodeError as error:
            if error.kind is not ErrorKind.INTEGRITY:
                raise
            fault = error.message
        ends = bool(fault) or reached.sequence >= check.last
        await audit_checks.advance(
            tx,
            check_id,
            reached,
            ended_at=store.clock() if ends else None,
            fault=fault,
        )
        if ends:
            await audit.record(tx, _found(store, check, reached, fault))
    return not ends


def _found(store: "Store", check: Check, reached: Anchor, fault: str) -> AuditEntry:
    told = {"held": f"{check.first}-{reached.sequence}", "hash": reached.hash.hex()}
    if not fault:
        return by_the_node(store.clock(), "audit-verify", "audit", told)
    told["reason"] = fault
    return AuditEntry(
        store.clock(),
        "sononode",
        "device",
        "audit-verify",
        "audit",
        Outcome.FAILED,
        told,
    )


def _entry(
    store: "Store",
    identity: Identity,
    action: str,
    entity: str,
    detail: Mapping[str, str],
) -> AuditEntry:
    role = ",".join(sorted(role.value for role in identity.roles))
    return AuditEntry(
        store.clock(), identity.user_id, role, action, entity, detail=detail
    )
