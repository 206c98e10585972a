"""How far the algorithm's draft and the signed report agree, and when that changes.

Pure arithmetic on counted pairs (AI's value, doctor's value). What somebody did not
assess is counted apart and is neither agreement nor disagreement. The doctor has
seen the draft before she signs: every figure here is an upper bound of what two
independent readers would reach (verification bias).

Kappa and its standard error: Cohen 1960, 1968; Fleiss, Cohen & Everitt 1969.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, lgamma, sqrt

from node.domain import lexicon
from node.domain.finding import Findings, Lesion
from node.domain.lexicon import FieldKey

OVERALL_CATEGORY = "overall_category"
LESION_CATEGORY = "assessment_category"
LESION = "lesion"
PRESENT = "present"
NONE_SEEN = "none_seen"  # calcifications: assessed, there are none

FIELDS: tuple[str, ...] = (
    OVERALL_CATEGORY,
    LESION_CATEGORY,
    LESION,
    *(key.value for key in FieldKey),
)
# 0 (incomplete) and 6 (proven by biopsy) are no steps of suspicion: they count as
# agreement or disagreement, but have no distance to the others.
SUSPICION_SCALE: tuple[str, ...] = tuple(
    key
    for key, category in sorted(lexicon.CATEGORIES.items(), key=lambda row: row[1].rank)
    if key not in {"0", "6"}
)
LEAST_PAIRS = 20  # fewer say nothing about kappa
LEAST_TRIALS = 30  # fewer, on either side, are not tested for drift
_Z = 1.959963984540054

Pair = tuple[str | None, str | None]
Cells = Mapping[Pair, int]


class FieldKind(StrEnum):
    """What kind of values a field takes; decides how agreement is measured."""

    CATEGORY = "category"  # ordered by suspicion
    SINGLE = "single"
    MULTIPLE = "multiple"  # several terms at once
    LESION = "lesion"  # whether it is there at all


def kind_of(field: str) -> FieldKind:
    """Return the kind of a field of `FIELDS`."""
    if field in {OVERALL_CATEGORY, LESION_CATEGORY}:
        return FieldKind.CATEGORY
    if field == LESION:
        return FieldKind.LESION
    multiple = lexicon.FIELDS[FieldKey(field)].multiple
    return FieldKind.MULTIPLE if multiple else FieldKind.SINGLE


def labels_of(field: str) -> tuple[str, ...]:
    """Return the values that a field can take, terms for a multiple one."""
    match kind_of(field):
        case FieldKind.CATEGORY:
            ranked = sorted(lexicon.CATEGORIES.values(), key=lambda c: c.rank)
            return tuple(category.key for category in ranked)
        case FieldKind.LESION:
            return (PRESENT,)
        case _:
            return tuple(term.key for term in lexicon.FIELDS[FieldKey(field)].terms)


# --- one report ---------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One field of one lesion, or of the examination (lesion 0), in both readings.

    A value is a key of the lexicon, several terms joined by `+`; None = not
    assessed. At most one comparison of a field per report is `leading`: trials
    of the drift test must not depend on each other, lesions of a woman do.
    """

    lesion: int
    field: str
    ai: str | None
    signed: str | None
    leading: bool = False


def compare(drafted: Findings, signed: Findings) -> tuple[Comparison, ...]:
    """Return what the draft and the signed report say, side by side.

    Lesions are the same when their tracking UID is. A lesion that the doctor
    withdrew, or that the algorithm missed, counts in field `lesion` alone: there
    is nothing with which to compare its descriptors.
    """
    rows = [Comparison(0, OVERALL_CATEGORY, drafted.category, signed.category, True)]
    of_doctor = {lesion.tracking_uid: lesion for lesion in signed.lesions}
    described = False
    for number, lesion in enumerate(drafted.lesions, start=1):
        other = of_doctor.pop(lesion.tracking_uid, None)
        seen = None if other is None else PRESENT
        rows.append(Comparison(number, LESION, PRESENT, seen, number == 1))
        if other is not None:
            rows += _described(number, lesion, other, leading=not described)
            described = True
    for number in range(1, len(of_doctor) + 1):
        place = len(drafted.lesions) + number
        rows.append(Comparison(place, LESION, None, PRESENT, place == 1))
    return tuple(rows)


def _described(
    number: int, ai: Lesion, signed: Lesion, *, leading: bool
) -> Iterable[Comparison]:
    yield Comparison(number, LESION_CATEGORY, ai.category, signed.category, leading)
    for key in FieldKey:
        yield Comparison(
            number,
            key.value,
            _value(key, ai.descriptors.get(key)),
            _value(key, signed.descriptors.get(key)),
            leading,
        )


def _value(key: FieldKey, terms: tuple[str, ...] | None) -> str | None:
    if terms is None:
        return None
    if not terms:
        return NONE_SEEN
    return "+".join(t.key for t in lexicon.FIELDS[key].terms if t.key in terms)


def terms_of(value: str) -> frozenset[str]:
    """Return the terms of a value of a multiple field; none for `NONE_SEEN`."""
    return frozenset() if value == NONE_SEEN else frozenset(value.split("+"))


# --- many reports -------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TermAgreement:
    """One term of a multiple field: said by both, by one of them, by neither."""

    term: str
    both: int
    ai_only: int
    signed_only: int
    neither: int
    kappa: Estimate | None


@dataclass(frozen=True)
class FieldAgreement:
    """How far both readings agree in one field.

    `compared` pairs were assessed by both (for `lesion`: all that either saw).
    `kappa` is None where fewer than `LEAST_PAIRS` could be used, or where both
    used one value only, so that nothing but chance can be told; for categories
    it is weighted by the square of the distance on `SUSPICION_SCALE`, for a
    multiple field the whole set of terms must be the same.
    """

    field: str
    compared: int
    agreed: int
    agreement: Estimate | None
    kappa: Estimate | None
    not_assessed_by_ai: int
    added_by_doctor: int
    removed_by_doctor: int
    off_scale: int
    terms: tuple[TermAgreement, ...] = ()

    @property
    def few(self) -> bool:
        """Tell whether there are too few pairs to judge."""
        return self.compared < LEAST_PAIRS


def summarise(field: str, cells: Cells) -> FieldAgreement:
    """Return the agreement of one field from its counted pairs."""
    kind = kind_of(field)
    both = {(a, s): n for (a, s), n in cells.items() if a and s and n}
    trials = count_trials(field, cells)
    added = sum(n for (a, s), n in cells.items() if a is None and s is not None)
    removed = sum(n for (a, s), n in cells.items() if a is not None and s is None)
    silent = sum(n for (a, _), n in cells.items() if a is None)
    scale = SUSPICION_SCALE if kind is FieldKind.CATEGORY else None
    off = 0
    if scale:
        off = sum(n for pair, n in both.items() if not set(pair) <= set(scale))
    return FieldAgreement(
        field=field,
        compared=trials.total,
        agreed=trials.agreed,
        agreement=wilson(trials.agreed, trials.total),
        # Nobody counts the lesions that neither saw: there is no chance to correct.
        kappa=None if kind is FieldKind.LESION else kappa(both, scale),
        not_assessed_by_ai=0 if kind is FieldKind.LESION else silent,
        added_by_doctor=added,
        removed_by_doctor=removed,
        off_scale=off,
        terms=_terms(field, both) if kind is FieldKind.MULTIPLE else (),
    )


def _terms(
    field: str, both: Mapping[tuple[str, str], int]
) -> tuple[TermAgreement, ...]:
    rows = []
    for term in labels_of(field):
        cells: Counter[tuple[str, str]] = Counter()
        for (ai, signed), n in both.items():
            said = (term in terms_of(ai), term in terms_of(signed))
            cells["yn"[not said[0]], "yn"[not said[1]]] += n
        rows.append(
            TermAgreement(
                term,
                both=cells["y", "y"],
                ai_only=cells["y", "n"],
                signed_only=cells["n", "y"],
                neither=cells["n", "n"],
                kappa=kappa(cells),
            )
        )
    return tuple(rows)


def wilson(agreed: int, total: int) -> Estimate | None:
    """Return a share with its Wilson score interval, None of nothing."""
    if total == 0:
        return None
    share = agreed / total
    scale = 1 + _Z**2 / total
    middle = (share + _Z**2 / (2 * total)) / scale
    half = _Z * sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / scale
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def kappa(
    cells: Mapping[tuple[str, str], int], scale: Sequence[str] | None = None
) -> Estimate | None:
    """Return Cohen's kappa, on `scale` weighted by squared distance.

    Pairs off the scale are left out. None with fewer than `LEAST_PAIRS`, and
    where chance alone agrees always. The interval takes pairs as independent,
    which several lesions of one woman are not quite: it is a little too narrow.
    """
    labels = list(scale) if scale else sorted({v for pair in cells for v in pair})
    place = {label: i for i, label in enumerate(labels)}
    used = {
        (place[a], place[s]): n
        for (a, s), n in cells.items()
        if n and a in place and s in place
    }
    total = sum(used.values())
    if total < LEAST_PAIRS:
        return None
    steps = len(labels) - 1

    def weight(i: int, j: int) -> float:
        if scale is None:
            return float(i == j)
        return 1.0 - ((i - j) / steps) ** 2

    share = {pair: n / total for pair, n in used.items()}
    rows, columns = [0.0] * len(labels), [0.0] * len(labels)
    for (i, j), p in share.items():
        rows[i] += p
        columns[j] += p
    every = range(len(labels))
    observed = sum(p * weight(i, j) for (i, j), p in share.items())
    row_mean = [sum(columns[j] * weight(i, j) for j in every) for i in every]
    column_mean = [sum(rows[i] * weight(i, j) for i in every) for j in every]
    chance = sum(rows[i] * row_mean[i] for i in every)
    if 1 - chance < 1e-9:
        return None
    value = (observed - chance) / (1 - chance)
    spread = sum(
        p * (weight(i, j) - (row_mean[i] + column_mean[j]) * (1 - value)) ** 2
        for (i, j), p in share.items()
    )
    variance = spread - (value - chance * (1 - value)) ** 2
    error = sqrt(max(0.0, variance) / total) / (1 - chance)
    low, high = value - _Z * error, value + _Z * error
    if observed > 1 - 1e-12:
        # All agree: the formula says that this is certain, Wilson says how far.
        surely = wilson(total, total)
        low = ((surely.low if surely else 0.0) - chance) / (1 - chance)
    return Estimate(value, max(-1.0, low), min(1.0, high))


# --- has it changed? ------------------------------------------------------------


@dataclass(frozen=True)
class Trials:
    """In how many reports a field was compared, and in how many it agreed."""

    agreed: int
    total: int

    @property
    def share(self) -> float | None:
        """Return the share that agreed, None of nothing."""
        return self.agreed / self.total if self.total else None


def count_trials(field: str, cells: Cells) -> Trials:
    """Return how often a field was compared and agreed.

    A lesion that only one of them saw is a disagreement; a descriptor that only
    one of them assessed is no trial.
    """
    alone = kind_of(field) is FieldKind.LESION
    tried = {p: n for p, n in cells.items() if alone or None not in p}
    return Trials(
        agreed=sum(n for (a, s), n in tried.items() if a == s),
        total=sum(tried.values()),
    )


class Verdict(StrEnum):
    """What can be said of one field in the newest window."""

    STEADY = "steady"
    DRIFTED = "drifted"
    TOO_FEW = "too_few"


@dataclass(frozen=True)
class FieldDrift:
    """One field in the newest complete window against all reports before it.

    `p_value` is two-sided, before it is compared with the share of alpha.
    """

    field: str
    window: Trials
    reference: Trials
    p_value: float | None
    verdict: Verdict


def judge_drift(
    trials: Mapping[str, tuple[Trials, Trials]], alpha: float
) -> tuple[FieldDrift, ...]:
    """Judge every field of (window, reference); Fisher's exact test, two-sided.

    The chance that a window in which nothing changed raises an alarm in any
    field is at most `alpha` (Bonferroni over the fields that can be tested).
    Fields with fewer than `LEAST_TRIALS` on either side are not judged.
    """
    p_values = {
        field: fisher(window, reference)
        for field, (window, reference) in trials.items()
        if min(window.total, reference.total) >= LEAST_TRIALS
    }
    limit = alpha / max(1, len(p_values))
    rows = []
    for field, (window, reference) in trials.items():
        p_value = p_values.get(field)
        if p_value is None:
            verdict = Verdict.TOO_FEW
        else:
            verdict = Verdict.DRIFTED if p_value < limit else Verdict.STEADY
        rows.append(FieldDrift(field, window, reference, p_value, verdict))
    return tuple(rows)


def fisher(one: Trials, other: Trials) -> float:
    """Return the two-sided p value that two shares are the same (Fisher's exact test).

    Exact because windows are small and agreement is often near 100 %, where a
    z test claims more than it knows.
    """
    agreed, total = one.agreed + other.agreed, one.total + other.total

    def log_chance(k: int) -> float:
        return (
            _log_choose(one.total, k)
            + _log_choose(other.total, agreed - k)
            - _log_choose(total, agreed)
        )

    seen = log_chance(one.agreed)
    possible = range(max(0, agreed - other.total), min(one.total, agreed) + 1)
    # Tables as likely as ours count in spite of rounding.
    rarer = (x for k in possible if (x := log_chance(k)) <= seen + 1e-7)
    return min(1.0, sum(exp(x) for x in rarer))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
