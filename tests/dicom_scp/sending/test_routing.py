"""Where instances go, when, in which order, and that nothing is lost or sent twice."""

from collections import Counter
from datetime import UTC, datetime, time, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import to_part10
from dicom_scp.sending.delivery import Pace, Sent, Unconfirmed, send_instance
from dicom_scp.sending.routing import (
    RESULTS,
    SEND,
    Hours,
    Outlet,
    RoutingTable,
    Rule,
    Subject,
    When,
    decide,
    results_to,
    route_received,
)
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.domain.study import Origin
from node.store import audit, routes, studies
from node.store.jobs import LEASE, Job, Postponed, Priority
from node.store.routes import DeliveryState
from node.store.store import Store
from node.workflow.completion import CompletionSettings, close_due_studies
from node.workflow.reporting import revise_report
from tests.conftest import FrozenClock
from tests.dicom_scp.results.test_results import SETTINGS as RESULT_SETTINGS
from tests.dicom_scp.results.test_results import draft, make_image, sign
from tests.dicom_scp.ultrasound import STUDY
from tests.factories import DOCTOR
from tests.intake import receive_object

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

US = "1.2.840.10008.5.1.4.1.1.6.1"
CHINA = timezone(timedelta(hours=8))
EQUIPMENT = RESULT_SETTINGS.equipment
NAMES = ("A", "B", "C")


def table(*rules: Rule, **outlets: Outlet) -> RoutingTable:
    return RoutingTable(rules, {**{n: Outlet(n, n) for n in NAMES}, **outlets})


def subject(**changes: Any) -> Subject:
    known = {
        "origin": Origin.AI_SR,
        "sop_class_uid": US,
        "modality": "SR",
        "calling_aes": frozenset({"US_1"}),
        "study_description": "Breast left",
        "category": "4A",
        "status": ReportStatus.PARTIAL,
    }
    return Subject(**{**known, **changes})


def targets(told: Subject, rules: RoutingTable) -> list[str]:
    return [route.destination for route in decide(told, rules)]


# --- the decision -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ({"calling_ae": ("US_?",)}, {"calling_aes": frozenset({"CT"})}),
        ({"modality": ("sr",)}, {"modality": "US"}),
        ({"sop_class": (f"{US}",)}, {"sop_class_uid": "1.2"}),
        ({"origin": RESULTS}, {"origin": Origin.RECEIVED}),
        ({"study_description": ("*breast*",)}, {"study_description": "Liver"}),
        ({"category_at_least": "4A"}, {"category": "3"}),
        ({"category_at_least": "1"}, {"category": None}),
        ({"status": frozenset({ReportStatus.PARTIAL})}, {"status": None}),
    ],
)
def test_every_condition_of_a_rule_counts(
    asked: dict[str, Any], other: dict[str, Any]
) -> None:
    rules = table(Rule("r", ("A",), **asked))
    assert targets(subject(), rules) == ["A"]
    assert targets(subject(**other), rules) == []


def test_incomplete_is_not_a_suspicion() -> None:
    rules = table(Rule("r", ("A",), category_at_least="4A"))
    assert targets(subject(category="0"), rules) == []
    assert targets(subject(category="6"), rules) == ["A"]


def test_a_rule_that_stops_keeps_later_ones_from_being_asked() -> None:
    rules = table(Rule("1", ("A",)), Rule("2", ("B",), stop=True), Rule("3", ("C",)))
    assert targets(subject(), rules) == ["A", "B"]


def test_an_image_does_not_go_back_to_the_machine_that_sent_it() -> None:
    rules = table(Rule("all", ("A", "B")))
    received = subject(origin=Origin.RECEIVED, calling_aes=frozenset({"A"}))
    assert targets(received, rules) == ["B"]
    assert targets(subject(calling_aes=frozenset({"A"})), rules) == ["A", "B"]


def test_images_wait_for_results_unless_the_site_says_otherwise() -> None:
    rules = table(Rule("all", NAMES), B=Outlet("B", priority=Priority.HIGH))
    images = decide(subject(origin=Origin.RECEIVED), rules)
    assert [r.priority for r in images] == [Priority.LOW, Priority.HIGH, Priority.LOW]
    assert decide(subject(), rules)[0].priority is Priority.NORMAL
    urgent = table(Rule("all", NAMES, priority=Priority.HIGH))
    assert {r.priority for r in decide(subject(), urgent)} == {Priority.HIGH}


RULES = st.builds(
    Rule,
    name=st.text("ab", min_size=1, max_size=2),
    to=st.lists(st.sampled_from(NAMES), max_size=3).map(tuple),
    origin=st.frozensets(st.sampled_from(Origin), max_size=2),
    category_at_least=st.sampled_from([None, "2", "4A", "5"]),
    study_description=st.sampled_from([(), ("*breast*",), ("liver",)]),
    stop=st.booleans(),
)
SUBJECTS = st.builds(
    Subject,
    origin=st.sampled_from(Origin),
    sop_class_uid=st.just(US),
    calling_aes=st.frozensets(st.sampled_from(["A", "US_1"]), max_size=1),
    study_description=st.sampled_from(["", "BREAST", "Liver"]),
    category=st.sampled_from([None, "0", "2", "4A", "5"]),
)


@given(told=SUBJECTS, rules=st.lists(RULES, max_size=6))
def test_a_decision_names_each_destination_once_and_only_for_rules_that_fit(
    told: Subject, rules: list[Rule]
) -> None:
    found = decide(told, table(*rules))
    names = [route.destination for route in found]
    assert len(set(names)) == len(names)
    for route in found:
        assert any(
            r.name == route.rule and route.destination in r.to and r.takes(told)
            for r in rules
        )
    # What it decides depends on no rule behind one that stops, nor on rules that do
    # not fit.
    reached: list[Rule] = []
    for rule in rules:
        if rule.takes(told):
            reached.append(rule)
            if rule.stop:
                break
    assert decide(told, table(*reached)) == found
    assert decide(told, table(*reached, *(reached[-1:] and reached))) == found


# --- hours and pace -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        ("2026-11-21T21:59", "2026-11-21T22:00"),
        ("2026-11-21T22:00", "2026-11-21T22:00"),
        ("2026-11-22T05:59", "2026-11-22T05:59"),
        ("2026-11-22T06:00", "2026-11-22T12:00"),
        ("2026-11-22T12:59", "2026-11-22T12:59"),
        ("2026-11-22T13:00", "2026-11-22T22:00"),
    ],
)
def test_hours_are_those_of_the_clock_on_the_wall(now: str, opens: str) -> None:
    hours = Hours.parse(["22:00-06:00", "12:00-13:00"], CHINA)
    at = datetime.fromisoformat(now).replace(tzinfo=CHINA).astimezone(UTC)
    expected = datetime.fromisoformat(opens).replace(tzinfo=CHINA)
    assert hours.next_open(at) == expected


@given(
    windows=st.lists(st.tuples(st.times(), st.times()), max_size=3),
    minutes=st.integers(0, 3 * 24 * 60),
)
def test_a_window_opens_within_a_day_and_is_open_then(
    windows: list[tuple[time, time]], minutes: int
) -> None:
    hours = Hours(tuple(windows), CHINA)
    now = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(minutes=minutes)
    opens = hours.next_open(now)
    assert timedelta(0) <= opens - now <= timedelta(days=1)
    assert hours.next_open(opens) == opens


def test_a_pace_holds_over_time_whatever_the_pieces() -> None:
    now = 0.0
    pace = Pace(800, clock=lambda: now)  # 100 kB/s
    sent = 0
    for size in (1000, 64_000, 16_384, 131_072) * 20:
        sent += size
        now += pace.wait_s(size)
    assert sent / 100_000 - 1.1 <= now <= sent / 100_000
    now += 3600.0  # a quiet hour earns no more than a second
    assert pace.wait_s(200_000) == pytest.approx(1.0)


# --- where instances become durable -------------------------------------------------


async def receive(store: Store, uid: str = "2.25.2001") -> None:
    image = make_image()
    image.SOPInstanceUID = uid
    await receive_object(store, image, to_part10(image))


async def close(store: Store, clock: FrozenClock) -> None:
    clock.advance(seconds=3600)
    assert await close_due_studies(store, CompletionSettings()) == 1


async def waiting(store: Store, lane: str = "A") -> list[dict[str, Any]]:
    async with store.db.transaction() as tx:
        rows = await tx.fetch(
            "select * from jobs where kind = $1 and lane = $2 and state = 'ready'"
            " order by sequence",
            SEND,
            lane,
        )
    return [dict(row) for row in rows]


async def queued(store: Store, destination: str = "A") -> list[str]:
    async with store.db.transaction() as tx:
        found = await routes.deliveries(tx, destination=destination)
    return [one.sop_instance_uid for one in found]


async def test_images_go_on_arrival_or_when_their_study_is_complete(
    store: Store, clock: FrozenClock
) -> None:
    rules = table(Rule("now", ("A",), when=When.ARRIVAL), Rule("then", ("B",)))
    await receive(store)
    assert await route_received(store, rules) == 1
    assert (await queued(store, "A"), await queued(store, "B")) == (["2.25.2001"], [])
    assert await route_received(store, rules) == 0
    await close(store, clock)
    await route_received(store, rules)
    assert await queued(store, "B") == ["2.25.2001"]
    assert await route_received(store, rules) == 0
    async with store.db.connection() as connection:
        assert await connection.fetchval("select count(*) from unrouted_instances") == 0


async def test_a_rule_that_is_added_later_sends_nothing_of_before(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store)
    await route_received(store, results_to("A"))
    await close(store, clock)
    await route_received(store, table(Rule("all", ("A",))))
    assert await queued(store) == []


async def test_a_late_image_follows(store: Store, clock: FrozenClock) -> None:
    rules = table(Rule("all", ("A",)))
    await receive(store)
    await close(store, clock)
    await route_received(store, rules)
    await receive(store, "2.25.2002")
    await route_received(store, rules)
    assert await queued(store) == ["2.25.2001"]
    await close(store, clock)
    await route_received(store, rules)
    assert await queued(store) == ["2.25.2001", "2.25.2002"]


async def test_the_words_of_a_study_are_read_for_rules_that_ask(
    store: Store, clock: FrozenClock
) -> None:
    image = make_image()
    image.StudyDescription = "乳腺超声"
    await receive_object(store, image, to_part10(image))
    await close(store, clock)
    rules = table(
        Rule("breast", ("A",), study_description=("*乳腺*",)),
        Rule("liver", ("B",), study_description=("*肝*",)),
    )
    await route_received(store, rules)
    assert (await queued(store, "A"), await queued(store, "B")) == (["2.25.2001"], [])


async def test_images_go_before_the_draft_and_the_draft_before_what_is_signed(
    store: Store,
) -> None:
    rules = table(Rule("all", ("A",), when=When.ARRIVAL))
    settings = ResultSettings(EQUIPMENT, rules, key_images=False, pdf="none")
    drafted = await draft(store, overlay=False)
    signed = await sign(store, drafted)
    for report in (drafted, signed):
        payload = {"report_id": str(report.id), "version": report.current.number}
        await encode_report(store, payload, settings)
    async with store.db.transaction() as tx:
        kept = await studies.instances_of(tx, store, STUDY)
    origin = {one.sop_instance_uid: one.origin for one in kept}
    assert [origin[uid] for uid in await queued(store)] == [
        Origin.RECEIVED,
        Origin.AI_SR,
        Origin.VERIFIED_SR,
    ]
    jobs = await waiting(store)
    assert {job["order_key"] for job in jobs} == {f"{STUDY}/A"}
    # The images come to their turn with the report that has to wait for them.
    assert {job["head_start"] for job in jobs} == {timedelta(0)}


async def test_what_the_version_says_decides_where_its_results_go(
    store: Store,
) -> None:
    signed_only = Rule("signed", ("A",), status=frozenset({ReportStatus.FINAL}))
    suspicious = Rule("suspicious", ("B",), category_at_least="4C")
    rules = table(signed_only, suspicious)
    settings = ResultSettings(EQUIPMENT, rules, key_images=False, pdf="none")
    drafted = await draft(store, overlay=False)  # 4C
    signed = await sign(store, drafted, "4B")
    for report in (drafted, signed):
        payload = {"report_id": str(report.id), "version": report.current.number}
        await encode_report(store, payload, settings)
    (to_a,), (to_b,) = await queued(store, "A"), await queued(store, "B")
    async with store.db.transaction() as tx:
        assert (await studies.instance(tx, store, to_a)).origin is Origin.VERIFIED_SR  # type: ignore[union-attr]
        assert (await studies.instance(tx, store, to_b)).origin is Origin.AI_SR  # type: ignore[union-attr]


async def test_a_rejection_goes_to_whoever_holds_what_it_rejects(
    store: Store,
) -> None:
    only_suspicious = Rule("suspicious", ("B",), category_at_least="4C")
    no_rejections = Rule("drafts", ("A",), origin=frozenset({Origin.AI_SR}))
    settings = ResultSettings(
        EQUIPMENT, table(only_suspicious, no_rejections), key_images=False, pdf="none"
    )
    report = await draft(store, overlay=False)  # 4C
    await encode_report(store, {"report_id": str(report.id), "version": 1}, settings)
    signed = await sign(store, report, "2")
    async with store.db.transaction() as tx:
        withdrawn = await revise_report(
            store,
            tx,
            report.id,
            ReportStatus.ENTERED_IN_ERROR,
            signed.current.findings,
            signed.current.conclusions,
            author=DOCTOR,
            reason="another woman",
        )
    payload = {"report_id": str(report.id), "version": withdrawn.current.number}
    await encode_report(store, payload, settings)

    for holder in ("A", "B"):
        *_, last = await queued(store, holder)
        async with store.db.transaction() as tx:
            instance = await studies.instance(tx, store, last)
        assert instance is not None
        assert instance.origin is Origin.REJECTION
    assert await queued(store, "C") == []


async def test_a_destination_with_hours_waits_for_them(
    store: Store, clock: FrozenClock
) -> None:
    night = Outlet("A", hours=Hours.parse(["22:00-06:00"], CHINA))
    rules = table(Rule("all", ("A",), when=When.ARRIVAL), A=night)
    await receive(store)  # 08:00 UTC is 16:00 there
    await route_received(store, rules)
    (job,) = await waiting(store)
    assert job["not_before"] == datetime(2026, 11, 21, 14, 0, tzinfo=UTC)
    with pytest.raises(Postponed) as told:
        await send_instance(store, payload(), {"A": Memory()}, rules)
    assert told.value.until == job["not_before"]


# --- sending ------------------------------------------------------------------------


class Memory:
    """A destination that remembers, and fails as it is told."""

    commitment = False

    def __init__(self, *faults: Exception | None) -> None:
        self.faults = list(faults)
        self.got: list[bytes] = []
        self.before: list[str | None] = []

    async def send(
        self, part10: bytes, *, instance: Any = None, before: str | None = None
    ) -> Sent:
        assert instance is not None
        self.before.append(before)
        fault = self.faults.pop(0) if self.faults else None
        if not isinstance(fault, NodeError) or isinstance(fault, Unconfirmed):
            self.got.append(part10)
        if fault is not None:
            raise fault
        return Sent(US, "2.25.2001")

    async def close(self) -> None:
        """Nothing to let go of."""


ALL = table(Rule("all", ("A",), when=When.ARRIVAL))


def payload(uid: str = "2.25.2001") -> dict[str, str]:
    return {"sop_instance_uid": uid, "study_instance_uid": STUDY, "destination": "A"}


async def only(store: Store) -> routes.Delivery:
    async with store.db.transaction() as tx:
        (one,) = await routes.deliveries(tx)
    return one


async def exports(store: Store, uid: str = "2.25.2001") -> list[dict[str, str]]:
    async with store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"instance/{uid}")
    told = [dict(entry.detail) for entry in entries if entry.action == "export"]
    for detail in told:
        assert detail.pop("patient")  # whose image it is stands in each of them
    return told


async def test_what_has_arrived_is_not_sent_again(store: Store) -> None:
    await receive(store)
    await route_received(store, ALL)
    archive = Memory()
    for _ in range(2):
        await send_instance(store, payload(), {"A": archive}, ALL)
    assert len(archive.got) == 1
    delivery = await only(store)
    assert (delivery.state, delivery.sent_as) == (DeliveryState.SENT, "2.25.2001")
    assert await exports(store) == [{"destination": "A", "sent_as": "2.25.2001"}]


async def test_what_may_have_arrived_is_sent_again_and_the_trail_says_so(
    store: Store,
) -> None:
    await receive(store)
    await route_received(store, ALL)
    away = NodeError("archive A does not answer", ErrorKind.UNAVAILABLE)
    archive = Memory(Unconfirmed("the line broke"), away)
    for _ in range(2):
        with pytest.raises(NodeError):
            await send_instance(store, payload(), {"A": archive}, ALL)
    assert (await only(store)).state is DeliveryState.SENDING
    await send_instance(store, payload(), {"A": archive}, ALL)
    assert (await only(store)).times == 3
    (entry,) = await exports(store)
    assert entry["again"] == "an earlier sending was not confirmed"


async def test_a_process_that_dies_while_sending_is_found_out(store: Store) -> None:
    class Killed(Exception):
        """Nothing of ours runs after it."""

    await receive(store)
    await route_received(store, ALL)
    with pytest.raises(Killed):
        await send_instance(store, payload(), {"A": Memory(Killed())}, ALL)
    await send_instance(store, payload(), {"A": Memory()}, ALL)
    (entry,) = await exports(store)
    assert entry["again"] == "an earlier sending was not confirmed"


async def test_a_refusal_is_told_and_is_no_double_sending_later(store: Store) -> None:
    await receive(store)
    await route_received(store, ALL)
    archive = Memory(NodeError("archive A is out of resources", ErrorKind.EXHAUSTED))
    with pytest.raises(NodeError):
        await send_instance(store, payload(), {"A": archive}, ALL)
    delivery = await only(store)
    assert (delivery.state, delivery.error) == (
        DeliveryState.QUEUED,
        "archive A is out of resources",
    )
    await send_instance(store, payload(), {"A": archive}, ALL)
    assert "again" not in (await exports(store))[0]
    assert (await only(store)).error == ""


async def test_what_goes_again_goes_under_the_uid_of_before(store: Store) -> None:
    await receive(store)
    await route_received(store, ALL)
    archive = Memory()
    await send_instance(store, payload(), {"A": archive}, ALL)
    async with store.db.transaction() as tx:
        job_id = await store.jobs.defer(tx, SEND, payload(), lane="A")
        await routes.reopen(tx, "2.25.2001", "A", job_id=job_id, at=store.clock())
    await send_instance(store, payload(), {"A": archive}, ALL)
    assert archive.before == [None, "2.25.2001"]
    assert [entry.get("again") for entry in await exports(store)] == [
        None,
        "it was sent before",
    ]


async def test_a_failed_delivery_is_seen_with_its_reason_and_can_be_done_again(
    store: Store,
) -> None:
    await receive(store)
    await route_received(store, ALL)
    job = await store.jobs.claim([SEND], "w", lane="A")
    assert job is not None
    await store.jobs.failed(job, "archive A does not allow us to store", retry=False)
    async with store.db.transaction() as tx:
        (backlog,) = await routes.backlogs(tx)
        (failed,) = await routes.deliveries(tx, state=DeliveryState.FAILED)
    assert (backlog.failed, backlog.waiting) == (1, 0)
    assert backlog.error == failed.error == "archive A does not allow us to store"
    assert failed.job_id == job.id


async def test_an_outage_with_killed_workers_loses_nothing_and_keeps_the_order(
    store: Store, clock: FrozenClock
) -> None:
    """An hour away, then answers lost and workers killed in the middle of sending."""
    uids = [f"2.25.{number}" for number in range(3001, 3005)]
    for uid in uids:
        await receive(store, uid)
    await route_received(store, ALL)
    away = NodeError("archive A does not answer", ErrorKind.UNAVAILABLE)
    archive = Memory(*([away] * 12), Unconfirmed("gone"), None, Unconfirmed("gone"))
    until, rounds = clock() + timedelta(hours=4), 0
    while await waiting(store) or rounds == 0:
        assert clock() < until
        rounds += 1
        clock.advance(seconds=240)
        kills = rounds % 5 == 0
        while job := await store.jobs.claim([SEND], f"w{rounds}", lane="A"):
            await attempt(store, archive, job, killed=kills)
            kills = False
    arrived = [dataset_uid(part10) for part10 in archive.got]
    assert list(dict.fromkeys(arrived)) == uids
    assert [uid for uid, _ in pairwise([*arrived, ""])] == sorted(arrived)
    assert set(Counter(arrived).values()) <= {1, 2}
    async with store.db.transaction() as tx:
        states = {one.state for one in await routes.deliveries(tx)}
        assert await store.jobs.dead(tx) == []
    assert states == {DeliveryState.SENT}


async def attempt(store: Store, archive: Memory, job: Job, *, killed: bool) -> None:
    """Do a job as the worker does; a killed one comes back when its lease is over."""
    try:
        await send_instance(store, job.payload, {"A": archive}, ALL)
    except NodeError as error:
        await store.jobs.failed(job, error.message)
        return
    if killed:
        assert isinstance(store.clock, FrozenClock)
        store.clock.advance(seconds=LEASE.total_seconds() + 1)
    else:
        await store.jobs.done(job)


def dataset_uid(part10: bytes) -> str:
    from io import BytesIO

    from pydicom import dcmread

    header: Dataset = dcmread(BytesIO(part10), stop_before_pixels=True)
    return str(header.SOPInstanceUID)
