import { expect, test } from 'vitest';
import { type FieldRow, toAgreement } from '../api/agreement';
import { language } from '../i18n';
import {
  changesOf,
  fieldWord,
  kappaText,
  linesOf,
  matrixOf,
  modelWords,
  percent,
  rangeText,
  shareOf,
  valueWord,
} from './figures';

function field(change: Partial<FieldRow> = {}): FieldRow {
  return {
    field: 'assessment_category',
    kind: 'category',
    labels: ['1', '2', '3', '0', '4A', '4B'],
    compared: 20,
    agreed: 12,
    few: false,
    agreement: { value: 0.6, low: 0.4, high: 0.8 },
    kappa: null,
    notAssessedByAi: 1,
    addedByDoctor: 1,
    removedByDoctor: 0,
    offScale: 0,
    terms: [],
    pairs: [
      { ai: '4A', signed: '4A', n: 9 },
      { ai: '4A', signed: '3', n: 6 },
      { ai: '3', signed: '3', n: 3 },
      { ai: '3', signed: '4A', n: 1 },
      { ai: null, signed: '2', n: 1 },
    ],
    trend: [],
    ...change,
  };
}

test('the matrix has the values that were used, in order, and the unassessed last', () => {
  const matrix = matrixOf(field());
  expect(matrix.rows).toEqual(['3', '4A', null]);
  expect(matrix.columns).toEqual(['2', '3', '4A']);
  expect(matrix.count('4A', '3')).toBe(6);
  expect(matrix.count('3', '2')).toBe(0);
  expect(matrix.level('3', '2')).toBe(0);
  expect(matrix.level('4A', '4A')).toBe(3);
  expect(matrix.level(null, '2')).toBe(5);
});

test('rare cells are faint and never invisible', () => {
  const pairs = [
    { ai: '3', signed: '3', n: 999 },
    { ai: '3', signed: '4A', n: 1 },
  ];
  expect(matrixOf(field({ pairs })).level('3', '4A')).toBe(1);
});

test('what doctors change most comes first', () => {
  expect(changesOf(field(), 2).map((pair) => [pair.ai, pair.signed])).toEqual([
    ['4A', '3'],
    ['3', '4A'],
  ]);
});

test('a line breaks where too little was compared, it does not fall to zero', () => {
  const period = (agreed: number, total: number) => ({ starts: '2026-01-01', agreed, total });
  const trend = [period(10, 10), period(5, 10), period(0, 0), period(1, 4), period(0, 5)];
  expect(linesOf(trend, 40, 10)).toEqual(['0,0 10,5', '40,10']);
  expect(linesOf([period(5, 5)], 40, 10)).toEqual(['0,0']);
  expect(linesOf([], 40, 10)).toEqual([]);
});

test('a share of nothing is unknown, and almost all is not all', () => {
  expect(shareOf({ agreed: 0, total: 0 })).toBeNull();
  expect(percent(0.999)).toBe('99%');
  expect(percent(1)).toBe('100%');
  expect(percent(0)).toBe('0%');
});

test('kappa below chance keeps its sign', () => {
  const kappa = { value: -0.123, low: -0.3, high: 0.05 };
  expect(kappaText(kappa)).toBe('−0.12');
  expect(rangeText(kappa)).toBe('−0.30–0.05');
  expect(rangeText(kappa, percent)).toContain('%');
});

test('values are said in the words of the lexicon', () => {
  language.value = 'en';
  expect(fieldWord('margin')).toBe('Margin');
  expect(valueWord('margin', 'angular+spiculated')).toBe('Angular + Spiculated');
  expect(valueWord('calcifications', 'none_seen')).toBe('None seen');
  expect(valueWord('posterior_features', 'none')).toBe('None');
  expect(valueWord('shape', null)).toBe('not assessed');
  expect(valueWord('lesion', null)).not.toBe(valueWord('shape', null));
  expect(valueWord('overall_category', '4A')).toBe('4A');
  language.value = 'zh';
  expect(fieldWord('shape')).toBe('形状');
});

test('a model is told by name and version, its weights apart', () => {
  expect(modelWords('breast 0.1.0+sha256.995426c8099b')).toEqual({
    title: 'breast 0.1.0',
    weights: '995426c8099b',
  });
  expect(modelWords('something else')).toEqual({ title: 'something else', weights: '' });
});

test('what the node leaves out stays unknown in the page', () => {
  const body = {
    reports: 0,
    least_pairs: 20,
    models: [],
    machines: [],
    devices: [],
    drift: null,
    fields: [
      {
        field: 'shape',
        kind: 'single',
        labels: ['oval'],
        compared: 0,
        agreed: 0,
        few: true,
        agreement: null,
        kappa: null,
        not_assessed_by_ai: 0,
        added_by_doctor: 0,
        removed_by_doctor: 0,
        off_scale: 0,
        terms: [],
        pairs: [],
        trend: [],
      },
    ],
  };
  const read = toAgreement(body);
  expect(read.drift).toBeNull();
  expect(read.fields[0]!.kappa).toBeNull();
  expect(matrixOf(read.fields[0]!).rows).toEqual([]);
});
