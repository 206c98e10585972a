import { expect, test } from 'vitest';
import { grouped, type Measured, shownValue, toMachineReports } from './measured';

function row(changes: Partial<Measured>): Measured {
  return {
    group: ['Lesion 1'],
    site: 'Left breast',
    name: { zh: '长径', en: 'Long Axis' },
    value: '12.30',
    unit: 'mm',
    term: null,
    qualifier: '',
    derivation: '',
    ...changes,
  };
}

test('a value stays the decimal that was sent', () => {
  expect(shownValue(row({}))).toBe('12.30 mm');
  expect(shownValue(row({ value: '0.71', unit: '1' }))).toBe('0.71');
});

test('a value left empty is a dash, never zero', () => {
  expect(shownValue(row({ value: null }))).toBe('—');
  expect(shownValue(row({ value: null, qualifier: 'Value out of range' }))).toBe('— (Value out of range)');
});

test('rows of one lesion stand together in their order', () => {
  const rows = [row({}), row({ group: ['Lesion 2'] }), row({ value: '8.1' })];
  expect(grouped(rows).map((group) => [group.heading, group.rows.length])).toEqual([
    ['Lesion 1 · Left breast', 2],
    ['Lesion 2 · Left breast', 1],
  ]);
});

test('an answer without reports is no report, and missing words are empty', () => {
  expect(toMachineReports({})).toEqual([]);
  const [report] = toMachineReports({
    reports: [{ title: 'T', device: 'D', measurements: [{ name: { zh: 'a', en: 'b' }, value: null }] }],
  });
  expect(report).toMatchObject({ algorithm: null, verified: false, leftOut: 0 });
  expect(report?.measurements[0]).toMatchObject({ value: null, term: null, group: [] });
});
