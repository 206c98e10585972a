"""Which instance goes to which destination, and when.

`decide` is the rule: a pure function of what is known of an instance. The rest asks it
where an instance becomes durable and defers one `send_instance` job for each instance
and destination in the same transaction: for results when they are stored, for received
instances when they have arrived or when their study is complete. Jobs of one study
and one destination share an order, so images arrive before their report and the draft
before the signed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from node.domain import lexicon
from node.domain.report import ReportStatus
from node.domain.study import Origin
from node.store import routes, studies
from node.store.jobs import Priority
from node.store.routes import Unrouted, Waiting

if TYPE_CHECKING:
    from uuid import UUID

    from node.domain.report import Report, ReportVersion
    from node.domain.study import ReceivedInstance
    from node.store.database import Transaction
    from node.store.store import Store

SEND: Final = "send_instance"
RESULTS: Final = frozenset(Origin) - {Origin.RECEIVED}
_AT_ONCE = 200
_DAY = timedelta(days=1)


class When(StrEnum):
    """When received instances go on. Results go when they are there."""

    ARRIVAL = "arrival"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Hours:
    """When a destination may be sent to, by the clock on the site's wall.

    No window means at any time. A window whose end is before its start goes over
    midnight; one that ends where it starts lasts all day.
    """

    windows: tuple[tuple[time, time], ...] = ()
    zone: tzinfo = UTC

    @classmethod
    def parse(cls, texts: Iterable[str], zone: tzinfo) -> Hours:
        """Return the hours of "22:00-06:00" and the like; ValueError for others."""
        windows = []
        for text in texts:
            start, dash, end = text.partition("-")
            if not dash:
                raise ValueError(text)
            windows.append((_clock(start), _clock(end)))
        return cls(tuple(windows), zone)

    def next_open(self, now: datetime) -> datetime:
        """Return `now` when it lies in a window, otherwise when the next one opens."""
        if not self.windows:
            return now
        local = now.astimezone(self.zone)
        starts = []
        for start, end in self.windows:
            for day in (-1, 0, 1):
                date = (local + day * _DAY).date()
                opens = datetime.combine(date, start, self.zone)
                closes = datetime.combine(date, end, self.zone)
                if closes <= opens:
                    closes += _DAY
                if opens <= local < closes:
                    return now
                if opens > local:
                    starts.append(opens)
        return min(starts).astimezone(UTC)


def _clock(text: str) -> time:
    hours, _, minutes = text.strip().partition(":")
    return time(int(hours), int(minutes))


@dataclass(frozen=True)
class Outlet:
    """A destination as routing sees it. `priority` None: images low, results normal."""

    name: str
    ae_title: str = ""
    hours: Hours = Hours()
    priority: Priority | None = None


@dataclass(frozen=True)
class Rule:
    """One rule: all that it asks has to be so; what it leaves out may be anything.

    Texts are wildcards (`*`, `?`), compared without regard to case. With `stop` no
    later rule is asked about what this one takes.
    """

    name: str
    to: tuple[str, ...]
    when: When = When.COMPLETE
    calling_ae: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    sop_class: tuple[str, ...] = ()
    origin: frozenset[Origin] = frozenset()
    study_description: tuple[str, ...] = ()
    category_at_least: str | None = None
    status: frozenset[ReportStatus] = frozenset()
    priority: Priority | None = None
    stop: bool = False

    def takes(self, subject: Subject) -> bool:
        """Tell whether the rule is about this instance. What is unknown never fits."""
        return (
            (not self.origin or subject.origin in self.origin)
            and _fits(self.calling_ae, subject.calling_aes)
            and _fits(self.modality, (subject.modality,))
            and _fits(self.sop_class, (subject.sop_class_uid,))
            and _fits(self.study_description, (subject.study_description,))
            and (not self.status or subject.status in self.status)
            and _suspicious(subject.category, self.category_at_least)
        )


def _fits(patterns: Sequence[str], values: Iterable[str]) -> bool:
    folded = [pattern.casefold() for pattern in patterns]
    return not folded or any(
        fnmatchcase(value.strip().casefold(), pattern)
        for value in values
        for pattern in folded
    )


def _suspicious(category: str | None, least: str | None) -> bool:
    if least is None:
        return True
    if category is None:
        return False
    return lexicon.category(category).rank >= lexicon.category(least).rank


@dataclass(frozen=True)
class Subject:
    """What is known of an instance when it is routed.

    `calling_aes` are the machines that sent its study, for a received instance the
    one that sent it. `category` and `status` are those of the report version that a
    result was made from.
    """

    origin: Origin
    sop_class_uid: str
    modality: str = ""
    calling_aes: frozenset[str] = frozenset()
    study_description: str = field(default="", repr=False)
    category: str | None = None
    status: ReportStatus | None = None


@dataclass(frozen=True)
class Route:
    """One destination for an instance, and the rule that named it."""

    destination: str
    rule: str
    when: When
    priority: Priority


@dataclass(frozen=True)
class RoutingTable:
    """The rules of a site and the destinations that they name."""

    rules: tuple[Rule, ...] = ()
    outlets: Mapping[str, Outlet] = field(default_factory=dict)

    def needs(self, *, origin: Origin) -> bool:
        """Tell whether any rule may be about instances of this origin."""
        return any(not rule.origin or origin in rule.origin for rule in self.rules)

    @property
    def read_descriptions(self) -> bool:
        """Tell whether a rule asks for the sealed words of a study."""
        return any(rule.study_description for rule in self.rules)


def decide(subject: Subject, table: RoutingTable) -> tuple[Route, ...]:
    """Return where an instance goes: once to each destination, in the order of rules.

    Every rule that takes the instance counts, up to and with the first that stops.
    Nothing goes back to the machine that it came from.
    """
    found: dict[str, Route] = {}
    for rule in table.rules:
        if not rule.takes(subject):
            continue
        for name in rule.to:
            outlet = table.outlets[name]
            received = subject.origin is Origin.RECEIVED
            if received and outlet.ae_title in subject.calling_aes:
                continue
            usual = Priority.LOW if received else Priority.NORMAL
            priority = rule.priority or outlet.priority or usual
            found.setdefault(name, Route(name, rule.name, rule.when, priority))
        if rule.stop:
            break
    return tuple(found.values())


def after_what_it_rejects(
    chosen: Sequence[Route], holders: Iterable[str], table: RoutingTable
) -> tuple[Route, ...]:
    """Return where a rejection goes: to whoever holds what it rejects, at the front.

    A rule that leaves it out (by category, status or origin) must not leave a wrong
    result standing in an archive.
    """
    rules = {route.destination: route.rule for route in chosen}
    names = dict.fromkeys([*rules, *(n for n in holders if n in table.outlets)])
    return tuple(
        Route(name, rules.get(name, "withdrawal"), When.ARRIVAL, Priority.HIGH)
        for name in names
    )


def results_to(*destinations: str) -> RoutingTable:
    """Return the simple case: every result goes to each of `destinations`."""
    if not destinations:
        return RoutingTable()
    return RoutingTable(
        (Rule("all results", destinations, origin=RESULTS),),
        {name: Outlet(name, ae_title=name) for name in destinations},
    )


# --- where instances become durable ---------------------------------------------------


async def route_result(
    store: Store,
    tx: Transaction,
    table: RoutingTable,
    result: ReceivedInstance,
    report: Report,
    version: ReportVersion,
) -> None:
    """Defer the sending of a result in the transaction that stores it.

    What was received of the study before it is routed first, so that images do not
    arrive behind their report.
    """
    if not table.rules:
        return
    uid = result.study_instance_uid
    await _route_waiting(store, tx, table, study_instance_uid=uid)
    subject = Subject(
        origin=result.origin,
        sop_class_uid=result.sop_class_uid,
        modality=result.modality,
        calling_aes=await routes.senders_of(tx, uid),
        study_description=result.study_description,
        category=version.findings.category,
        status=version.status,
    )
    chosen = decide(subject, table)
    if result.origin is Origin.REJECTION:
        holders = await routes.holders_of_results(
            tx, uid, images_too=report.is_disowned
        )
        chosen = after_what_it_rejects(chosen, holders, table)
    for route in chosen:
        await _defer(
            store, tx, table, route, result.sop_instance_uid, uid, report.patient_id
        )


async def route_received(store: Store, table: RoutingTable) -> int:
    """Ask the rules about what has arrived and what is complete; return how many.

    One process at a time does it, so that instances of a study keep their order.
    """
    total = 0
    while True:
        async with store.db.transaction() as tx:
            if not await routes.be_the_router(tx):
                return total
            count = await _route_waiting(store, tx, table, limit=_AT_ONCE)
        total += count
        if count < _AT_ONCE:
            return total


async def _route_waiting(
    store: Store,
    tx: Transaction,
    table: RoutingTable,
    *,
    study_instance_uid: str | None = None,
    limit: int | None = None,
) -> int:
    count = 0
    for waiting in Waiting:
        instances = await routes.unrouted(
            tx, waiting, study_instance_uid=study_instance_uid, limit=limit
        )
        if not instances:
            continue
        count += len(instances)
        relevant = table.needs(origin=Origin.RECEIVED)
        if relevant:
            await _route(store, tx, table, instances, When(waiting.value))
        again = relevant and waiting is Waiting.ARRIVAL
        await routes.asked(
            tx,
            [instance.sop_instance_uid for instance in instances],
            then=Waiting.COMPLETE if again else None,
        )
    return count


async def _route(
    store: Store,
    tx: Transaction,
    table: RoutingTable,
    instances: Sequence[Unrouted],
    when: When,
) -> None:
    descriptions: dict[str, str] = {}
    for instance in instances:
        study = instance.study_instance_uid
        if table.read_descriptions and study not in descriptions:
            descriptions[study] = await _description(store, tx, study)
        subject = Subject(
            origin=Origin.RECEIVED,
            sop_class_uid=instance.sop_class_uid,
            modality=instance.modality,
            calling_aes=frozenset({instance.calling_ae}),
            study_description=descriptions.get(study, ""),
        )
        for route in decide(subject, table):
            if route.when is when:
                await _defer(
                    store,
                    tx,
                    table,
                    route,
                    instance.sop_instance_uid,
                    study,
                    instance.patient_id,
                )


async def _description(store: Store, tx: Transaction, study_instance_uid: str) -> str:
    detail = await studies.study_detail(tx, store, study_instance_uid)
    return detail.study_description


async def _defer(
    store: Store,
    tx: Transaction,
    table: RoutingTable,
    route: Route,
    sop_instance_uid: str,
    study_instance_uid: str,
    patient_id: UUID,
) -> None:
    """Promise one delivery, unless it was promised before."""
    name, at = route.destination, store.clock()
    if not await routes.queue(
        tx,
        sop_instance_uid,
        name,
        study_instance_uid=study_instance_uid,
        rule=route.rule,
        at=at,
    ):
        return
    job_id = await store.jobs.defer(
        tx,
        SEND,
        {
            "sop_instance_uid": sop_instance_uid,
            "study_instance_uid": study_instance_uid,
            "destination": name,
        },
        key=f"{sop_instance_uid}/{name}",
        order_key=f"{study_instance_uid}/{name}",
        not_before=table.outlets[name].hours.next_open(at),
        patient_id=patient_id,
        lane=name,
        priority=route.priority,
    )
    await routes.note_job(tx, sop_instance_uid, name, job_id)
