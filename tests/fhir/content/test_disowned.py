"""A study of another woman is filed anew: what stands under the wrong name is void.

A name on the wrong phone hurts most, so the patient channel stands first here.
"""

from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import orjson
import pytest

from fhir.content.disowned import publish_disowned
from fhir.content.publish import publish_report
from fhir.multimedia.owed import STORE_REPORT
from fhir.multimedia.storing import Repository, store_report
from fhir.security.scoping import sees
from fhir.subscriptions.relay import ensure_relay_subscription
from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import AuthorKind
from node.domain.scopes import Scopes, read_scopes
from node.domain.study import StudyStatus
from node.store import (
    identities,
    moves,
    orders,
    pages,
    reports,
    resources,
    studies,
    topic_events,
)
from node.store.erasure import shred_patient
from node.store.store import Store
from node.workflow.moving import PUBLISH_DISOWNED, move_study, seen_patient
from node.workflow.orders import match_study
from node.workflow.reconciliation import compare
from node.workflow.reporting import draft_report
from tests.factories import ALGORITHM, make_findings, make_patient
from tests.fhir.content.test_orders import make_order, post, stored
from tests.fhir.multimedia.repository import running_repository
from tests.fhir.rig import STUDY_UID, Rig, drafted

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")
HERS = make_patient(patient_id="MRN-77", name="Wang^Fang=王^芳")


@dataclass
class Case:
    """A signed report under the wrong woman, and the right one."""

    rig: Rig
    wrong: UUID
    right: UUID

    async def move(self, **changes: object) -> moves.Move:
        """File the study anew, as somebody who has just compared both sides."""
        store = self.rig.store
        async with store.db.transaction() as tx:
            seen = (await compare(store, tx, STUDY_UID)).seen
            target = await identities.patient(tx, store, self.right)
        told = {
            "identity": CLERK,
            "reason": "wrong entry chosen at the machine",
            "seen": seen,
            "seen_target": seen_patient(self.right, target),
        }
        return await move_study(store, STUDY_UID, self.right, **(told | changes))

    async def publish(self) -> None:
        """Do the job that withdraws, as the worker would."""
        jobs = self.rig.store.jobs
        while job := await jobs.claim([PUBLISH_DISOWNED], "test"):
            await publish_disowned(self.rig.store, self.rig.settings, job.payload)
            await jobs.done(job)

    async def told(self) -> list[dict]:
        """Return what the relay is told, in order."""
        store = self.rig.store
        relay = await self._relay()
        async with store.db.transaction() as tx:
            found = await topic_events.events(tx, store, relay)
        return [orjson.loads(event.body) for event in found if event.body]

    async def _relay(self) -> UUID:
        async with self.rig.store.db.transaction() as tx:
            return await tx.fetchval(
                "select subscription_id from subscriptions where topic like $1",
                "%report-released",
            )


async def readied(rig: Rig) -> None:
    async with rig.store.db.transaction() as tx:
        await studies.mark_study(tx, STUDY_UID, StudyStatus.READ, generation=1)


@pytest.fixture
async def case(empty_rig: Rig) -> Case:
    settings = replace(empty_rig.settings, relay_url="http://localhost:1/hook")
    await ensure_relay_subscription(empty_rig.store, settings)
    async with empty_rig.store.db.transaction() as tx:
        relay = await tx.fetchval("select subscription_id from subscriptions")
        await tx.execute(
            "update subscriptions set status = 'active' where subscription_id = $1",
            relay,
        )
        right = await identities.upsert_patient(
            tx, empty_rig.store, HERS, at=empty_rig.store.clock()
        )
    rig = await drafted(empty_rig)
    await readied(rig)
    assert rig.report is not None
    return Case(rig, rig.report.patient_id, right)


async def signed(case: Case) -> Case:
    assert (await case.rig.sign()).status == 200
    return case


def handles(told: dict) -> tuple[str, str]:
    return told["id"], told["subject"]["identifier"]["value"]


def state(told: dict) -> str:
    (found,) = [
        e["valueCode"] for e in told["extension"] if e["url"].endswith("release-state")
    ]
    return str(found)


async def test_nothing_stays_on_the_phone_that_is_bound_to_the_wrong_woman(
    case: Case,
) -> None:
    await signed(case)
    (before,) = await case.told()
    await case.move()
    await case.publish()
    first, last = await case.told()
    assert first == before
    assert handles(last) == handles(before)
    assert (last["status"], state(last)) == ("entered-in-error", "withdrawn")
    assert "conclusionCode" not in last
    async with case.rig.store.db.transaction() as tx:
        hers = await reports.patient_handle(tx, case.right)
    assert hers not in orjson.dumps([first, last]).decode()


async def test_a_report_that_nobody_signed_leaves_no_trace_in_the_patient_channel(
    case: Case,
) -> None:
    await case.move()
    await case.publish()
    assert await case.told() == []


async def test_the_chart_of_the_wrong_woman_is_told_and_shows_nothing_of_the_other(
    case: Case,
) -> None:
    await signed(case)
    rig = case.rig
    before = await rig.read(rig.report_path, role=Role.EHR)
    await case.move()
    await case.publish()
    report = await rig.read(rig.report_path, role=Role.EHR)
    assert report["status"] == "entered-in-error"
    assert report["subject"] == before["subject"]
    assert {"conclusion", "presentedForm", "basedOn"}.isdisjoint(report)
    # Who signed, and when, stays to be seen.
    assert report["resultsInterpreter"] == before["resultsInterpreter"]
    found = await rig.read(f"/Observation?patient={case.wrong}", role=Role.EHR)
    for entry in found["entry"]:
        observation = entry["resource"]
        assert observation["status"] == "entered-in-error"
        assert not [key for key in observation if key.startswith("value")]
        assert "component" not in observation
    study = await rig.read(f"/ImagingStudy/{STUDY_UID}", role=Role.EHR)
    assert study["status"] == "entered-in-error"
    places = await rig.read(f"/BodyStructure?patient={case.wrong}", role=Role.EHR)
    assert all(not entry["resource"]["active"] for entry in places["entry"])
    older = await rig.read(f"{rig.report_path}/_history/2", role=Role.EHR)
    assert older["status"] == "final"


async def test_the_withdrawal_says_who_and_why_and_is_not_a_physicians(
    case: Case,
) -> None:
    await signed(case)
    await case.move()
    await case.publish()
    target = f"DiagnosticReport/{case.rig.report_id}"
    found = await case.rig.read(f"/Provenance?target={target}", role=Role.EHR)
    said = [e["resource"] for e in found["entry"] if "reason" in e["resource"]]
    (last,) = said
    assert last["reason"][0]["text"] == "wrong entry chosen at the machine"
    assert last["activity"]["coding"][0]["code"] == "NULLIFY"
    async with case.rig.store.db.transaction() as tx:
        report = await reports.read(tx, case.rig.store, case.rig.report_id)
    assert report.current.author.kind is AuthorKind.REGISTRAR
    assert report.is_disowned
    assert report.last_signed() is not None


async def test_what_a_repository_has_of_the_wrong_woman_is_taken_back_there(
    case: Case,
) -> None:
    await signed(case)
    rig = case.rig
    rig.settings = replace(rig.settings, repositories=("hospital",))
    await case.move()
    await case.publish()
    job = await rig.store.jobs.claim([STORE_REPORT], "test", lane="hospital")
    assert job is not None
    async with running_repository() as running:
        known = {"hospital": Repository("hospital", running.url)}
        await store_report(rig.store, rig.settings, known, rig.session, job.payload)
    (withdrawn,) = running.reports()
    assert withdrawn["status"] == "entered-in-error"
    assert withdrawn["subject"]["identifier"]["value"] == "MRN-0042"
    assert {"conclusion", "presentedForm", "text"}.isdisjoint(withdrawn)


async def test_nothing_is_written_to_a_report_that_was_disowned(case: Case) -> None:
    await signed(case)
    await case.move()
    # Already in the moment before its resources say so.
    early = await case.rig.put(case.rig.report_path, status="amended")
    assert early.status == 422
    await case.publish()
    late = await case.rig.put(case.rig.report_path, status="amended")
    assert late.status == 422
    async with case.rig.store.db.transaction() as tx:
        with pytest.raises(NodeError) as refused:
            await draft_report(
                case.rig.store, tx, STUDY_UID, make_findings(), author=ALGORITHM
            )
    assert refused.value.kind is ErrorKind.RULE


async def test_a_draft_that_was_not_published_yet_never_is(case: Case) -> None:
    report = case.rig.report
    assert report is not None
    await case.move()
    payload = {"report_id": str(report.id), "version": 1}
    await publish_report(case.rig.store, case.rig.settings, payload)
    await case.publish()
    shown = await case.rig.read(case.rig.report_path, role=Role.EHR)
    assert shown["status"] == "entered-in-error"


async def test_the_order_goes_back_on_the_worklist_and_is_not_taken_again(
    case: Case,
) -> None:
    order = make_order(
        f"Patient/{case.wrong}",
        identifier=[
            {**make_order("")["identifier"][0], "value": "ACC-2026-000042"},
        ],
    )
    await post(case.rig, order)
    (placed,) = await stored(case.rig)
    assert placed.status.value == "IN PROGRESS"
    await case.move()
    await case.publish()
    async with case.rig.store.db.transaction() as tx:
        assert await match_study(case.rig.store, tx, STUDY_UID) == []
    (given_back,) = await stored(case.rig)
    assert given_back.status.value == "SCHEDULED"


async def test_a_repeated_act_and_a_repeated_job_change_nothing(case: Case) -> None:
    await signed(case)
    first = await case.move()
    again = await case.move(seen="whatever", seen_target="old")
    assert again.filed_as == first.filed_as
    payload = {"study_instance_uid": STUDY_UID, "report_id": str(case.rig.report_id)}
    for _ in range(2):
        await publish_disowned(case.rig.store, case.rig.settings, payload)
    assert len(await case.told()) == 2
    assert await versions_of(case.rig.store) == 3


async def versions_of(store: Store) -> int:
    async with store.db.transaction() as tx:
        return int(await tx.fetchval("select count(*) from report_version"))


async def test_of_two_people_one_wins_and_the_other_is_told(case: Case) -> None:
    third = make_patient(patient_id="MRN-78", name="Liu^Yan")
    async with case.rig.store.db.transaction() as tx:
        other = await identities.upsert_patient(
            tx, case.rig.store, third, at=case.rig.store.clock()
        )
    await case.move()
    case.right = other
    with pytest.raises(NodeError) as late:
        await case.move()
    assert late.value.kind is ErrorKind.CONFLICT


async def test_who_looked_at_somebody_else_is_told(case: Case) -> None:
    with pytest.raises(NodeError) as refused:
        await case.move(seen_target="0" * 32)
    assert refused.value.kind is ErrorKind.CONFLICT
    with pytest.raises(NodeError) as refused:
        await case.move(seen="0" * 32)
    assert refused.value.kind is ErrorKind.CONFLICT


async def test_a_study_is_not_moved_while_it_is_read_nor_to_its_own_patient(
    case: Case,
) -> None:
    async with case.rig.store.db.transaction() as tx:
        await tx.execute("update studies set status = 'closed'")
    with pytest.raises(NodeError) as refused:
        await case.move()
    assert refused.value.kind is ErrorKind.CONFLICT
    await readied(case.rig)
    case.right = case.wrong
    with pytest.raises(NodeError) as refused:
        await case.move()
    assert refused.value.kind is ErrorKind.RULE


async def test_only_who_may_reconcile_moves(case: Case) -> None:
    doctor = Identity(str(uuid4()), frozenset({Role.SENIOR_RADIOLOGIST}), "Wang")
    with pytest.raises(NodeError) as refused:
        await case.move(identity=doctor)
    assert refused.value.kind is ErrorKind.FORBIDDEN


async def test_a_token_of_the_wrong_woman_opens_no_version_of_it(case: Case) -> None:
    await signed(case)
    scopes = Scopes(
        read_scopes("patient/DiagnosticReport.rs patient/ImagingStudy.rs"),
        str(case.wrong),
    )
    app = Identity("app", frozenset({Role.EHR}), "app", scopes=scopes)

    async def opened() -> set[bool]:
        async with case.rig.store.db.transaction() as tx:
            kinds = (("DiagnosticReport", str(case.rig.report_id)),)
            kinds += (("ImagingStudy", STUDY_UID),)
            return {
                sees(app, version)
                for kind in kinds
                for version in await resources.history(tx, case.rig.store, *kind)
            }

    assert await opened() == {True}
    await case.move()
    await case.publish()
    assert await opened() == {False}


@pytest.mark.parametrize("which", ["wrong", "right"])
async def test_what_is_left_goes_with_the_key_of_either_and_nothing_else_does(
    case: Case, which: str
) -> None:
    await signed(case)
    store, report = case.rig.store, case.rig.report
    assert report is not None
    kept_page = pages.keep(store, report.id, 2, b"<!DOCTYPE html>")
    async with store.db.transaction() as tx:
        await pages.insert(tx, store, report, 2, kept_page)
    move = await case.move()
    await case.publish()
    left_over = replace(report, patient_id=move.owner)
    async with store.db.transaction() as tx:
        page = await pages.find(tx, store, left_over, 2)
    assert page is not None
    assert pages.read(store, page) == b"<!DOCTYPE html>"
    erased = getattr(case, which)
    kept = case.right if which == "wrong" else case.wrong
    await shred_patient(store.db, store.ring, erased)
    async with store.db.transaction() as tx:
        for read in (
            reports.read(tx, store, case.rig.report_id),
            resources.read(tx, store, "DiagnosticReport", str(case.rig.report_id)),
            resources.read_version(tx, store, "ImagingStudy", STUDY_UID, 1),
            studies.instances_of(tx, store, STUDY_UID),
            studies.study_detail(tx, store, STUDY_UID),
            moves.of_study(tx, store, STUDY_UID),
            pages.find(tx, store, left_over, 2),
        ):
            with pytest.raises(NodeError) as gone:
                await read
            assert gone.value.kind is ErrorKind.GONE
        assert await identities.patient(tx, store, kept)
        # No sealed row of it is left with the key of the one who was not erased.
        for table in ("studies", "report", "resources", "resource_versions"):
            left = await tx.fetchval(
                f"select count(*) from {table} where patient_id = $1"
                + (
                    " and resource_type <> 'Patient'"
                    if table.startswith("resource")
                    else ""
                ),
                kept,
            )
            assert left == 0, table
        assert await orders.decisions(tx, STUDY_UID) == {}
    assert await case.told() == []
    assert move.owner not in (case.wrong, case.right)
