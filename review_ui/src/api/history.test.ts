import { expect, test } from 'vitest';
import { assembleHistory } from './history';
import type { Resource } from './types';

const at = '2026-01-01T08:00:00Z';
const row = (resourceType: string, id: string, version: string, change: Resource = {}): Resource => ({
  resourceType,
  id,
  meta: { versionId: version, lastUpdated: at },
  ...change,
});
const provenance = (reason: string | null, ...references: string[]): Resource => ({
  resourceType: 'Provenance',
  target: references.map((reference) => ({ reference })),
  ...(reason ? { reason: [{ text: reason }] } : {}),
});

const REPORT = ['1', '2', '3'].map((version) => row('DiagnosticReport', 'r', version));
const SHAPE = ['1', '2'].map((version) => row('Observation', 's', version));
const MARGIN = [row('Observation', 'm', '1')];

test('each version of a report has the values that were written with it or before', () => {
  const provenances = [
    provenance(null, 'DiagnosticReport/r/_history/1', 'Observation/s/_history/1', 'Observation/m/_history/1'),
    provenance(null, 'DiagnosticReport/r/_history/2'),
    provenance('复核', 'DiagnosticReport/r/_history/3', 'Observation/s/_history/2'),
  ];
  const found = assembleHistory(REPORT, provenances, [SHAPE, MARGIN]);
  const versions = found.map(({ observations }) => observations.map((one) => `${one['id']}${one['meta'].versionId}`));
  expect(versions).toEqual([
    ['s1', 'm1'],
    ['s1', 'm1'],
    ['s2', 'm1'],
  ]);
  expect(found.map(({ reason }) => reason)).toEqual([null, null, '复核']);
});

test('a version that nobody wrote is left out', () => {
  const provenances = [provenance(null, 'DiagnosticReport/r/_history/1'), provenance('b', 'DiagnosticReport/r/_history/3')];
  const found = assembleHistory(REPORT, provenances, []);
  expect(found.map(({ source }) => source['meta'].versionId)).toEqual(['1', '3']);
});

test('a version without Provenance shows what stood before it', () => {
  const [only] = assembleHistory([REPORT[0]!], [], [SHAPE, []]);
  expect(only!.observations).toEqual([SHAPE[0]]);
});
