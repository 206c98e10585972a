"""Rows that are merged and taken apart, in any order with all that happens to them.

Whatever comes first: no study is lost or found under a woman whose it is not, a report
stays with the one row by which a phone is told, and erasing leaves nothing of either.
"""

import random
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest

from dicom_scp.receiving.filing import file_anew
from dicom_scp.receiving.peers import Peer
from dicom_scp.services.matching import Key
from dicom_scp.services.service import Caller
from dicom_scp.services.worklist import (
    START_DATE,
    START_TIME,
    STATION,
    Wanted,
    WorklistSettings,
    find_steps,
)
from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderSource, OrderStatus, Step
from node.domain.report import Conclusions, ReportStatus
from node.domain.study import PatientIdentity
from node.store import catalogue, identities, merges, moves, orders, reports, studies
from node.store.erasure import shred_patient
from node.store.orders import OrderQuery
from node.store.store import Store
from node.workflow.merging import compare_rows, merge_rows, take_apart
from node.workflow.moving import FILE_ANEW, move_study, seen_patient
from node.workflow.orders import Placement, match_study, place_order
from node.workflow.reconciliation import compare
from node.workflow.reporting import draft_report, revise_report
from tests.dicom_scp.instances import make_instance
from tests.dicom_scp.services import archive
from tests.factories import ALGORITHM, DOCTOR, make_findings

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")
MACHINE = Caller(Peer("US1"), "US1", "127.0.0.1", "1")
PATIENT_ID = "00100020"
COMPLETED = OrderStatus.COMPLETED
SCHEDULED = frozenset({OrderStatus.SCHEDULED})
ROWS, EVENTS = 3, 14
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass
class Ward:
    """A few rows, and what should be true of them by all that was said and done."""

    store: Store
    chance: random.Random
    name: str
    rows: dict[str, UUID] = field(default_factory=dict)
    orders: dict[str, UUID] = field(default_factory=dict)
    into: dict[str, str] = field(default_factory=dict)
    studies: dict[str, str] = field(default_factory=dict)
    accessions: dict[str, str] = field(default_factory=dict)
    signed: set[str] = field(default_factory=set)
    void: dict[str, frozenset[str]] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)

    # -- what was said ----------------------------------------------------------------

    def hers(self, number: str) -> frozenset[str]:
        """Return all numbers of the woman who has this one."""
        found, before = {number}, set()
        while found != before:
            before = set(found)
            for lost, kept in self.into.items():
                if {lost, kept} & found:
                    found |= {lost, kept}
        return frozenset(found)

    def stands(self, number: str) -> str:
        return self.stands(self.into[number]) if number in self.into else number

    @property
    def alive(self) -> list[str]:
        return sorted(self.rows.keys() - self.erased)

    # -- what happens -----------------------------------------------------------------

    async def begin(self) -> None:
        for n in range(ROWS):
            number = f"{self.name}-{n}"
            told = PatientIdentity(number, f"Woman^{n}", sex="F", issuer="HIS")
            step = Step(self.store.clock().date(), accession_number=f"A{number}")
            async with self.store.db.transaction() as tx:
                row = await identities.upsert_patient(
                    tx, self.store, told, at=self.store.clock()
                )
                placed = Placement(number, row, OrderSource.REST, step)
                order, _ = await place_order(self.store, tx, placed, by=None)
            self.rows[number], self.orders[number] = row, order.order_id

    async def happen(self) -> str:
        """Let something happen that can; return what."""
        acts = [self.receive, self.receive, self.merge, self.merge, self.apart]
        acts += [self.move, self.sign, self.erase]
        act = self.chance.choice(acts)
        await act()
        return act.__name__

    async def receive(self) -> None:
        if not self.alive:
            return
        uid = f"2.25.{self.chance.getrandbits(100)}"
        number = self.chance.choice(self.alive)
        ordered = self.chance.choice(self.alive)  # somebody may take the wrong entry
        await archive.keep(
            self.store,
            make_instance(
                rows=8,
                columns=8,
                StudyInstanceUID=uid,
                SeriesInstanceUID=f"{uid}.1",
                SOPInstanceUID=f"{uid}.1.1",
                PatientID=number,
                PatientName=f"Woman^{number[-1]}",
                PatientBirthDate=None,
                IssuerOfPatientID="HIS",
                AccessionNumber=f"A{ordered}",
            ),
        )
        await self._read(uid)
        self.studies[uid], self.accessions[uid] = number, ordered

    async def _read(self, uid: str) -> None:
        async with self.store.db.transaction() as tx:
            await match_study(self.store, tx, uid)
            await draft_report(self.store, tx, uid, make_findings(), author=ALGORITHM)
            await tx.execute(
                "update studies set status = 'read' where study_instance_uid = $1", uid
            )

    async def sign(self) -> None:
        for uid in sorted(self.studies.keys() - self.signed)[:1]:
            async with self.store.db.transaction() as tx:
                await revise_report(
                    self.store,
                    tx,
                    reports.report_id_for(uid),
                    ReportStatus.FINAL,
                    make_findings(),
                    Conclusions(),
                    author=DOCTOR,
                )
            self.signed.add(uid)

    async def merge(self) -> None:
        women = sorted({self.stands(number) for number in self.alive})
        if len(women) > 1:
            lost, kept = self.chance.sample(women, 2)
            await self._say(merge_rows, lost, kept)
            self.into[lost] = kept

    async def apart(self) -> None:
        links = sorted((lost, k) for lost, k in self.into.items() if lost in self.alive)
        if links:
            lost, kept = self.chance.choice(links)
            await self._say(take_apart, lost, kept)
            del self.into[lost]

    async def _say(self, what: "type[merge_rows]", lost: str, kept: str) -> None:
        pair = self.rows[lost], self.rows[kept]
        async with self.store.db.transaction() as tx:
            seen = (await compare_rows(self.store, tx, *pair)).seen
        await what(self.store, *pair, identity=CLERK, reason="looked", seen=seen)

    async def move(self) -> None:
        """File a study anew, if it may be another woman's."""
        for uid in sorted(self.studies)[:1]:
            number = self.studies[uid]
            others = sorted(set(self.alive) - self.hers(number))
            if not others:
                return
            right = self.chance.choice(others)
            async with self.store.db.transaction() as tx:
                seen = (await compare(self.store, tx, uid)).seen
                told = await identities.patient(tx, self.store, self.rows[right])
            move = await move_study(
                self.store,
                uid,
                self.rows[right],
                identity=CLERK,
                reason="wrong entry",
                seen=seen,
                seen_target=seen_patient(self.rows[right], told),
            )
            while job := await self.store.jobs.claim([FILE_ANEW], "test"):
                await file_anew(self.store, job.payload, system="S")
                await self.store.jobs.done(job)
            async with self.store.db.transaction() as tx:
                await studies.study(tx, uid, for_update=True)
                await moves.reseal(tx, self.store, move)
            await self._read(move.filed_as)
            del self.studies[uid]
            self.signed.discard(uid)
            self.void[uid] = frozenset({number, right})
            self.studies[move.filed_as] = right

    async def erase(self) -> None:
        if len(self.alive) < ROWS or self.chance.random() < 0.7:
            return
        gone = self.hers(self.chance.choice(self.alive))
        await shred_patient(self.store.db, self.store.ring, self.rows[min(gone)])
        self.erased |= gone
        self.studies = {u: n for u, n in self.studies.items() if n not in gone}

    # -- what has to be true ----------------------------------------------------------

    async def check(self) -> None:
        await self._is_one_woman()
        await self._finds_all_of_her()
        await self._answers_orders()
        await self._leaves_nothing()

    async def _is_one_woman(self) -> None:
        async with self.store.db.transaction() as tx:
            for number in self.alive:
                rows = await merges.rows_of(tx, self.rows[number])
                assert rows == {self.rows[one] for one in self.hers(number)}

    async def _finds_all_of_her(self) -> None:
        for number in self.alive:
            page = await catalogue.studies_page(
                self.store,
                catalogue.Narrowing(patient_number=number),
                after=None,
                limit=99,
            )
            found = {
                one.study_instance_uid: one.patient.identity.patient_id
                for one in page.entries
            }
            hers = self.hers(number)
            assert found == {u: n for u, n in self.studies.items() if n in hers}
        async with self.store.db.transaction() as tx:
            for uid in self.studies:
                report_id = reports.report_id_for(uid)
                report = await reports.read(tx, self.store, report_id)
                assert report.patient_id == self.rows[self.studies[uid]]
                assert report.current.signed == (uid in self.signed)

    async def _answers_orders(self) -> None:
        answered = set()
        async with self.store.db.transaction() as tx:
            for uid, number in self.studies.items():
                found = await orders.of_study(tx, self.store, uid)
                agrees = {one.order.order_id for one in found if one.agrees}
                ordered = self.accessions.get(uid)
                right = ordered in self.hers(number)
                assert agrees == ({self.orders[ordered]} if right else set())
                answered |= {ordered} if right else set()
                if right and uid in self.signed:
                    assert {one.order.status for one in found} == {COMPLETED}
        offered = {}
        for number in self.alive:
            wanted = Wanted(
                OrderQuery(SCHEDULED, patient_id=number),
                (Key(PATIENT_ID, "LO", (number,)),),
                *(Key(*key) for key in ((STATION, "AE"), (START_DATE, "DA"))),
                Key(START_TIME, "TM"),
                "US1",
            )
            told = await find_steps(self.store, wanted, MACHINE, WorklistSettings())
            for one in told.answers:
                (ordered,) = one["00080050"]["Value"]
                assert one[PATIENT_ID]["Value"] == [self.stands(number)]
                offered.setdefault(ordered[1:], []).append(number)
        for number in self.alive:
            numbers = [] if number in answered else sorted(self.hers(number))
            assert offered.get(number, []) == numbers

    async def _leaves_nothing(self) -> None:
        owners = {uid for uid, women in self.void.items() if women & self.erased}
        async with self.store.db.transaction() as tx:
            for number in self.erased:
                with pytest.raises(NodeError) as gone:
                    await identities.patient(tx, self.store, self.rows[number])
                assert gone.value.kind is ErrorKind.GONE
            for uid in self.void.keys() - owners:
                await reports.read(tx, self.store, reports.report_id_for(uid))
            for uid in owners:
                with pytest.raises(NodeError) as gone:
                    await reports.read(tx, self.store, reports.report_id_for(uid))
                assert gone.value.kind is ErrorKind.GONE


async def test_whatever_the_order_of_events_each_has_what_is_hers(store: Store) -> None:
    for seed in range(5):
        ward, told = Ward(store, random.Random(seed), f"W{seed}"), [f"seed {seed}"]
        await ward.begin()
        for _ in range(EVENTS):
            told.append(await ward.happen())
            try:
                await ward.check()
            except AssertionError as error:
                error.add_note(", ".join(told))
                raise


async def test_a_study_stays_under_the_number_under_which_it_began(
    store: Store,
) -> None:
    await archive.fill(store)
    late = make_instance(rows=8, columns=8, StudyInstanceUID=archive.OTHER)
    with pytest.raises(NodeError, match="belongs to another patient"):
        await archive.keep(store, late)
    late.IssuerOfPatientID = "HIS"
    await archive.merge(store, archive.LI, archive.ZHANG)
    with pytest.raises(NodeError, match="began under another Patient ID"):
        await archive.keep(store, late)
