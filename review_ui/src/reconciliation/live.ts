// What the page shows: the list, and the study that is compared now.
import { signal } from '@preact/signals';
import { ApiError } from '../api/http';
import { readSaid, type Said } from '../api/merging';
import {
  act,
  type Act,
  type Comparison,
  findStudies,
  type Line,
  readComparison,
  readUnreconciled,
  type Unreconciled,
} from '../api/reconciliation';
import { explain, say } from '../app/state';
import { t } from '../i18n';

export const list = signal<Unreconciled | null>(null);
/** What a search has found; null: the list is shown. */
export const found = signal<Line[] | null>(null);
/** What people have said of two rows. */
export const said = signal<readonly Said[]>([]);
export const chosen = signal<string | null>(null);
export const shown = signal<Comparison | null>(null);
export const trouble = signal<string | null>(null);

export async function load(): Promise<void> {
  try {
    [list.value, said.value] = await Promise.all([readUnreconciled(''), readSaid()]);
    trouble.value = null;
  } catch (error) {
    trouble.value = explain(error);
  }
}

export async function loadMore(): Promise<void> {
  const known = list.value;
  if (known === null || known.more === '') return;
  try {
    const next = await readUnreconciled(known.more);
    list.value = { ...next, lines: [...known.lines, ...next.lines], pairs: known.pairs };
  } catch (error) {
    trouble.value = explain(error);
  }
}

/** Look up studies that are no longer on the list; without a number show the list. */
export async function find(number: string): Promise<void> {
  if (number.trim() === '') {
    found.value = null;
    return;
  }
  try {
    found.value = await findStudies(number.trim());
    trouble.value = null;
  } catch (error) {
    trouble.value = explain(error);
  }
}

export async function choose(uid: string | null): Promise<void> {
  chosen.value = uid;
  shown.value = null;
  if (uid === null) return;
  try {
    const answer = await readComparison(uid);
    if (chosen.value === uid) shown.value = answer;
  } catch (error) {
    trouble.value = explain(error);
  }
}

/** Do what was confirmed; null when it is done, else why it is not. */
export async function carryOut(both: Comparison, what: Act, reason: string): Promise<string | null> {
  try {
    const answer = await act(both, what, reason);
    if (chosen.value === both.uid) shown.value = answer;
    say(t('reconcile.done'));
    await load();
    return null;
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 409) return explain(error);
    await choose(both.uid);
    return t('reconcile.changed');
  }
}

/** The study `by` lines further down. */
export function neighbour(by: number): string | null {
  const uids = (found.value ?? list.value?.lines ?? []).map((line) => line.uid);
  if (chosen.value === null) return uids[0] ?? null;
  return uids[uids.indexOf(chosen.value) + by] ?? null;
}
