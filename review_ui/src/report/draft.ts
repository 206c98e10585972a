// A doctor's unsaved work on a report, as plain values and pure functions.
import type { FieldState, Lesion, Report, Value } from '../api/types';
import { sameValue } from '../api/types';
import { category, type LesionKey, LESION_KEYS, lexiconField, worstCategory } from '../lexicon';

export interface Draft {
  /** By Observation id; null = not assessed. */
  values: Readonly<Record<string, Value>>;
  followup: Value;
  adviceText: string;
  impression: string;
  patientSummary: string;
}

export interface Said {
  state: FieldState;
  key: LesionKey;
  /** null: the overall assessment. */
  lesion: Lesion | null;
}

/** Everything in a report that has a coded value: each lesion's fields, then the overall category. */
export function saysWhat(report: Report): Said[] {
  const ofLesions = report.lesions.flatMap((lesion) =>
    LESION_KEYS.map((key) => ({ state: lesion.fields[key], key, lesion })),
  );
  return [...ofLesions, { state: report.category, key: 'assessment_category', lesion: null }];
}

export function startDraft(report: Report): Draft {
  const values: Record<string, Value> = {};
  for (const { state } of saysWhat(report)) values[state.id] = state.value;
  return {
    values,
    followup: report.followup.value,
    adviceText: report.adviceText,
    impression: report.impression,
    patientSummary: report.patientSummary,
  };
}

export function valueOf(draft: Draft, state: FieldState): Value {
  return draft.values[state.id] ?? null;
}

export function overallCategory(report: Report, draft: Draft): string | null {
  return valueOf(draft, report.category)?.[0] ?? null;
}

/** The category that decides what happens to the patient: the worst anywhere in the report. */
export function decidingCategory(report: Report, draft: Draft): string | null {
  const ofLesions = report.lesions.map((lesion) => valueOf(draft, lesion.fields.assessment_category)?.[0] ?? null);
  return worstCategory([overallCategory(report, draft), ...ofLesions]);
}

function worstOfLesions(report: Report, draft: Draft): string | null {
  return worstCategory(
    report.lesions.map((lesion) => valueOf(draft, lesion.fields.assessment_category)?.[0] ?? null),
  );
}

/**
 * Set one value. While the overall category is the worst of the lesions and the
 * follow-up the usual one for it, both go along; what the doctor chose
 * differently stays hers.
 */
export function setValue(report: Report, draft: Draft, state: FieldState, value: Value): Draft {
  const next = { ...draft, values: { ...draft.values, [state.id]: value } };
  const isLesion = report.lesions.some((lesion) => lesion.fields.assessment_category.id === state.id);
  const before = overallCategory(report, draft);
  if (isLesion && before === worstOfLesions(report, draft)) {
    const worst = worstOfLesions(report, next);
    next.values = { ...next.values, [report.category.id]: worst === null ? null : [worst] };
  }
  return withFollowup(draft, next, before, overallCategory(report, next));
}

function withFollowup(draft: Draft, next: Draft, before: string | null, after: string | null): Draft {
  if (before === after || after === null) return next;
  const usual = before === null ? null : [category(before).followup];
  const untouched = draft.followup === null || sameValue(draft.followup, usual);
  return untouched ? { ...next, followup: [category(after).followup] } : next;
}

/** What a field becomes when one of its terms is chosen; choosing again takes it back. */
export function choose(key: LesionKey, current: Value, term: string): Value {
  if (key === 'assessment_category' || !lexiconField(key).multiple) {
    return current?.[0] === term ? null : [term];
  }
  const had = current ?? [];
  const next = had.includes(term) ? had.filter((other) => other !== term) : [...had, term];
  // In the order of the lexicon, so that the same choice is the same value.
  const order = lexiconField(key).terms.map((row) => row.key);
  return next.length ? next.toSorted((a, b) => order.indexOf(a) - order.indexOf(b)) : null;
}

/** Calcifications only: assessed and none seen. */
export function chooseNone(current: Value): Value {
  return current !== null && current.length === 0 ? null : [];
}

export interface Change extends Said {
  from: Value;
  to: Value;
}

/** Where the doctor differs from the AI. */
export function differences(report: Report, draft: Draft): Change[] {
  return saysWhat(report)
    .map((said) => ({ ...said, from: said.state.ai, to: valueOf(draft, said.state) }))
    .filter((change) => !sameValue(change.from, change.to));
}

/** What would be written: where the draft differs from the saved version. */
export function unsaved(report: Report, draft: Draft): Change[] {
  return saysWhat(report)
    .map((said) => ({ ...said, from: said.state.value, to: valueOf(draft, said.state) }))
    .filter((change) => !sameValue(change.from, change.to));
}

export function wordsChanged(report: Report, draft: Draft): boolean {
  return (
    !sameValue(draft.followup, report.followup.value) ||
    draft.adviceText !== report.adviceText ||
    draft.impression !== report.impression ||
    draft.patientSummary !== report.patientSummary
  );
}

export function isDirty(report: Report, draft: Draft): boolean {
  return unsaved(report, draft).length > 0 || wordsChanged(report, draft);
}

/** Whether the change only adds words to what was signed (status `appended`). */
export function onlyAdds(report: Report, draft: Draft): boolean {
  return (
    unsaved(report, draft).length === 0 &&
    sameValue(draft.followup, report.followup.value) &&
    adds(report.impression, draft.impression) &&
    adds(report.adviceText, draft.adviceText) &&
    adds(report.patientSummary, draft.patientSummary)
  );
}

/** Added words stand in a sentence of their own: 良性 is another finding than 良性不能排除恶性. */
function adds(before: string, after: string): boolean {
  if (!before.trim()) return true;
  if (!after.startsWith(before)) return false;
  const added = after.slice(before.length);
  const ended = /[\n。；！？;!?]\s*$|\.\s+$/.test(before) || (before.endsWith('.') && /^\s/.test(added));
  return ended || /^(?:\s*$|[ \t]*(?:[\n。；！？;!?]|\.(?:\s|$)))/.test(added);
}

/** Whether a newer version says what this one said: its paper came, nobody has edited. */
export function saysTheSame(base: Report, newer: Report): boolean {
  const told = startDraft(base);
  return (
    newer.status === base.status &&
    unsaved(newer, told).length === 0 &&
    !wordsChanged(newer, told) &&
    saysWhat(newer).length === saysWhat(base).length &&
    JSON.stringify([newer.late, newer.completeness]) === JSON.stringify([base.late, base.completeness])
  );
}

export interface Rebased {
  draft: Draft;
  /** Values that somebody else changed too; the doctor's own stand in the draft. */
  clashes: Change[];
  /** The same for the advice and the texts. */
  wordsClash: boolean;
}

/** Carry the doctor's own changes over to the version that somebody else has saved meanwhile. */
export function rebase(base: Report, mine: Draft, theirs: Report): Rebased {
  const draft = startDraft(theirs);
  const values = { ...draft.values };
  const clashes: Change[] = [];
  for (const said of saysWhat(theirs)) {
    const before = saysWhat(base).find((row) => row.state.id === said.state.id);
    const own = mine.values[said.state.id] ?? null;
    if (!before || sameValue(own, before.state.value)) continue;
    values[said.state.id] = own;
    const changedToo = !sameValue(said.state.value, before.state.value);
    if (changedToo && !sameValue(own, said.state.value)) {
      clashes.push({ ...said, from: said.state.value, to: own });
    }
  }
  const words = rebaseWords(base, mine, theirs);
  return { draft: { ...draft, ...words.words, values }, clashes, wordsClash: words.clash };
}

function rebaseWords(base: Report, mine: Draft, theirs: Report) {
  let clash = false;
  const keep = <T>(before: T, own: T, other: T, same: (a: T, b: T) => boolean): T => {
    if (same(own, before)) return other;
    if (!same(other, before) && !same(other, own)) clash = true;
    return own;
  };
  const equal = (a: string, b: string) => a === b;
  const words = {
    followup: keep(base.followup.value, mine.followup, theirs.followup.value, sameValue),
    adviceText: keep(base.adviceText, mine.adviceText, theirs.adviceText, equal),
    impression: keep(base.impression, mine.impression, theirs.impression, equal),
    patientSummary: keep(base.patientSummary, mine.patientSummary, theirs.patientSummary, equal),
  };
  return { words, clash };
}
