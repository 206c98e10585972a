"""A study is closed on the strongest word about its end, whatever the order of events.

Steps: PS3.4 F.7; commitment lists: PS3.4 J.3; release and abort: PS3.8 7.2, 7.3.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from node.domain.completion import (
    CompletionRules,
    EvidenceKind,
    Flaw,
    StepStatus,
    Verdict,
)
from node.domain.study import PatientIdentity, StudyRecord, StudyStatus
from node.store import audit, completion, studies
from node.store.associations import EndedHow
from node.store.store import Store
from node.workflow.completion import (
    ASSESS_STUDY,
    CompletionSettings,
    close_due_studies,
    end_association,
)
from node.workflow.intake import Received, receive_instance
from node.workflow.mpps import Scheduled, ToldStep, begin_step, change_step
from node.workflow.orders import RequestIds
from tests.conftest import FrozenClock
from tests.node.workflow.test_completion import STUDY, make_arrival

SETTINGS = CompletionSettings(
    quiet_period_s=60,
    quiet_after_release_s=5,
    stale_association_s=6000,
    missing_wait_s=300,
    stale_step_s=7200,
)
OTHER_STUDY = "2.25.79"


def uid(number: int) -> str:
    return f"2.25.100{number}"


async def receive(store: Store, *numbers: int, association: str = "a1") -> None:
    for number in numbers:
        await receive_instance(store, make_arrival(number, association=association))


async def begin(store: Store, step: str = "2.25.900", ae: str = "SCANNER") -> None:
    told = ToldStep(
        StepStatus.IN_PROGRESS,
        PatientIdentity("P-1", "Zhang^San=张^三"),
        (Scheduled(STUDY, RequestIds()),),
    )
    await begin_step(store, sop_instance_uid=step, calling_ae=ae, told=told)


async def end(
    store: Store,
    *numbers: int,
    step: str = "2.25.900",
    status: StepStatus = StepStatus.COMPLETED,
    ae: str = "SCANNER",
) -> None:
    told = ToldStep(
        status,
        PatientIdentity("P-1", ""),
        (Scheduled(STUDY, RequestIds()),),
        images=tuple(map(uid, numbers)),
    )
    await change_step(
        store, sop_instance_uid=step, calling_ae=ae, change=lambda _known: told
    )


async def announce(store: Store, *numbers: int, reference: str = "2.25.800") -> None:
    async with store.db.transaction() as tx:
        await completion.announce_instances(
            tx,
            store,
            source="commitment",
            reference=reference,
            calling_ae="SCANNER",
            sop_instance_uids=list(map(uid, numbers)),
        )


async def look(store: Store) -> tuple[StudyRecord, Verdict | None]:
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
        verdict = await completion.verdict_on(tx, STUDY)
    assert study is not None
    return study, verdict


async def closed_by(store: Store) -> Verdict:
    """Return why the study is closed; it has to be."""
    study, verdict = await look(store)
    assert study.status is not StudyStatus.RECEIVING
    assert verdict is not None
    assert study.incomplete is verdict.incomplete
    assert study.evidence
    return verdict


# -- steps -----------------------------------------------------------------------------


async def test_step_in_progress_holds_the_study_open_and_nobody_ends_it_for_ever(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await receive(store, 1)
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=7199)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)
    assert (verdict.kind, verdict.flaws) == (EvidenceKind.SILENCE, (Flaw.UNFINISHED,))


async def test_every_step_of_a_study_has_to_end(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await begin(store, "2.25.901")
    await receive(store, 1, 2)
    await end(store, 1)
    assert await close_due_studies(store, SETTINGS) == 0
    await end(store, 2, step="2.25.901")
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)
    assert verdict.references == ("2.25.900", "2.25.901")
    assert (verdict.expected, verdict.flaws) == (2, ())


async def test_images_that_a_step_lists_are_waited_for_and_then_named(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await receive(store, 1)
    await end(store, 1, 2, 3)
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=299)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)
    assert verdict.missing == (uid(2), uid(3))
    study, _ = await look(store)
    assert study.evidence == "incomplete: MPPS COMPLETED, 1 of 3 images"
    async with store.db.transaction() as tx:
        (entry,) = await audit.entries(tx, entity=f"study/{STUDY}")
    assert entry.detail["missing"] == f"{uid(2)} {uid(3)}"
    await receive(store, 2, 3, association="a2")  # they come after all
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).missing == ()
    assert (await look(store))[0].generation == 2


async def test_association_that_brought_more_than_the_list_is_heard_out(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await receive(store, 1, 2)
    await end(store, 1)
    assert await close_due_studies(store, SETTINGS) == 0
    await end_association(store, "a1", EndedHow.ABORTED)
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)  # all that the machine named is here
    assert (verdict.kind, verdict.incomplete) == (EvidenceKind.MPPS, False)


async def test_end_without_a_list_counts_as_much_as_the_associations(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await receive(store, 1)
    await end_association(store, "a1", EndedHow.ABORTED)
    await end(store)
    clock.advance(seconds=59)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)
    assert (verdict.kind, verdict.flaws) == (EvidenceKind.MPPS, (Flaw.ABORTED,))
    assert verdict.expected is None


async def test_discontinued_study_is_not_read_until_somebody_goes_on(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await receive(store, 1)
    await end(store, 1, status=StepStatus.DISCONTINUED)
    assert await close_due_studies(store, SETTINGS) == 1
    study, verdict = await look(store)
    assert study.status is StudyStatus.DISCONTINUED
    assert verdict is not None
    assert verdict.discontinued
    assert await store.jobs.claim([ASSESS_STUDY], "test") is None
    await begin(store, "2.25.901")
    await end(store, 1, step="2.25.901")
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await look(store))[0].status is StudyStatus.CLOSED
    assert await store.jobs.claim([ASSESS_STUDY], "test") is not None


async def test_new_images_after_a_discontinuation_are_read(
    store: Store, clock: FrozenClock
) -> None:
    await begin(store)
    await receive(store, 1)
    await end(store, 1, status=StepStatus.DISCONTINUED)
    assert await close_due_studies(store, SETTINGS) == 1
    clock.advance(seconds=1)
    await receive(store, 2, association="a2")
    await end_association(store, "a2", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await look(store))[0].status is StudyStatus.CLOSED


async def test_step_that_tells_more_of_a_closed_study_is_believed(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store, 1)
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    await begin(store)
    await end(store, 1)
    assert await close_due_studies(store, SETTINGS) == 0  # nothing to read anew
    assert (await closed_by(store)).kind is EvidenceKind.MPPS
    assert (await look(store))[0].generation == 1
    await begin(store, "2.25.901")
    await end(store, 2, step="2.25.901")  # one that never came
    assert await close_due_studies(store, SETTINGS) == 0
    assert (await look(store))[0].status is StudyStatus.RECEIVING
    clock.advance(seconds=300)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).missing == (uid(2),)


# -- commitment ------------------------------------------------------------------------


async def test_commitment_list_makes_an_aborted_transfer_whole(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store, 1, 2)
    await announce(store, 1, 2)
    await end_association(store, "a1", EndedHow.ABORTED)
    clock.advance(seconds=4)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)
    assert (verdict.kind, verdict.flaws) == (EvidenceKind.COMMITMENT, ())
    assert (verdict.expected, verdict.references) == (2, ("2.25.800",))


async def test_commitment_image_by_image_proves_nothing_while_one_is_in_no_list(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store, 1, 2)
    await announce(store, 1)
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).kind is EvidenceKind.RELEASE
    await announce(store, 2, reference="2.25.801")
    assert await close_due_studies(store, SETTINGS) == 0
    verdict = await closed_by(store)
    assert (verdict.kind, verdict.expected) == (EvidenceKind.COMMITMENT, 2)


async def test_images_that_a_commitment_list_names_are_waited_for(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store, 1)
    await announce(store, 1, 2)
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=299)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).missing == (uid(2),)


# -- associations ----------------------------------------------------------------------


async def test_abort_is_flagged_until_the_same_machine_comes_back_and_releases(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store, 1)
    await receive(store, 2, association="a2")
    await end_association(store, "a1", EndedHow.ABORTED)
    await end_association(store, "a2", EndedHow.RELEASED)  # was open at the same time
    clock.advance(seconds=59)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).flaws == (Flaw.ABORTED,)
    other = make_arrival(3, association="a3", calling_ae="WORKSTATION")
    await receive_instance(store, other)
    await end_association(store, "a3", EndedHow.RELEASED)
    clock.advance(seconds=60)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).flaws == (Flaw.ABORTED,)  # not its images
    await receive(store, 4, association="a4")
    await end_association(store, "a4", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    assert (await closed_by(store)).flaws == ()


async def test_machine_that_sends_all_again_closes_the_study_as_if_all_were_new(
    store: Store, clock: FrozenClock
) -> None:
    await receive(store, 1, 2)
    await end_association(store, "a1", EndedHow.ABORTED)
    for number in (1, 2):
        again = replace(make_arrival(number, association="a2"))
        assert await receive_instance(store, again) is Received.DUPLICATE
    clock.advance(seconds=100)
    assert await close_due_studies(store, SETTINGS) == 0  # it is still sending
    await end_association(store, "a2", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    verdict = await closed_by(store)
    assert (verdict.kind, verdict.flaws) == (EvidenceKind.RELEASE, ())
    again = make_arrival(1, association="a3")
    assert await receive_instance(store, again) is Received.DUPLICATE
    assert (await look(store))[0].status is StudyStatus.CLOSED
    assert await end_association(store, "a3", EndedHow.RELEASED) == []


async def test_rules_of_one_machine_do_not_hold_for_another(
    store: Store, clock: FrozenClock
) -> None:
    rules = CompletionRules(
        trusted=frozenset({EvidenceKind.COMMITMENT, EvidenceKind.SILENCE}),
        quiet_period_s=20,
    )
    settings = replace(SETTINGS, by_ae={"SCANNER": rules})
    await begin(store)  # not heard: this machine never ends its steps
    await receive(store, 1)
    await end_association(store, "a1", EndedHow.RELEASED)  # releases after each image
    other = make_arrival(
        9, association="a9", calling_ae="OTHER", study_instance_uid=OTHER_STUDY
    )
    await receive_instance(store, other)
    await end_association(store, "a9", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, settings) == 1
    assert (await look(store))[0].status is StudyStatus.RECEIVING
    clock.advance(seconds=15)
    assert await close_due_studies(store, settings) == 1
    assert (await closed_by(store)).kind is EvidenceKind.SILENCE


async def test_site_that_insists_on_steps_gets_a_flag_where_there_are_none(
    store: Store, clock: FrozenClock
) -> None:
    rules = CompletionRules(trusted=frozenset({EvidenceKind.MPPS}), stale_s=7200)
    settings = replace(SETTINGS, by_ae={"SCANNER": rules})
    await receive(store, 1)
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=7199)
    assert await close_due_studies(store, settings) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, settings) == 1
    assert (await closed_by(store)).flaws == (Flaw.UNFINISHED,)


# -- anything, in any order ------------------------------------------------------------


@dataclass
class Room:
    """What a machine has said and done: the test's own memory, not the node's."""

    store: Store
    clock: FrozenClock
    random: random.Random
    with_steps: bool
    with_commitment: bool
    sent: set[int] = field(default_factory=set)
    listed: set[int] = field(default_factory=set)
    announced: set[int] = field(default_factory=set)
    open_associations: dict[str, set[int]] = field(default_factory=dict)
    steps: dict[str, StepStatus] = field(default_factory=dict)
    broken: bool = False
    overlapped: set[str] = field(default_factory=set)
    count: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def habits(self) -> list[Callable[[], Awaitable[None]]]:
        """Return what this machine does, what it does often more than once."""
        acts = [self.send, self.send, self.repeat, *[self.finish] * 4, *[self.wait] * 4]
        if self.with_steps:
            acts += [self.begin, self.end, self.end]
        return [*acts, self.commit] if self.with_commitment else acts

    async def act(self) -> None:
        act = self.random.choice(self.habits)
        self.told.append(act.__name__)
        await act()

    async def send(self) -> None:
        if len(self.sent) < 6:
            number = len(self.sent) + 1
            name = await self._send(number)
            self.open_associations.setdefault(name, set()).add(number)
            self.sent.add(number)

    async def repeat(self) -> None:
        study = await self.status()
        if self.sent and study is StudyStatus.RECEIVING:
            name = await self._send(self.random.choice(sorted(self.sent)))
            self.open_associations.setdefault(name, set())

    async def _send(self, number: int) -> str:
        """Send over an association that is open or a new one; return its name."""
        names = sorted(self.open_associations)
        if not names or self.random.random() < 0.3:
            self.count += 1
            names = [f"a{self.count}"]
        name = self.random.choice(names)
        arrival = make_arrival(number, association=name)
        await receive_instance(self.store, arrival)
        return name

    async def finish(self) -> None:
        if not self.open_associations:
            return
        name = self.random.choice(sorted(self.open_associations))
        del self.open_associations[name]
        how = self.random.choice(
            [EndedHow.RELEASED, EndedHow.RELEASED, EndedHow.ABORTED]
        )
        was_open = await self.status() is StudyStatus.RECEIVING
        await end_association(self.store, name, how)
        if not was_open:
            return
        if how is EndedHow.ABORTED:
            self.broken = True
            self.overlapped |= set(self.open_associations)
        elif name not in self.overlapped:
            self.broken = False

    async def begin(self) -> None:
        if len(self.steps) < 2:
            name = f"2.25.90{len(self.steps)}"
            await begin(self.store, name)
            self.steps[name] = StepStatus.IN_PROGRESS

    async def end(self) -> None:
        running = [n for n, s in self.steps.items() if s is StepStatus.IN_PROGRESS]
        if not running:
            return
        name = self.random.choice(running)
        numbers = self.random.sample(range(1, 8), self.random.randint(0, 4))
        await end(self.store, *numbers, step=name)
        self.steps[name] = StepStatus.COMPLETED
        self.listed |= set(numbers)

    async def commit(self) -> None:
        if self.sent:
            numbers = self.random.sample(sorted(self.sent), len(self.sent))
            self.count += 1
            await announce(self.store, *numbers, reference=f"2.25.80{self.count}")
            self.announced |= set(numbers)

    async def wait(self) -> None:
        self.clock.advance(seconds=self.random.choice([0.5, 5, 60, 300]))

    async def status(self) -> StudyStatus | None:
        async with self.store.db.transaction() as tx:
            study = await studies.study(tx, STUDY)
        return None if study is None else study.status

    @property
    def held_open(self) -> bool:
        """Tell whether something says that more is to come."""
        if StepStatus.IN_PROGRESS in self.steps.values():
            return True
        beyond = any(sent - self.listed for sent in self.open_associations.values())
        proven = self.listed and self.listed <= self.sent and not beyond
        return bool(self.open_associations) and not proven

    def may_be_missing(self) -> bool:
        if self.listed:
            return not self.listed <= self.sent
        if self.steps:  # ended, and listed nothing
            return self.broken
        if self.announced >= self.sent:
            return False
        return self.broken


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_an_open_study_stays_open_and_a_closed_one_says_why(
    seed: int, store: Store, clock: FrozenClock
) -> None:
    room = Room(store, clock, random.Random(seed), seed % 2 == 0, seed % 3 == 0)
    generations: list[int] = []
    for _ in range(40):
        await room.act()
        before = await room.status()
        closed = await close_due_studies(store, SETTINGS)
        if closed:
            assert not room.held_open, room.told
            assert before is not None
        if room.sent and await room.status() is not StudyStatus.RECEIVING:
            verdict = await closed_by(store)
            if not room.held_open:
                assert verdict.incomplete is room.may_be_missing(), room.told
            generations.append((await look(store))[0].generation)
    assert generations == sorted(generations)
    for name in sorted(room.open_associations):
        await end_association(store, name, EndedHow.RELEASED)
    clock.advance(seconds=7200)
    await close_due_studies(store, SETTINGS)
    if room.sent:
        await closed_by(store)
