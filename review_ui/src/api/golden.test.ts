// The page reads what the node sends: the files that both sides agreed on.
import { expect, test } from 'vitest';
import agreed from '../../../tests/golden/lexicon.json';
import amended from '../../../tests/golden/report-amended.json';
import drafted from '../../../tests/golden/report-drafted.json';
import signed from '../../../tests/golden/report-signed.json';
import failed from '../../../tests/golden/work-failed.json';
import data from '../lexicon.json';
import { startDraft } from '../report/draft';
import { Index, toFailedWork, toReport, toWorklistRow } from './parse';
import type { Report, Resource, WorklistRow } from './types';
import { buildTransaction } from './write';

const ai = new Map(new Index().add(drafted).all('Observation').map((row) => [row['id'], row] as const));

function read(bundle: Resource): { report: Report; row: WorklistRow; missing: string[] } {
  const index = new Index().add(bundle);
  const [source] = index.all('DiagnosticReport');
  return {
    report: toReport(source!, index, ai),
    row: toWorklistRow(source!, index),
    missing: index.missingObservations(),
  };
}

test.each([drafted, signed, amended])('one answer holds everything that the page shows (%#)', (bundle) => {
  expect(read(bundle).missing).toEqual([]);
});

test('a draft shows the algorithm’s values as the algorithm’s', () => {
  const { report, row } = read(drafted);
  expect(report).toMatchObject({ status: 'partial', version: '1', accession: '…0042', issued: null, signedBy: null });
  expect(report.person).toMatchObject({ name: '张*', sex: 'female', age: 47 });
  expect(report.studyUid).toBe('2.25.3001');
  const [lesion] = report.lesions;
  expect(lesion).toMatchObject({
    number: 1,
    side: 'L',
    clock: 2,
    sopInstanceUid: '2.25.2001',
    frame: 1,
    box: { x0: 100, y0: 120, x1: 180, y1: 170 },
    size: { longAxisMm: 11.8, widthMm: 11.2, heightMm: 7.1, lengthMm: null },
  });
  expect(lesion!.probability).toBeCloseTo(0.873);
  expect(lesion!.fields.shape).toMatchObject({ value: ['irregular'], ai: ['irregular'] });
  expect(lesion!.fields.margin.value).toEqual(['angular', 'spiculated']);
  expect(lesion!.fields.calcifications.value).toEqual([]);
  expect(lesion!.fields.lesion_boundary).toMatchObject({ value: null, ai: null });
  expect(report.category).toMatchObject({ value: ['4C'], ai: ['4C'] });
  expect(report.followup.value).toEqual(['strong_biopsy']);
  expect(row).toMatchObject({ category: '4C', categoryByAi: true, side: 'L', longAxisMm: 11.8, lesions: 1 });
});

test('a signed report shows the doctor’s values beside the algorithm’s', () => {
  const { report, row } = read(signed);
  expect(report).toMatchObject({ status: 'final', version: '2', impression: '左乳 2 点低回声结节。' });
  expect(report.patientSummary).toBe('左乳有一处需要进一步明确，请来院面谈。');
  expect(report.signedBy).not.toBeNull();
  const { fields } = report.lesions[0]!;
  expect(fields.shape).toMatchObject({ value: ['oval'], ai: ['irregular'] });
  expect(fields.margin).toMatchObject({ value: ['indistinct'], ai: ['angular', 'spiculated'] });
  expect(fields.lesion_boundary).toMatchObject({ value: ['echogenic_halo'], ai: null });
  expect(fields.calcifications).toMatchObject({ value: [], ai: [] });
  expect(report.category).toMatchObject({ value: ['4B'], ai: ['4C'] });
  expect(row).toMatchObject({ category: '4B', categoryByAi: false });
});

test('an amended report shows its newest words and keeps what nobody changed', () => {
  const { report } = read(amended);
  expect(report).toMatchObject({ status: 'amended', version: '3', impression: '复阅后降为 3 类。' });
  expect(report.category).toMatchObject({ value: ['3'], ai: ['4C'] });
  expect(report.lesions[0]!.fields.shape.value).toEqual(['oval']);
});

test('failed work is told in both languages and names its examination', () => {
  const [task] = new Index().add(failed).all('Task');
  expect(task!['focus'].reference).toBe('ImagingStudy/2.25.3001');
  expect(toFailedWork(task!, null).reason).toEqual({
    zh: 'AI 阅片未完成：处理进程 3 次意外终止，详见日志',
    en: 'The AI reading was not completed: its process died 3 times; see the log',
  });
});

test('signing a draft unchanged writes only the report, at the version that was read', () => {
  const { report } = read(drafted);
  const act = { status: 'final', reason: '', told: null, practitionerId: 'dr', at: '2026-11-21T08:00:00Z' } as const;
  const [entry, ...others] = buildTransaction(report, startDraft(report), act)['entry'];
  expect(others).toEqual([]);
  expect(entry.request).toEqual({ method: 'PUT', url: `DiagnosticReport/${report.id}`, ifMatch: 'W/"1"' });
});

test('the lexicon of the page has the codes and words that were agreed on', () => {
  const coded = ({ system, code, meaning, zh, en }: Resource) => ({ system, code, meaning, zh, en });
  for (const [key, field] of Object.entries(agreed.fields)) {
    const own = data.fields.find((row) => row.key === key);
    expect(coded(own!)).toEqual(coded(field));
    expect(own!.multiple).toBe(field.multiple);
    const terms = own!.terms.map((term) => [term.key, coded(term)]);
    expect(terms).toEqual(Object.entries(field.terms).map(([term, value]) => [term, coded(value)]));
  }
  expect(data.fields.map((row) => row.key).toSorted()).toEqual(Object.keys(agreed.fields).toSorted());
  for (const [key, category] of Object.entries(agreed.categories)) {
    const own = data.categories.find((row) => row.key === key);
    expect({ ...coded(own!), gated: own!.gated }).toEqual({ ...coded(category), gated: category.gated });
  }
  expect(data.followups.map((row) => row.key).toSorted()).toEqual(Object.keys(agreed.followups).toSorted());
});
