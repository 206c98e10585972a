"""What happened, and who is owed it: written in the transaction that causes it.

Called at the end of a transaction, when everything else of it is locked: events
lock every subscriber that is owed one.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from fhir.content.masked import to_masked_report
from fhir.encoding.wire import Json, parse, to_bytes
from fhir.multimedia.owed import owe_withdrawal
from fhir.search.matching import meets
from fhir.search.parameters import index_of
from fhir.settings import FhirSettings
from fhir.subscriptions.entitlement import may_hear
from fhir.subscriptions.topics import Indexed, Topic
from node.domain.disclosure import patient_report
from node.domain.errors import NodeError
from node.domain.report import Report
from node.store import (
    identities,
    reports,
    resources,
    studies,
    subscriptions,
    topic_events,
)
from node.store.resources import Index
from node.store.search import pages, women
from node.store.search.criteria import Query, RefersTo
from node.store.subscriptions import Subscription
from node.store.topic_events import Beside, Occurrence

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

log = structlog.get_logger(__name__)

_REPORT = "DiagnosticReport"
# A channel in error is owed what happens; only one that is off is owed nothing.
_LISTENING = ("requested", "active", "error")
_MOST_ALONG = 50  # of one path that leads to what happened
_Owed = list[tuple[Occurrence, Sequence[UUID]]]


async def resources_changed(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    changed: Iterable[tuple[str, str]],
) -> None:
    """Write the events of resources (type, id) that `tx` has written a version of."""
    owed = await _owed(tx, store, settings, changed)
    await topic_events.add_events(tx, store, owed, at=store.clock())


async def report_changed(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    report: Report,
    *,
    revised: bool = True,
) -> None:
    """Write the events that a change of a report causes.

    `revised` is False when only a disclosure was recorded: the patient's view
    may have changed, the report has not.
    """
    await owe_withdrawal(tx, store, settings, report)
    owed: _Owed = []
    if report.last_signed() is not None:
        owed += await _owed_patients_view(tx, store, settings, report)
    if revised:
        owed += await _owed(tx, store, settings, [(_REPORT, str(report.id))])
    await topic_events.add_events(tx, store, owed, at=store.clock())


async def _owed(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    changed: Iterable[tuple[str, str]],
) -> _Owed:
    changed = list(changed)
    kinds = {kind for kind, _ in changed}
    topics = {
        t.url: t for t in settings.topics.values() if t.kind in kinds and not t.masked
    }
    waiting = await _waiting(tx, store, topics)
    if not waiting:
        return []
    owed: _Owed = []
    for kind, resource_id in changed:
        of_kind = [one for one in waiting if topics[one.topic].kind == kind]
        if of_kind:
            told = await _told_of(tx, store, topics, of_kind, kind, resource_id)
            owed.append(told)
    return owed


async def _told_of(
    tx: "Transaction",
    store: "Store",
    topics: dict[str, Topic],
    waiting: Sequence[Subscription],
    kind: str,
    resource_id: str,
) -> tuple[Occurrence, Sequence[UUID]]:
    stored = await resources.read(tx, store, kind, resource_id)
    now: Indexed = (stored, index_of(parse(stored.body)))
    before: Indexed | None = None
    if stored.version > 1:
        before = (stored, Index())
        if any(topics[one.topic].looks_back for one in waiting):
            older = await resources.read_version(
                tx, store, kind, resource_id, stored.version - 1
            )
            before = (older, index_of(parse(older.body)))
    focus = f"{kind}/{resource_id}"
    fired = {url for url, topic in topics.items() if topic.fires(now, before)}
    subscribers = [
        one.subscription_id
        for one in waiting
        if one.topic in fired
        and await _wanted(tx, store, one, topics[one.topic], now)
        and may_hear(one.owner, topics[one.topic], focus, stored.body)
    ]
    context: tuple[Beside, ...] = ()
    if subscribers:
        along = {path: None for url in sorted(fired) for path in topics[url].along}
        context = await _context(tx, store, tuple(along), now)
    occurrence = Occurrence(
        focus, stored.body, stored.patient_id, stored.version == 1, context
    )
    return occurrence, subscribers


async def _context(
    tx: "Transaction", store: "Store", along: Sequence[str], now: Indexed
) -> tuple[Beside, ...]:
    """Return the newest versions that belong to a new one, by the paths of topics.

    Of the same patient, or of nobody: her resources are told with hers alone.
    """
    stored, index = now
    found: list[tuple[str, str, str]] = []
    for path in along:
        direction, _, told = path.partition("=")
        source, _, name = told.partition(":")
        if direction == "include":
            found += [
                (path, one.target_type, one.target_id)
                for one in index.references
                if one.parameter == name
            ]
            continue
        focus = (stored.resource_type, stored.resource_id)
        query = Query(source, (RefersTo(name, (focus,)),), count=_MOST_ALONG)
        page = await pages.search(tx, store, query)
        found += [(path, source, one.resource_id) for one in page.matches]
    if not found:
        return ()
    newest = await resources.newest(tx, [(kind, one) for _, kind, one in found])
    return tuple(
        Beside(path, kind, one, newest[kind, one][0])
        for path, kind, one in found
        if (kind, one) in newest and newest[kind, one][1] in (None, stored.patient_id)
    )


async def _wanted(
    tx: "Transaction",
    store: "Store",
    subscription: Subscription,
    topic: Topic,
    now: Indexed,
) -> bool:
    try:
        asked = tuple([topic.filter(text) for text in subscription.filters])
    except NodeError:  # the topic's file no longer offers it: nobody signs less for it
        log.warning(
            "subscription.filter_gone", subscription=str(subscription.subscription_id)
        )
        return False
    return meets(*now, await women.of_one_woman(tx, store, asked, topic.kind))


async def _owed_patients_view(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> _Owed:
    topics = {t.url: t for t in settings.topics.values() if t.masked}
    waiting = await _waiting(tx, store, topics)
    if not waiting:
        return []
    masked = await _masked(tx, store, settings, report)
    focus, body = f"{_REPORT}/{masked['id']}", to_bytes(masked)
    subscribers = [
        one.subscription_id
        for one in waiting
        if may_hear(one.owner, topics[one.topic], focus, body)
    ]
    return [(Occurrence(focus, body, report.patient_id), subscribers)]


async def _waiting(
    tx: "Transaction", store: "Store", topics: dict[str, Topic]
) -> list[Subscription]:
    if not topics:
        return []
    found = await subscriptions.find_all(
        tx, store, topics=list(topics), statuses=_LISTENING
    )
    now = store.clock()
    return [one for one in found if one.ends_at is None or one.ends_at > now]


async def _masked(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> Json:
    identity = await identities.patient(tx, store, report.patient_id)
    study = await studies.study(tx, report.study_instance_uid)
    handle, patient_handle = await reports.handles(tx, report.id)
    masked = patient_report(
        report,
        identity,
        examined_on=study.study_date if study is not None else None,
        handle=handle,
        patient_handle=patient_handle,
        department_phone=settings.department_phone,
        texts=dict(settings.texts),
    )
    return to_masked_report(masked)
