import { expect, test } from 'vitest';
import type { WorklistRow } from '../api/types';
import { arrange, askFrom, byUrgency, matches, nextAfter, passes, takeIn } from './order';

function row(id: string, change: Partial<WorklistRow> = {}): WorklistRow {
  return {
    id,
    status: 'partial',
    person: { id: 'p', name: '张*', sex: 'female', age: 47 },
    studyDate: '2026-01-01',
    accession: '…0042',
    side: 'L',
    category: '3',
    categoryByAi: true,
    probability: 0.1,
    longAxisMm: null,
    lesions: 1,
    notRead: [],
    completeness: null,
    late: null,
    updated: '2026-01-01T08:00:00Z',
    ...change,
  };
}

const ids = (rows: readonly WorklistRow[]) => rows.map((r) => r.id);

test('the worst comes first, then the likeliest, then the one that waits longest', () => {
  const rows = [
    row('benign', { category: '2' }),
    row('late', { category: '4C', probability: 0.9, updated: '2026-01-01T09:00:00Z' }),
    row('none', { category: null, probability: null }),
    row('early', { category: '4C', probability: 0.9 }),
    row('incomplete', { category: '0' }),
  ];
  expect(ids(rows.toSorted(byUrgency))).toEqual(['early', 'late', 'none', 'incomplete', 'benign']);
});

test('rows never jump: known ones change in place and new ones wait', () => {
  const start = arrange({ rows: [row('a', { category: '4A' }), row('b')], waiting: [] });
  const next = takeIn(start, [row('b', { category: '5' }), row('c', { category: '5' })]);
  expect(ids(next.rows)).toEqual(['a', 'b']);
  expect(next.rows[1]!.category).toBe('5');
  expect(ids(next.waiting)).toEqual(['c']);
  expect(ids(arrange(next).rows)).toEqual(['b', 'c', 'a']);
  expect(arrange(next).waiting).toEqual([]);
});

test('the filters divide signed from unsigned, and a report without opinion is a risk', () => {
  expect(passes(row('a', { status: 'final' }), 'unsigned')).toBe(false);
  expect(passes(row('a', { status: 'final' }), 'signed')).toBe(true);
  expect(passes(row('a', { category: '2' }), 'risk')).toBe(false);
  expect(passes(row('a', { category: null }), 'risk')).toBe(true);
  expect(passes(row('a', { status: 'entered-in-error' }), 'unsigned')).toBe(false);
  expect(passes(row('a', { status: 'entered-in-error' }), 'all')).toBe(true);
});

test('a signed report with images that came later is work again', () => {
  const late = { zh: '新图像', en: 'new images' };
  expect(passes(row('a', { status: 'final', late }), 'unsigned')).toBe(true);
  expect(passes(row('a', { status: 'final', late }), 'signed')).toBe(true);
});

test('a search finds by name, number, date and category together', () => {
  expect(matches(row('a'), '张 0042')).toBe(true);
  expect(matches(row('a'), '李')).toBe(false);
  expect(matches(row('a'), '  ')).toBe(true);
});

test('changes are asked for from a minute before the newest, so that a late commit is not missed', () => {
  expect(askFrom({ rows: [], waiting: [] })).toBeNull();
  const later = '2026-01-01T09:00:00.500Z';
  expect(askFrom({ rows: [row('a', { updated: later })], waiting: [row('b')] })).toBe('2026-01-01T08:59:00.500Z');
});

test('the next study is the next unsigned one, around the end of the list', () => {
  const list = { rows: [row('a'), row('b', { status: 'final' }), row('c')], waiting: [] };
  expect(nextAfter(list, 'a')!.id).toBe('c');
  expect(nextAfter(list, 'c')!.id).toBe('a');
  expect(nextAfter({ rows: [row('a')], waiting: [] }, 'a')).toBeNull();
});
