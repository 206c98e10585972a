"""Two rows of one woman: linked in FHIR, found together, and apart again afterwards.

Both directions matter the same: what a merge opens, its end closes.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from fhir.content.merged import publish_merge
from fhir.content.publish import put
from fhir.security.registration import register_client
from fhir.subscriptions.delivery import Dispatcher
from fhir.subscriptions.entitlement import require_topic
from fhir.subscriptions.events import resources_changed
from fhir.subscriptions.notification import BACKPORT
from fhir.subscriptions.relay import ensure_relay_subscription
from fhir.subscriptions.requests import subscribe
from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderSource, OrderStatus, Step
from node.domain.scopes import Scopes, read_scopes
from node.store import clients, merges, orders, topic_events
from node.store.erasure import shred_patient
from node.store.merges import Verdict
from node.store.subscriptions import Owner
from node.workflow.merging import (
    PUBLISH_MERGE,
    compare_rows,
    merge_rows,
    take_apart,
)
from node.workflow.orders import Placement, place_order
from tests.factories import make_patient
from tests.fhir.content.test_orders import make_order, typed
from tests.fhir.rig import (
    ACCESSION,
    STUDY_UID,
    Answer,
    Rig,
    publish_draft,
    receive_study,
)
from tests.fhir.smart_rig import jwks
from tests.fhir.subscriptions.rig import Hook, make_subscription, running_hook

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")
ISSUER = "urn:oid:2.25.77"
OTHER_STUDY = "2.25.3002"


@dataclass
class Case:
    """Two rows of one woman, each with a study and its report."""

    rig: Rig
    lost: UUID
    kept: UUID

    async def act(self, what: Any, **changes: Any) -> None:
        """Merge or take apart as somebody who has just compared, and publish it."""
        store = self.rig.store
        async with store.db.transaction() as tx:
            seen = (await compare_rows(store, tx, self.lost, self.kept)).seen
        told = {"identity": CLERK, "reason": "same ID card", "seen": seen} | changes
        await what(store, self.lost, self.kept, **told)
        await self.publish()

    async def put(self, row: UUID, **changes: Any) -> Answer:
        """Update a Patient as the EHR that has just read her; None takes out."""
        told = await self.rig.read(f"/Patient/{row}", role=Role.EHR) | changes
        told = {key: value for key, value in told.items() if value is not None}
        headers = {"If-Match": f'W/"{told["meta"]["versionId"]}"'}
        path = f"/Patient/{row}"
        return await self.rig.ask("PUT", path, told, role=Role.EHR, headers=headers)

    async def publish(self) -> None:
        store = self.rig.store
        while job := await store.jobs.claim([PUBLISH_MERGE], "test"):
            await publish_merge(store, self.rig.settings, job.payload)
            await publish_merge(store, self.rig.settings, job.payload)
            await store.jobs.done(job)

    async def found(self, path: str, token: str | None = None) -> set[str]:
        """Return which of the two studies' resources a search finds, by type and id."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        role = Role.EHR if token is None else None
        answer = await self.rig.get(path, role=role, headers=headers)
        assert answer.status == 200, answer.raw
        found = [one["resource"] for one in answer.body.get("entry", [])]
        return {f"{one['resourceType']}/{one['id']}" for one in found}

    async def portal(self, tx: Any) -> clients.Client:
        """Register a program that a patient may open for herself."""
        return await register_client(
            tx,
            self.rig.store,
            frozenset({"127.0.0.1"}),
            name="Portal",
            roles=[Role.EHR],
            scopes="patient/*.rs",
            redirect_uris=["https://portal.example/back"],
            jwks=jwks("EC"),
        )

    async def token(self, patient: UUID) -> str:
        """Return a token of a program that is open for one patient."""
        store = self.rig.store
        async with store.db.transaction() as tx:
            program = await self.portal(tx)
            scopes = Scopes(read_scopes("patient/*.rs"), str(patient))
            return await clients.open_token(
                tx, program.client_id, scopes, now=store.clock()
            )


STUDIES = {f"ImagingStudy/{STUDY_UID}", f"ImagingStudy/{OTHER_STUDY}"}


@pytest.fixture
async def case(empty_rig: Rig) -> Case:
    rig = empty_rig
    lost = await receive_study(rig.store, make_patient())
    hers = make_patient(patient_id="H-9", issuer=ISSUER)
    kept = await receive_study(
        rig.store, hers, study_uid=OTHER_STUDY, accession="ACC-2"
    )
    rig.report = await publish_draft(rig.store, rig.settings)
    await publish_draft(rig.store, rig.settings, study_uid=OTHER_STUDY)
    return Case(rig, lost, kept)


def links(patient: dict) -> list[tuple[str, str]]:
    return [(one["type"], one["other"]["reference"]) for one in patient.get("link", [])]


async def patient(case: Case, row: UUID, role: Role = Role.EHR) -> dict:
    return await case.rig.read(f"/Patient/{row}", role=role)


async def test_both_patients_say_how_they_are_linked_and_no_longer_when_apart(
    case: Case,
) -> None:
    await case.act(merge_rows)
    lost, kept = await patient(case, case.lost), await patient(case, case.kept)
    assert lost["active"] is False
    assert links(lost) == [("replaced-by", f"Patient/{case.kept}")]
    assert links(kept) == [("replaces", f"Patient/{case.lost}")]
    assert "active" not in kept
    assert lost["identifier"][0]["value"] == "MRN-0042"
    masked = await patient(case, case.lost, Role.RADIOLOGIST)
    assert links(masked) == links(lost)
    assert masked["active"] is False
    await case.act(take_apart)
    lost, kept = await patient(case, case.lost), await patient(case, case.kept)
    assert (lost.get("active"), links(lost), links(kept)) == (None, [], [])
    assert lost["meta"]["versionId"] == "3"


async def test_a_provenance_says_who_and_why_for_each_version(case: Case) -> None:
    await case.act(merge_rows)
    for row in (case.lost, case.kept):
        path = f"/Provenance?target=Patient/{row}"
        bundle = await case.rig.read(path, role=Role.EHR)
        (one,) = [entry["resource"] for entry in bundle["entry"]]
        assert one["target"][0]["reference"] == f"Patient/{row}/_history/2"
        assert "merged" in one["reason"][0]["text"]
        assert one["agent"][0]["who"]["display"] == CLERK.user_id
        assert "ID card" not in str(one)


SEARCHES = (
    "/ImagingStudy?patient={}",
    "/ImagingStudy?subject=Patient/{}",
    "/ImagingStudy?patient.identifier={}",
    "/ImagingStudy?patient:identifier={}",
    "/Patient/{}/$everything?_type=ImagingStudy",
)


async def test_whoever_asks_for_either_row_finds_both_until_they_are_apart(
    case: Case,
) -> None:
    async def found() -> tuple[list[set[str]], list[set[str]]]:
        lost, kept = [], []
        for path in SEARCHES:
            by_number = "identifier=" in path
            hers = "MRN-0042" if by_number else str(case.lost)
            others = "H-9" if by_number else str(case.kept)
            lost.append(await case.found(path.format(hers)))
            kept.append(await case.found(path.format(others)))
        return lost, kept

    apart = await found()
    assert apart[0] == [{f"ImagingStudy/{STUDY_UID}"}] * len(SEARCHES)
    assert apart[1] == [{f"ImagingStudy/{OTHER_STUDY}"}] * len(SEARCHES)
    await case.act(merge_rows)
    assert await found() == ([STUDIES] * len(SEARCHES), [STUDIES] * len(SEARCHES))
    await case.act(take_apart)
    assert await found() == apart


async def test_a_number_finds_its_own_row_and_the_link_leads_to_the_other(
    case: Case,
) -> None:
    await case.act(merge_rows)
    by_number = "/Patient?identifier=MRN-0042"
    assert await case.found(by_number) == {f"Patient/{case.lost}"}
    both = {f"Patient/{case.lost}", f"Patient/{case.kept}"}
    assert await case.found(f"{by_number}&_include=Patient:link") == both
    replaced = f"/Patient?link=Patient/{case.kept}"
    assert await case.found(replaced) == {f"Patient/{case.lost}"}
    assert await case.found("/Patient?active=false") == {f"Patient/{case.lost}"}
    asked = f"/Patient?_id={case.kept}&_revinclude=ImagingStudy:patient"
    assert await case.found(asked) > STUDIES
    holder = f"/Patient?_has:ImagingStudy:patient:identifier=urn:oid:{STUDY_UID}"
    assert await case.found(holder) == both


async def test_a_token_for_one_row_opens_both_and_nothing_after_the_end(
    case: Case,
) -> None:
    token = await case.token(case.kept)
    hers, others = f"/ImagingStudy/{OTHER_STUDY}", f"/ImagingStudy/{STUDY_UID}"

    async def opened(path: str) -> bool:
        headers = {"Authorization": f"Bearer {token}"}
        return (await case.rig.get(path, role=None, headers=headers)).status == 200

    assert (await opened(hers), await opened(others)) == (True, False)
    await case.act(merge_rows)
    assert (await opened(hers), await opened(others)) == (True, True)
    assert await case.found("/ImagingStudy", token) == STUDIES
    assert await opened(f"/Patient/{case.lost}")
    await case.act(take_apart)
    for path in (others, f"{others}/_history/1", f"/Patient/{case.lost}"):
        assert not await opened(path)
    assert await case.found("/ImagingStudy", token) == {hers[1:]}
    assert await case.found("/Patient", token) == {f"Patient/{case.kept}"}
    headers = {"Authorization": f"Bearer {token}"}
    for version in (1, 2, 3):
        path = f"/Patient/{case.kept}/_history/{version}"
        answer = await case.rig.get(path, role=None, headers=headers)
        assert b"MRN-0042" not in answer.raw


async def test_no_phone_hears_of_a_merge(case: Case) -> None:
    store = case.rig.store
    settings = replace(case.rig.settings, relay_url="http://localhost:1/hook")
    await ensure_relay_subscription(store, settings)
    async with store.db.transaction() as tx:
        relay = await tx.fetchval("select subscription_id from subscriptions")
        await tx.execute("update subscriptions set status = 'active'")
    assert (await case.rig.sign()).status == 200

    async def told() -> list[bytes]:
        async with store.db.transaction() as tx:
            return [one.body for one in await topic_events.events(tx, store, relay)]

    before = await told()
    assert before
    await case.act(merge_rows)
    await case.act(take_apart)
    assert await told() == before


async def test_a_signed_report_keeps_its_version(case: Case) -> None:
    assert (await case.rig.sign()).status == 200
    before = await case.rig.read(case.rig.report_path)
    await case.act(merge_rows)
    assert await case.rig.read(case.rig.report_path) == before


async def test_the_ehr_merges_by_saying_who_replaces_her(case: Case) -> None:
    link = {"other": {"reference": f"Patient/{case.kept}"}, "type": "replaced-by"}
    answer = await case.put(case.lost, link=[link])
    assert answer.status == 200, answer.raw
    assert answer.body["active"] is False
    await case.publish()
    kept = await patient(case, case.kept)
    assert links(kept) == [("replaces", f"Patient/{case.lost}")]
    assert await case.found(f"/ImagingStudy?patient={case.kept}") == STUDIES
    # Its everyday update undoes nothing, and is told so.
    again = await case.put(case.lost, link=None, active=True, gender="female")
    assert again.status == 200
    assert (again.body["active"], links(again.body)) == (False, links(answer.body))
    whole = await case.put(case.kept, gender="female")
    assert links(whole.body) == links(kept)


async def test_a_link_that_would_stay_without_effect_is_refused(case: Case) -> None:
    def link(kind: str, row: UUID) -> list[dict]:
        return [{"other": {"reference": f"Patient/{row}"}, "type": kind}]

    for row, told in (
        (case.kept, link("replaces", uuid4())),
        (case.lost, link("replaced-by", uuid4())),
        (case.lost, link("replaced-by", case.lost)),
    ):
        answer = await case.put(row, link=told)
        assert answer.status == 422
        assert answer.expressions == ["Patient.link"]
    await case.act(merge_rows)
    cycle = link("replaced-by", case.lost)
    answer = await case.put(case.kept, link=cycle)
    assert (answer.status, b"unmerge" in answer.raw) == (422, True)


async def test_the_one_that_stands_may_say_it_and_a_person_has_the_last_word(
    case: Case,
) -> None:
    """Some systems link only the survivor, and repeat it with every update."""
    told = [{"other": {"reference": f"Patient/{case.lost}"}, "type": "replaces"}]
    answer = await case.put(case.kept, link=told)
    assert (answer.status, links(answer.body)) == (200, links({"link": told}))
    await case.publish()
    lost = await patient(case, case.lost)
    assert links(lost) == [("replaced-by", f"Patient/{case.kept}")]
    await case.act(take_apart, reason="two sisters")
    again = await case.put(case.kept, link=told)
    assert (again.status, again.expressions) == (422, ["Patient.link"])
    assert b"reconcile merge" in again.raw
    for harmless in ("seealso", "refer"):
        told = [{"other": {"reference": f"Patient/{case.lost}"}, "type": harmless}]
        answer = await case.put(case.kept, link=told)
        assert (answer.status, links(answer.body)) == (200, links({"link": told}))
    assert await case.found(f"/ImagingStudy?patient={case.kept}") == {
        f"ImagingStudy/{OTHER_STUDY}"
    }
    operation = await case.rig.ask("POST", "/Patient/$merge", {}, role=Role.EHR)
    assert (operation.status, b"replaced-by" in operation.raw) == (404, True)


async def test_erasing_one_row_erases_the_other_unless_they_were_taken_apart(
    case: Case,
) -> None:
    store = case.rig.store
    await case.act(merge_rows)
    await case.act(take_apart)
    await case.act(merge_rows)
    await shred_patient(store.db, store.ring, case.lost)
    for row in (case.lost, case.kept):
        assert (await case.rig.get(f"/Patient/{row}", role=Role.EHR)).status == 410
    with pytest.raises(NodeError) as refused:
        async with store.db.transaction() as tx:
            await compare_rows(store, tx, case.lost, case.kept)
    assert refused.value.kind is ErrorKind.GONE


async def test_erasing_after_the_end_of_a_merge_leaves_the_other_whole(
    case: Case,
) -> None:
    store = case.rig.store
    await case.act(merge_rows)
    await case.act(take_apart)
    await shred_patient(store.db, store.ring, case.lost)
    assert (await case.rig.get(f"/Patient/{case.lost}", role=Role.EHR)).status == 410
    assert "H-9" in str(await patient(case, case.kept))
    assert await case.found("/ImagingStudy") == {f"ImagingStudy/{OTHER_STUDY}"}


async def test_of_two_at_once_one_merges_and_the_other_is_told(case: Case) -> None:
    store = case.rig.store
    async with store.db.transaction() as tx:
        seen = (await compare_rows(store, tx, case.lost, case.kept)).seen
    told = {"identity": CLERK, "reason": "same woman", "seen": seen}
    done = await asyncio.gather(
        merge_rows(store, case.lost, case.kept, **told),
        merge_rows(store, case.kept, case.lost, **told),
        return_exceptions=True,
    )
    (refused,) = [one for one in done if one is not None]
    assert isinstance(refused, NodeError)
    assert refused.kind is ErrorKind.CONFLICT


async def test_a_subscriber_to_one_row_hears_of_the_other_while_they_are_one(
    case: Case,
) -> None:
    store = case.rig.store
    url = f"{BACKPORT}/backport-filter-criteria"
    asked = make_subscription(
        "http://127.0.0.1:1/hook",
        criteria="https://fhir.sononode.org/SubscriptionTopic/imaging-study-available",
        _criteria={
            "extension": [
                {
                    "url": url,
                    "valueString": f"ImagingStudy?patient=Patient/{case.kept}",
                }
            ]
        },
    )
    made = await case.rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert made.status == 201, made.raw

    async def heard() -> int:
        study = [("ImagingStudy", STUDY_UID)]
        async with store.db.transaction() as tx:
            await resources_changed(tx, store, case.rig.settings, study)
        async with store.db.transaction() as tx:
            return len(await topic_events.events(tx, store, UUID(made.body["id"])))

    assert await heard() == 0
    await case.act(merge_rows)
    assert await heard() == 1
    await case.act(take_apart)
    assert await heard() == 1


async def test_hooks_are_told_of_a_merge_and_of_its_end_as_far_as_they_may_hear(
    case: Case,
) -> None:
    store, settings = case.rig.store, case.rig.settings
    topic = "https://fhir.sononode.org/SubscriptionTopic/patients-merged"
    with pytest.raises(NodeError):
        require_topic(
            Identity("a", frozenset({Role.ADMINISTRATOR}), ""), settings.topics[topic]
        )
    async with (
        running_hook() as ehr,
        running_hook() as hers,
        aiohttp.ClientSession() as session,
    ):
        calls = Dispatcher(store, settings, session, session)
        # Whoever asks for more gets what is one row's, never the other Patient.
        path = ("include=Patient:link", "revInclude=ImagingStudy:patient")
        more = replace(settings.topics[topic], along=path)
        object.__setattr__(settings, "topics", {**settings.topics, topic: more})
        asked = make_subscription(f"{ehr.url}/hook", criteria=topic)
        made = await case.rig.ask("POST", "/Subscription", asked, role=Role.EHR)
        assert made.status == 201, made.raw
        async with store.db.transaction() as tx:
            program = (await case.portal(tx)).client_id
            owner = Owner(
                str(program),
                program,
                "patient/*.rs",
                str(case.kept),
                frozenset({Role.EHR}),
            )
            asked = make_subscription(f"{hers.url}/hook", criteria=topic)
            await subscribe(tx, store, settings, asked, uuid4(), owner, trusted=True)
            asked_id = await tx.fetchval(
                "select subscription_id::text from subscriptions where client_id = $1",
                program,
            )
            await put(tx, store, {**asked, "id": asked_id})
        await calls.deliver_due()
        for act in (merge_rows, take_apart):
            await case.act(act)
            await calls.deliver_due()
        # Her everyday update is no merge.
        assert (await case.put(case.kept, gender="female")).status == 200
        assert await calls.deliver_due() == 0

    def told(hook: Hook) -> list[tuple[str, bool, list[str]]]:
        found = [b["entry"][1]["resource"] for b in hook.bundles[1:]]
        return [
            (one["id"], one.get("active", True), [kind for kind, _ in links(one)])
            for one in found
        ]

    lost, kept = str(case.lost), str(case.kept)
    # Both, in the order of their ids; the portal hears of her alone, while she is one.
    together = [(kept, True, ["replaces"]), (lost, False, ["replaced-by"])]
    apart = [(kept, True, []), (lost, True, [])]
    for hook in (ehr, hers):
        beside = [one for b in hook.bundles[1:] for one in b["entry"][2:]]
        names = {one["fullUrl"].rpartition("/fhir/")[2] for one in beside}
        assert names == STUDIES
        assert all(len(b["entry"]) == 3 for b in hook.bundles[1:])
    assert told(ehr) == [*sorted(together), *sorted(apart)]
    assert told(hers) == [*sorted(together), (kept, True, [])]


async def test_an_order_that_was_placed_in_the_same_moment_is_matched_too(
    case: Case,
) -> None:
    store = case.rig.store
    async with store.db.transaction() as tx:
        order = Placement(
            "1", case.kept, OrderSource.REST, Step(date(2026, 11, 21), None, ACCESSION)
        )
        placed, _ = await place_order(store, tx, order, by=None)
        # Its own transaction saw two women: so it stands after the merge.
        await merges.link(tx, case.lost, case.kept)
        told = {"by": CLERK.user_id, "reason": "same ID card"}
        number = await merges.decide(
            tx, store, case.lost, case.kept, Verdict.SAME, **told
        )
        assert STUDY_UID not in await orders.studies_of(tx, placed.order_id)
    await publish_merge(store, case.rig.settings, {"decision": number})
    async with store.db.transaction() as tx:
        assert await orders.studies_of(tx, placed.order_id) == [STUDY_UID]


async def test_an_order_follows_the_ehr_to_the_row_that_stands_and_stays_there(
    case: Case,
) -> None:
    """Who merges sends its orders once more, under the number that is left."""
    rig, store = case.rig, case.rig.store
    order = make_order(f"Patient/{case.lost}", identifier=[typed("PLAC", "P-77")])
    first = (await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)).body
    await case.act(merge_rows)
    told = first | {"subject": {"reference": f"Patient/{case.kept}"}}
    path, version = f"/ServiceRequest/{first['id']}", {"If-Match": 'W/"1"'}
    moved = await rig.ask("PUT", path, told, role=Role.EHR, headers=version)
    assert moved.status == 200, moved.raw
    replaces = [{"reference": f"ServiceRequest/{first['id']}"}]
    again = make_order(f"Patient/{case.lost}", replaces=replaces)
    assert (
        await rig.ask("POST", "/ServiceRequest", again, role=Role.EHR)
    ).status == 201
    async with store.db.transaction() as tx:
        every = orders.OrderQuery(statuses=frozenset(OrderStatus))
        found = await orders.search(tx, store, every, limit=9)
    rows = {one.order.patient_id: one.order.status for one in found}
    assert rows == {
        case.kept: OrderStatus.CANCELLED,
        case.lost: OrderStatus.SCHEDULED,
    }
    await case.act(take_apart, reason="two sisters")
    for row, shown, hidden in ((case.kept, 2, 1), (case.lost, 1, 2)):
        bearer = {"Authorization": f"Bearer {await case.token(row)}"}
        for number, status in ((shown, 200), (hidden, 404)):
            vread = f"{path}/_history/{number}"
            answer = await rig.get(vread, role=None, headers=bearer)
            assert answer.status == status, (row, number, answer.raw)
