// Which rows the worklist shows, and in which order.
import { isSigned, type WorklistRow } from '../api/types';
import { CATEGORIES, tierOf } from '../lexicon';

export const FILTERS = ['unsigned', 'risk', 'signed', 'all'] as const;
export type Filter = (typeof FILTERS)[number];

function rank(row: WorklistRow): number {
  if (row.category === null) return 45; // nobody has an opinion: look before the benign ones
  return CATEGORIES.find((entry) => entry.key === row.category)?.rank ?? 0;
}

/** Worst first, then the one that has waited longest. */
export function byUrgency(a: WorklistRow, b: WorklistRow): number {
  return (
    rank(b) - rank(a) || (b.probability ?? -1) - (a.probability ?? -1) || a.updated.localeCompare(b.updated)
  );
}

export function passes(row: WorklistRow, filter: Filter): boolean {
  if (filter === 'all') return true;
  // A signed report that new images may overturn is work again.
  if (row.late && filter === 'unsigned') return true;
  if (filter === 'signed') return isSigned(row.status);
  if (isSigned(row.status) || row.status === 'entered-in-error') return false;
  return filter === 'unsigned' || ['high', 'raised', 'none'].includes(tierOf(row.category));
}

/** Whether a row answers to what was typed: name, accession, date or category. */
export function matches(row: WorklistRow, search: string): boolean {
  const words = search.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const text = [row.person.name, row.accession, row.studyDate ?? '', row.category ?? '', row.status]
    .join(' ')
    .toLowerCase();
  return words.every((word) => text.includes(word));
}

export interface Listed {
  /** In the order in which they are shown. */
  rows: readonly WorklistRow[];
  /** Arrived since; shown when the doctor asks, so that nothing moves under her hand. */
  waiting: readonly WorklistRow[];
}

/** Take in rows that changed: known ones change in place, new ones wait. */
export function takeIn(listed: Listed, changed: readonly WorklistRow[]): Listed {
  const byId = new Map(changed.map((row) => [row.id, row]));
  const known = new Set(listed.rows.map((row) => row.id));
  const waiting = new Map(listed.waiting.map((row) => [row.id, row]));
  for (const row of changed) if (!known.has(row.id)) waiting.set(row.id, row);
  return {
    rows: listed.rows.map((row) => byId.get(row.id) ?? row),
    waiting: [...waiting.values()],
  };
}

/** Put the waiting rows where they belong. */
export function arrange(listed: Listed): Listed {
  return { rows: [...listed.rows, ...listed.waiting].toSorted(byUrgency), waiting: [] };
}

/** A change may become visible this much later than its time says: it is stamped before it is committed. */
const OVERLAP_MS = 60_000;

/** The instant from which to ask for changes; null: ask for everything. */
export function askFrom(listed: Listed): string | null {
  const times = [...listed.rows, ...listed.waiting].map((row) => Date.parse(row.updated));
  const known = times.filter((time) => !Number.isNaN(time));
  return known.length ? new Date(Math.max(...known) - OVERLAP_MS).toISOString() : null;
}

/** The next unsigned study after `id`, for reading one after the other. */
export function nextAfter(listed: Listed, id: string): WorklistRow | null {
  const open = listed.rows.filter((row) => row.id === id || passes(row, 'unsigned'));
  const at = open.findIndex((row) => row.id === id);
  const following = [...open.slice(at + 1), ...open.slice(0, Math.max(at, 0))];
  return following.find((row) => row.id !== id) ?? null;
}
