"""Where instances go, as the settings say: rules, destinations, and who sends."""

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import partial
from pathlib import Path

import aiohttp

from config.settings import Outlet as OutletSettings
from config.settings import RoutingRule, Settings
from dicom_scp.receiving.tls import FollowedContext, WrapsSockets, client_context
from dicom_scp.sending.delivery import Pace, Sender, send_instance
from dicom_scp.sending.routing import (
    RESULTS,
    SEND,
    Hours,
    Outlet,
    RoutingTable,
    Rule,
    When,
)
from dicom_scp.sending.scu import Destination, DimseSender
from dicom_scp.sending.stow import StowDestination, StowSender, basic_of, bearer_of
from node.domain.report import ReportStatus
from node.domain.study import Origin
from node.store.jobs import Jobs, Priority
from node.store.store import Store
from node.worker import Worker

_PRIORITIES = {
    "": None,
    "high": Priority.HIGH,
    "normal": Priority.NORMAL,
    "low": Priority.LOW,
}
_PACS_AT_ONCE = 2
ALL_RESULTS = "all results"


@dataclass(frozen=True)
class Outbound:
    """What the processes that send need to know; `parallel` is studies at once."""

    table: RoutingTable
    dimse: Mapping[str, Destination]
    stow: Mapping[str, StowDestination]
    parallel: Mapping[str, int]
    kbit_s: Mapping[str, float]

    @property
    def names(self) -> list[str]:
        """Return the names of all destinations."""
        return [*self.dimse, *self.stow]


def outbound_of(
    settings: Settings, calling_tls: Callable[[], WrapsSockets]
) -> Outbound:
    """Return where instances go; NodeError SETTING for a file that cannot be used.

    `calling_tls` makes the context for destinations that have no files of their own.
    """
    outlets = settings.routing.destinations
    dimse = {
        outlet.name: _dimse(settings, outlet, calling_tls)
        for outlet in outlets
        if outlet.kind == "dimse"
    }
    stow = {
        outlet.name: _stow(settings, outlet)
        for outlet in outlets
        if outlet.kind == "stow"
    }
    if settings.pacs.ae_title:
        dimse[settings.pacs.ae_title] = _pacs(settings, calling_tls)
    return Outbound(
        routing_of(settings),
        dimse,
        stow,
        {outlet.name: outlet.parallel for outlet in outlets},
        {outlet.name: outlet.bandwidth_kbit_s for outlet in outlets},
    )


def routing_of(settings: Settings) -> RoutingTable:
    """Return the rules, `[pacs]` among them as the last one, and what they lead to."""
    zone = _zone(settings.site.timezone_offset)
    outlets = {
        outlet.name: Outlet(
            outlet.name,
            outlet.ae_title,
            Hours.parse(outlet.schedule, zone),
            _PRIORITIES[outlet.priority],
        )
        for outlet in settings.routing.destinations
    }
    rules = [_rule(rule) for rule in settings.routing.rules]
    if title := settings.pacs.ae_title:
        outlets[title] = Outlet(title, title)
        rules.append(Rule(ALL_RESULTS, (title,), origin=RESULTS))
    return RoutingTable(tuple(rules), outlets)


def senders_of(outbound: Outbound, session: aiohttp.ClientSession) -> dict[str, Sender]:
    """Return who sends to each destination."""

    def pace(name: str) -> Pace | None:
        kbit_s = outbound.kbit_s.get(name, 0)
        return Pace(kbit_s) if kbit_s else None

    return {
        **{name: DimseSender(d, pace(name)) for name, d in outbound.dimse.items()},
        **{
            name: StowSender(d, session, pace(name))
            for name, d in outbound.stow.items()
        },
    }


def send_workers(
    store: Store, outbound: Outbound, senders: Mapping[str, Sender]
) -> list[Worker]:
    """Return one worker for each destination, so that none waits for another."""
    send = partial(_send, store, senders, outbound.table)
    return [
        Worker(
            Jobs(store.db, store.ring, store.clock),
            {SEND: send},
            width=outbound.parallel.get(name, _PACS_AT_ONCE),
            lane=name,
        )
        for name in outbound.names
    ]


async def _send(
    store: Store,
    senders: Mapping[str, Sender],
    table: RoutingTable,
    payload: Mapping[str, object],
) -> None:
    await send_instance(store, payload, senders, table)


async def bury_homeless(store: Store, names: Sequence[str]) -> None:
    """Show what waits for a destination that the settings no longer have."""
    async with store.db.transaction() as tx:
        await store.jobs.bury_lanes(
            tx,
            SEND,
            names,
            "the settings no longer have this destination; put it back and replay",
        )


def _zone(offset: str) -> tzinfo:
    """Return the zone of Timezone Offset From UTC (0008,0201): +0800."""
    try:
        return datetime.strptime(offset, "%z").tzinfo or UTC
    except ValueError:
        return timezone(timedelta(0))


def _rule(rule: RoutingRule) -> Rule:
    return Rule(
        name=rule.name,
        to=tuple(rule.to),
        when=When(rule.when),
        calling_ae=tuple(rule.calling_ae),
        modality=tuple(rule.modality),
        sop_class=tuple(rule.sop_class),
        origin=frozenset(map(Origin, rule.origin)),
        study_description=tuple(rule.study_description),
        category_at_least=rule.category_at_least or None,
        status=frozenset(map(ReportStatus, rule.status)),
        priority=_PRIORITIES[rule.priority],
        stop=rule.stop,
    )


def _pacs(settings: Settings, calling_tls: Callable[[], WrapsSockets]) -> Destination:
    pacs = settings.pacs
    return Destination(
        pacs.ae_title,
        pacs.host,
        pacs.port,
        calling_ae_title=pacs.calling_ae_title,
        sr_sop_classes=tuple(pacs.sr_sop_classes),
        tls=calling_tls() if pacs.tls else None,
        commitment=pacs.commitment,
    )


def _dimse(
    settings: Settings, outlet: OutletSettings, calling_tls: Callable[[], WrapsSockets]
) -> Destination:
    tls: WrapsSockets | None = None
    if outlet.tls:
        own = outlet.trusted or outlet.certificate
        tls = _own_tls(settings, outlet) if own else calling_tls()
    return Destination(
        outlet.ae_title,
        outlet.host,
        outlet.port,
        calling_ae_title=outlet.calling_ae_title or settings.dicom.ae_title,
        sr_sop_classes=tuple(outlet.sr_sop_classes),
        tls=tls,
        commitment=outlet.commitment,
    )


def _own_tls(settings: Settings, outlet: OutletSettings) -> FollowedContext:
    return client_context(
        trusted=_file(settings, outlet.trusted),
        certificate=_file(settings, outlet.certificate),
        key=_file(settings, outlet.key),
    )


def _stow(settings: Settings, outlet: OutletSettings) -> StowDestination:
    tls: Callable[[], ssl.SSLContext] | None = None
    if outlet.url.startswith("https:") and (outlet.trusted or outlet.certificate):
        tls = _own_tls(settings, outlet).current
    destination = StowDestination(
        outlet.name, outlet.url, tls=tls, sr_sop_classes=tuple(outlet.sr_sop_classes)
    )
    if outlet.token_file:
        token = bearer_of(settings.data / outlet.token_file)
        return replace(destination, authorize=token)
    if outlet.user:
        password = settings.data / outlet.password_file
        return replace(destination, authorize=basic_of(outlet.user, password))
    return destination


def _file(settings: Settings, path: str) -> Path | None:
    return settings.data / path if path else None
