import { expect, test } from 'vitest';
import { setValue, startDraft } from '../report/draft';
import { REPORT_ID, reportWith } from '../report/fixture';
import { readField, writeAdvice, writeField } from './codes';
import type { Resource } from './types';
import { type Act, buildTransaction } from './write';

const ACT: Act = { status: 'final', reason: '', told: null, practitionerId: 'dr-1', at: '2026-01-02T08:00:00Z' };

const entries = (bundle: Resource): Resource[] => bundle['entry'];
const urls = (bundle: Resource) => entries(bundle).map((entry) => `${entry['request'].method} ${entry['request'].url}`);

test('signing what the AI said writes the report alone', () => {
  const report = reportWith();
  const bundle = buildTransaction(report, startDraft(report), ACT);
  expect(urls(bundle)).toEqual([`PUT DiagnosticReport/${REPORT_ID}`]);
  const [entry] = entries(bundle);
  expect(entry!['request'].ifMatch).toBe('W/"1"');
  expect(entry!['resource']).toMatchObject({ status: 'final', meta: { security: undefined } });
});

test('a changed value is the doctor’s: no device, no AI label, her name', () => {
  const report = reportWith();
  const draft = setValue(report, startDraft(report), report.lesions[0]!.fields.shape, ['oval']);
  const bundle = buildTransaction(report, draft, ACT);
  expect(urls(bundle)).toEqual([
    `PUT Observation/${REPORT_ID}-l1-shape`,
    `PUT DiagnosticReport/${REPORT_ID}`,
  ]);
  const { resource } = entries(bundle)[0] as { resource: Resource };
  expect(resource['device']).toBeUndefined();
  expect(resource['meta'].security).toBeUndefined();
  expect(resource['performer']).toEqual([{ reference: 'Practitioner/dr-1' }]);
  expect(readField('shape', resource)).toEqual(['oval']);
});

test('a reason becomes a Provenance and being told a Communication', () => {
  const report = reportWith([], new Map(), { status: 'final' });
  const draft = { ...startDraft(report), impression: '复核' };
  const bundle = buildTransaction(report, draft, { ...ACT, status: 'amended', reason: ' 复核 ', told: 'phone' });
  expect(urls(bundle)).toEqual([`PUT DiagnosticReport/${REPORT_ID}`, 'POST Provenance', 'POST Communication']);
  const [put, provenance, communication] = entries(bundle).map((entry) => entry['resource']);
  expect(put.conclusion).toBe('复核');
  expect(provenance).toMatchObject({ reason: [{ text: '复核' }], target: [{ reference: `DiagnosticReport/${REPORT_ID}` }] });
  expect(communication).toMatchObject({ status: 'completed', medium: [{ text: 'phone' }] });
});

test('words for the patient replace earlier ones and leave the other extensions alone', () => {
  const report = reportWith();
  const draft = { ...startDraft(report), patientSummary: '请按时复查' };
  const [entry] = entries(buildTransaction(report, draft, ACT));
  const names = entry!['resource'].extension.map((row: Resource) => row['url'].split('/').at(-1));
  expect(names).toEqual(['not-read', 'patient-summary']);
});

test.each([
  ['shape', null],
  ['shape', ['round']],
  ['margin', ['angular', 'spiculated']],
  ['calcifications', []],
  ['calcifications', ['in_mass', 'intraductal']],
  ['posterior_features', ['none']],
  ['assessment_category', ['4A']],
] as const)('%s survives being written and read: %s', (key, value) => {
  expect(readField(key, writeField(key, value))).toEqual(value);
});

test('advice keeps the code and the doctor’s words apart', () => {
  expect(writeAdvice(['short'], '半年后')).toMatchObject({ valueCodeableConcept: { text: '半年后' } });
  expect(writeAdvice(null, '')).toHaveProperty('dataAbsentReason');
});
