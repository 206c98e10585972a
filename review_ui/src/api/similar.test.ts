import { afterEach, expect, test, vi } from 'vitest';
import { readSimilar, recordOutcome, toSimilar } from './similar';

const ANSWER = {
  cases: [
    {
      place: 1,
      category: '4A',
      signed_on: '2026-03',
      outcome: { outcome: 'malignant', method: 'biopsy' },
      similarity: 0.931,
      image: '/review/similar/cases/7/image',
      report: 'r1',
    },
    { place: 2, category: '3', signed_on: '2026-01', outcome: null, similarity: 0.9, image: null, report: null },
  ],
  fewer: 'few',
  outcome: null,
};

afterEach(() => vi.unstubAllGlobals());

test('an outcome that nobody recorded is null, never benign', () => {
  const found = toSimilar(ANSWER);
  expect(found.cases.map((row) => row.outcome)).toEqual([{ ending: 'malignant', method: 'biopsy' }, null]);
  expect(found.outcome).toBeNull();
  expect(found.fewer).toBe('few');
  expect(found.cases[1]).toMatchObject({ imageUrl: null, reportId: null });
});

test('cases are asked for one lesion of one report', async () => {
  const asked = vi.fn(async () => new Response(JSON.stringify(ANSWER)));
  vi.stubGlobal('fetch', asked);
  await readSimilar('r9', 2, new AbortController().signal);
  expect(asked).toHaveBeenCalledWith('/review/similar/r9?lesion=2', expect.objectContaining({ method: 'GET' }));
});

test('an outcome is sent with how it is known, and taken back without both', async () => {
  const sent = vi.fn(async (_url: string, _init: RequestInit) => new Response('{}', { status: 201 }));
  vi.stubGlobal('fetch', sent);
  await recordOutcome('r9', 1, { ending: 'benign', method: 'follow-up' });
  await recordOutcome('r9', 1, null);
  const bodies = sent.mock.calls.map(([, init]) => JSON.parse(String(init.body)));
  expect(bodies).toEqual([
    { report: 'r9', lesion: 1, outcome: 'benign', method: 'follow-up' },
    { report: 'r9', lesion: 1, outcome: null, method: null },
  ]);
});
