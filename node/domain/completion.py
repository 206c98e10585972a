"""When a study counts as complete: what speaks for it, from the strongest word down.

A modality says it best itself: a performed procedure step that lists the images it made
(PS3.4 F.7), then the list of a storage commitment request (PS3.4 J.3), then an orderly
release of its associations (PS3.8 7.2). Silence says least. Nothing weaker is heard
while something stronger contradicts it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar


class EvidenceKind(StrEnum):
    """What closed a study, the strongest first."""

    MPPS = "mpps"
    COMMITMENT = "commitment"
    RELEASE = "release"
    SILENCE = "silence"


STRENGTH = tuple(EvidenceKind)


class StepStatus(StrEnum):
    """Performed Procedure Step Status (0040,0252)."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class Flaw(StrEnum):
    """Why a closed study is not known to be whole."""

    MISSING = "missing"  # the modality named images that never came
    ABORTED = "aborted"  # an association broke off and nobody came back
    LOST = "lost"  # receiving was interrupted and nobody came back
    UNFINISHED = "unfinished"  # a step was never ended, an association's end not seen


@dataclass(frozen=True)
class CompletionRules:
    """What counts as the end of a study of one modality; times in seconds.

    `trusted` names the evidence that is heard at all. `quiet_after_release_s` is
    how much silence must follow strong evidence that has no complete list,
    `quiet_period_s` how much silence counts by itself, `missing_wait_s` how long
    images are waited for that were named and did not come. `stale_s` ends the
    wait for a step that nobody ends, or an association whose end nobody saw.
    """

    trusted: frozenset[EvidenceKind] = frozenset(EvidenceKind)
    quiet_period_s: float = 60.0
    quiet_after_release_s: float = 5.0
    missing_wait_s: float = 300.0
    stale_s: float = 7200.0


@dataclass(frozen=True)
class StepFacts:
    """A performed procedure step of the study; `images` counts what it lists."""

    sop_instance_uid: str
    calling_ae: str
    status: StepStatus
    changed_at: datetime
    images: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Announcement:
    """The list of one storage commitment request that names images of the study."""

    reference: str
    calling_ae: str
    at: datetime
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokenTransfer:
    """An association that broke off, and whose sender has not made it good since."""

    calling_ae: str
    how: Flaw


@dataclass(frozen=True)
class StudyFacts:
    """All that is known about the end of a study.

    `feeding` tells that an association which brought some of it is open, and
    `feeding_beyond_lists` that such a one brought what no step lists. `stale`
    counts those whose end nobody saw. `announced` counts the images that the lists
    of `announcements` name, `unannounced` those here that none of them names, and
    `after_discontinued` such as came after the last step ended and that no step
    lists.
    """

    study_instance_uid: str
    images: int
    senders: tuple[str, ...]
    last_instance_at: datetime
    ended_at: datetime | None = None
    released: bool = False
    feeding: bool = False
    feeding_beyond_lists: bool = False
    stale: int = 0
    broken: tuple[BrokenTransfer, ...] = ()
    steps: tuple[StepFacts, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    announced: int = 0
    unannounced: int = 0
    after_discontinued: int = 0


@dataclass(frozen=True)
class Verdict:
    """That a study may be closed from `due_at` on, why, and whether it is whole.

    `references` are the SOP Instance UIDs of steps or the Transaction UIDs of
    commitment requests; `expected` counts the images that they name, None when
    nobody named any.
    """

    kind: EvidenceKind
    due_at: datetime
    images: int
    expected: int | None = None
    missing: tuple[str, ...] = ()
    flaws: tuple[Flaw, ...] = ()
    references: tuple[str, ...] = ()
    quiet_s: float = 0.0
    discontinued: bool = False

    @property
    def incomplete(self) -> bool:
        """Tell whether images may be missing."""
        return bool(self.flaws)


RulesOf = Callable[[str], CompletionRules]
_Told = TypeVar("_Told", StepFacts, Announcement)
_Value = TypeVar("_Value", str, Flaw)


def weigh(facts: StudyFacts, rules_of: RulesOf, now: datetime) -> Verdict | None:
    """Return what may be concluded; None while something says that more is to come.

    A verdict may lie in the future: it holds only if nothing happens until then.
    """
    return _Weighing(facts, rules_of, now).verdict()


class _Weighing:
    """One study on the scales."""

    def __init__(self, facts: StudyFacts, rules_of: RulesOf, now: datetime) -> None:
        self._facts = facts
        self._now = now
        self._rules_of = rules_of
        self._rules = [rules_of(ae) for ae in facts.senders] or [rules_of("")]
        self._stale = timedelta(seconds=max(r.stale_s for r in self._rules))
        self._steps = self._trusted(EvidenceKind.MPPS, facts.steps)
        self._lists = self._trusted(EvidenceKind.COMMITMENT, facts.announcements)
        self._unended = [s for s in self._steps if s.status is StepStatus.IN_PROGRESS]
        self._ended = [s for s in self._steps if s not in self._unended]

    def verdict(self) -> Verdict | None:
        facts = self._facts
        if any(self._is_live(step) for step in self._unended):
            return None
        if self._ended and not self._unended and self._listed_and_here():
            return self._by_steps(self._now, quiet_s=0.0)
        if facts.feeding:
            return None
        if self._ended and not self._unended:
            return self._by_steps_waiting()
        return self._by_lists() or self._by_associations()

    def _is_live(self, step: StepFacts) -> bool:
        last = max(step.changed_at, self._facts.last_instance_at)
        return self._now < last + self._stale

    def _listed_and_here(self) -> bool:
        """Tell whether all that the steps list is here, and nothing contradicts."""
        facts = self._facts
        listed = sum(step.images for step in self._ended)
        missing = any(step.missing for step in self._ended)
        beyond = facts.feeding and facts.feeding_beyond_lists
        return listed > 0 and not missing and not beyond

    def _by_steps(self, due_at: datetime, *, quiet_s: float) -> Verdict:
        steps = self._ended
        missing = _distinct(uid for s in steps for uid in s.missing)
        listed = sum(step.images for step in steps)
        flaws = [Flaw.MISSING] if missing else []
        if not listed:  # the end was told, but not of how many: associations decide
            flaws = self._transfer_flaws()
        discontinued = not self._facts.after_discontinued and all(
            step.status is StepStatus.DISCONTINUED for step in steps
        )
        return Verdict(
            EvidenceKind.MPPS,
            due_at,
            self._facts.images,
            expected=listed or None,
            missing=missing,
            flaws=tuple(flaws),
            references=tuple(step.sop_instance_uid for step in steps),
            quiet_s=quiet_s,
            discontinued=discontinued,
        )

    def _by_steps_waiting(self) -> Verdict:
        missing = any(step.missing for step in self._ended)
        broken = not sum(s.images for s in self._ended) and self._transfer_flaws()
        if missing:
            quiet_s = self._longest(lambda r: r.missing_wait_s)
        elif broken:
            quiet_s = self._longest(lambda r: r.quiet_period_s)
        else:
            quiet_s = self._longest(lambda r: r.quiet_after_release_s)
        return self._by_steps(self._quiet_since(quiet_s), quiet_s=quiet_s)

    def _by_lists(self) -> Verdict | None:
        """Return what commitment requests prove: that all is here, or what is not."""
        if not self._lists:
            return None
        missing = _distinct(uid for row in self._lists for uid in row.missing)
        if not missing and self._facts.unannounced:
            return None
        quiet_s = self._longest(
            lambda r: r.missing_wait_s if missing else r.quiet_after_release_s
        )
        return Verdict(
            EvidenceKind.COMMITMENT,
            self._quiet_since(quiet_s),
            self._facts.images,
            expected=self._facts.announced,
            missing=missing,
            flaws=(Flaw.MISSING,) if missing else (),
            references=tuple(row.reference for row in self._lists),
            quiet_s=quiet_s,
        )

    def _by_associations(self) -> Verdict:
        facts, flaws = self._facts, self._transfer_flaws()
        if self._unended:
            flaws.append(Flaw.UNFINISHED)
        clean = facts.released and not flaws and facts.ended_at is not None
        if clean and self._all_trust(EvidenceKind.RELEASE):
            quiet_s = self._longest(lambda r: r.quiet_after_release_s)
            kind = EvidenceKind.RELEASE
        else:
            kind = EvidenceKind.SILENCE
            trusted = self._all_trust(EvidenceKind.SILENCE)
            quiet_s = self._longest(
                lambda r: r.quiet_period_s if trusted else r.stale_s
            )
            if not trusted:  # the evidence that the site insists on never came
                flaws.append(Flaw.UNFINISHED)
        return Verdict(
            kind,
            self._quiet_since(quiet_s),
            facts.images,
            flaws=_distinct(flaws),
            quiet_s=quiet_s,
        )

    def _transfer_flaws(self) -> list[Flaw]:
        flaws = [transfer.how for transfer in self._facts.broken]
        return [*flaws, Flaw.UNFINISHED] if self._facts.stale else flaws

    def _quiet_since(self, quiet_s: float) -> datetime:
        """Return when `quiet_s` of silence have followed everything that happened."""
        facts = self._facts
        moments = [
            facts.last_instance_at,
            *([facts.ended_at] if facts.ended_at is not None else []),
            *(step.changed_at for step in self._ended),
            *(row.at for row in self._lists),
        ]
        return max(moments) + timedelta(seconds=quiet_s)

    def _longest(self, seconds: Callable[[CompletionRules], float]) -> float:
        return max(seconds(rules) for rules in self._rules)

    def _all_trust(self, kind: EvidenceKind) -> bool:
        return all(kind in rules.trusted for rules in self._rules)

    def _trusted(self, kind: EvidenceKind, told: Sequence[_Told]) -> list[_Told]:
        """Return what is heard: its teller and every sender have to be trusted in it.

        The title of a worklist or commitment client often is another one than
        that of the storage client of the same machine.
        """
        if not self._all_trust(kind):
            return []
        return [row for row in told if kind in self._rules_of(row.calling_ae).trusted]


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return what is kept of a verdict: UIDs and figures, nothing of a patient."""
    return {
        "kind": verdict.kind.value,
        "due_at": verdict.due_at.isoformat(),
        "images": verdict.images,
        "expected": verdict.expected,
        "missing": list(verdict.missing),
        "flaws": [flaw.value for flaw in verdict.flaws],
        "references": list(verdict.references),
        "quiet_s": verdict.quiet_s,
        "discontinued": verdict.discontinued,
    }


def verdict_from_json(value: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `verdict_to_json` wrote."""
    return Verdict(
        EvidenceKind(value["kind"]),
        datetime.fromisoformat(value["due_at"]),
        value["images"],
        expected=value["expected"],
        missing=tuple(value["missing"]),
        flaws=tuple(map(Flaw, value["flaws"])),
        references=tuple(value["references"]),
        quiet_s=value["quiet_s"],
        discontinued=value["discontinued"],
    )


@dataclass(frozen=True)
class Words:
    """The same in the two languages of the department."""

    zh: str
    en: str


_FLAW_WORDS = {
    Flaw.ABORTED: Words("传输中断", "association aborted"),
    Flaw.LOST: Words("接收中断", "receiving was interrupted"),
    Flaw.UNFINISHED: Words("设备未报告结束", "the machine never reported the end"),
}
_KIND_WORDS = {
    EvidenceKind.MPPS: Words("MPPS 已完成", "MPPS COMPLETED"),
    EvidenceKind.COMMITMENT: Words("存储确认清单", "storage commitment list"),
    EvidenceKind.RELEASE: Words("传输正常结束", "associations released"),
    EvidenceKind.SILENCE: Words("静默超时", "silence"),
}


def words_of(verdict: Verdict) -> Words:
    """Return one line for people: whether the study is whole, and what says so."""
    kind, count = _KIND_WORDS[verdict.kind], _count(verdict)
    if verdict.discontinued:
        return Words(
            f"检查已中止（MPPS DISCONTINUED），{count.zh}",
            f"discontinued: MPPS DISCONTINUED, {count.en}",
        )
    why = [_FLAW_WORDS[flaw] for flaw in verdict.flaws if flaw in _FLAW_WORDS]
    if verdict.incomplete:
        told = why or [kind]
        zh, en = "、".join(w.zh for w in told), ", ".join(w.en for w in told)
        return Words(f"不完整：{zh}，{count.zh}", f"incomplete: {en}, {count.en}")
    pause = f"{verdict.quiet_s:g} s"
    if verdict.kind in (EvidenceKind.RELEASE, EvidenceKind.SILENCE):
        return Words(
            f"完整：{kind.zh}，静默 {pause}，{count.zh}",
            f"complete: {kind.en}, {pause} of silence, {count.en}",
        )
    return Words(f"完整：{kind.zh}，{count.zh}", f"complete: {kind.en}, {count.en}")


def _count(verdict: Verdict) -> Words:
    here = verdict.images
    if verdict.expected is None:
        return Words(f"收到 {here} 幅图像", f"{here} images")
    came = verdict.expected - len(verdict.missing)
    return Words(
        f"收到 {came}/{verdict.expected} 幅图像",
        f"{came} of {verdict.expected} images",
    )


def stronger(kind: EvidenceKind, than: EvidenceKind | None) -> bool:
    """Tell whether `kind` proves more than what was known."""
    return than is None or STRENGTH.index(kind) < STRENGTH.index(than)


def _distinct(values: Iterable[_Value]) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(values))
