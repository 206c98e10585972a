import { expect, test } from 'vitest';
import { coded, DIAGNOSTIC_REPORT, indexOf, OBSERVATIONS, observation, PATIENT, REPORT_ID, reportWith } from '../report/fixture';
import { detail } from './http';
import { toExam, toFailedWork, toPerson, toWorklistRow } from './parse';

test('a lesion is read with its place, size, probability and the AI frame', () => {
  const [lesion] = reportWith().lesions;
  expect(lesion).toMatchObject({
    number: 1,
    side: 'L',
    clock: 2,
    sopInstanceUid: '1.2.3.4',
    frame: 7,
    box: { x0: 10, y0: 20, x1: 110, y1: 90 },
    heatMap: '1.2.3.9',
    size: { longAxisMm: 11.8, widthMm: 9.1, heightMm: 7.4, lengthMm: null },
  });
  expect(lesion!.probability).toBeCloseTo(0.912);
});

test('two lesions stay two, each with its own place, heat map and fields', () => {
  const second = OBSERVATIONS.filter((row) => row['id'].includes('-l1')).map((row) =>
    JSON.parse(JSON.stringify(row).replaceAll(`${REPORT_ID}-l1`, `${REPORT_ID}-l2`).replaceAll('1.2.3.9', '1.2.3.10')),
  );
  const result = ['l1', 'l2', 'category', 'advice'].map((name) => ({ reference: `Observation/${REPORT_ID}-${name}` }));
  const { lesions } = reportWith(second, undefined, { result });
  expect(lesions.map((row) => [row.number, row.heatMap])).toEqual([
    [1, '1.2.3.9'],
    [2, '1.2.3.10'],
  ]);
  expect(lesions[1]!.fields.shape).toMatchObject({ id: `${REPORT_ID}-l2-shape`, value: ['irregular'] });
});

test('not assessed, none seen and several terms stay three different things', () => {
  const { fields } = reportWith().lesions[0]!;
  expect(fields.orientation.value).toBeNull();
  expect(fields.calcifications.value).toEqual([]);
  expect(fields.margin.value).toEqual(['indistinct', 'spiculated']);
});

test('an uncalibrated size and a missing probability are null and never zero', () => {
  const size = observation('l1-size', { dataAbsentReason: { text: 'uncalibrated' } });
  const [lesion] = reportWith([size, { ...observation('l1-probability', {}) }]).lesions;
  expect(lesion!.size).toBeNull();
  expect(lesion!.probability).toBeNull();
});

test('the AI value of a field that a doctor changed comes from the version that the AI wrote', () => {
  const ai = observation('l1-shape', { valueCodeableConcept: coded('irregular') });
  const { device: _, ...byDoctor } = observation('l1-shape', { valueCodeableConcept: coded('oval') }, '2');
  const { fields } = reportWith([byDoctor], new Map([[ai['id'], ai]])).lesions[0]!;
  expect(fields.shape).toMatchObject({ value: ['oval'], ai: ['irregular'] });
});

test('a value that was the doctor’s from the start says that the AI had no opinion', () => {
  const { device: _, ...byDoctor } = observation('l1-shape', { valueCodeableConcept: coded('oval') });
  expect(reportWith([byDoctor]).lesions[0]!.fields.shape).toMatchObject({ value: ['oval'], ai: null });
});

test('reasons for images that were not read come in both languages', () => {
  expect(reportWith().notRead).toEqual([{ zh: '彩色多普勒', en: 'colour Doppler' }]);
});

test('a person is shown as masked by the node, with an age only where there is one', () => {
  expect(toPerson(PATIENT, { reference: 'Patient/p1' }, '2026-01-01')).toEqual({
    id: 'p1',
    name: '张*',
    sex: 'female',
    age: 47,
  });
  expect(toPerson({}, {}, '2026-01-01').age).toBeNull();
  expect(toPerson({ birthDate: '1980-06-15' }, {}, '2026-06-14').age).toBe(45);
  expect(toPerson({ birthDate: '1980-06-15' }, {}, '2026-06-15').age).toBe(46);
});

test('a row of the worklist takes the worst category and the highest probability', () => {
  const row = toWorklistRow(DIAGNOSTIC_REPORT, indexOf([...OBSERVATIONS, PATIENT]));
  expect(row).toMatchObject({ id: REPORT_ID, category: '4C', categoryByAi: true, side: 'L', longAxisMm: 11.8 });
});

test('a report without lesions has a row with dashes and no zero', () => {
  const report = { ...DIAGNOSTIC_REPORT, result: [] };
  const row = toWorklistRow(report, indexOf([PATIENT]));
  expect(row).toMatchObject({ category: null, probability: null, longAxisMm: null, side: null, lesions: 0 });
});

test('what is missing from an answer is named', () => {
  const index = indexOf([DIAGNOSTIC_REPORT, OBSERVATIONS[0]!]);
  expect(index.missingObservations()).toContain(`Observation/${REPORT_ID}-l1-shape`);
  expect(index.missingObservations()).not.toContain(`Observation/${REPORT_ID}-l1`);
});

test('a failure is told in either form of the node, and never made up', () => {
  expect(detail('{"error":"no","request_id":"1"}')).toBe('no');
  expect(detail('{"issue":[{"diagnostics":"stale"}]}')).toBe('stale');
  expect(detail('{"issue":[{"details":{"text":"rule"}}]}')).toBe('rule');
  expect(detail('<html>')).toBeNull();
});

test('failed work says whose examination it is, by the masked name', () => {
  const study = { resourceType: 'ImagingStudy', id: '1.2.3', subject: { reference: 'Patient/p1' }, started: '2026-01-01' };
  const exam = toExam(study, indexOf([study, PATIENT]));
  const task = { id: 't1', statusReason: { text: 'no pixels' } };
  expect(toFailedWork(task, exam)).toMatchObject({
    reason: { zh: 'no pixels', en: 'no pixels' },
    exam: { person: { name: '张*' }, studyDate: '2026-01-01' },
  });
});
