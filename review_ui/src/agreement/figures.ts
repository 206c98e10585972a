// Figures of agreement as words, matrices and lines. Missing is never zero.
import type { Estimate, FieldRow, Pair, Period, Trials } from '../api/agreement';
import { t, word } from '../i18n';
import { CALCIFICATIONS_NONE, FIELD_KEYS, type FieldKey, lexiconField } from '../lexicon';

const NONE_SEEN = 'none_seen';

export function fieldWord(field: string): string {
  if (field === 'overall_category') return t('form.overall');
  if (field === 'assessment_category') return t('agreement.lesionCategory');
  if (field === 'lesion') return t('agreement.lesion');
  return isLexiconField(field) ? word(lexiconField(field)) : field;
}

/** A stored value in words; null is what nobody assessed. */
export function valueWord(field: string, value: string | null): string {
  if (value === null) return t(field === 'lesion' ? 'agreement.absent' : 'form.notAssessedLong');
  if (value === NONE_SEEN) return word(CALCIFICATIONS_NONE);
  if (field === 'lesion') return t('agreement.present');
  if (!isLexiconField(field)) return value;
  const terms = lexiconField(field).terms;
  return value
    .split('+')
    .map((key) => {
      const term = terms.find((row) => row.key === key);
      return term ? word(term) : key;
    })
    .join(' + ');
}

function isLexiconField(field: string): field is FieldKey {
  return (FIELD_KEYS as readonly string[]).includes(field);
}

export function percent(share: number): string {
  // 99.6 % is not everything.
  const shown = share < 1 ? Math.min(99, Math.round(share * 100)) : 100;
  return t('unit.percent', { value: shown });
}

export function shareOf(trials: Trials): number | null {
  return trials.total > 0 ? trials.agreed / trials.total : null;
}

export function kappaText(kappa: Estimate): string {
  return signed(kappa.value);
}

export function rangeText(range: Estimate, as: (value: number) => string = signed): string {
  return `${as(range.low)}–${as(range.high)}`;
}

function signed(value: number): string {
  return value.toFixed(2).replace('-', '−');
}

export interface Matrix {
  /** AI's values, one per row; null: not assessed. */
  rows: readonly (string | null)[];
  /** The doctor's values, one per column. */
  columns: readonly (string | null)[];
  count: (ai: string | null, doctor: string | null) => number;
  /** How dark a cell is: 0 nothing, 1 to 5 its share of what the AI said so. */
  level: (ai: string | null, doctor: string | null) => number;
}

/** The pairs as a table: only values that somebody used, in the order of the lexicon. */
export function matrixOf(row: FieldRow): Matrix {
  const order = [...row.labels, NONE_SEEN];
  const rows = used(row.pairs.map((pair) => pair.ai), order);
  const columns = used(row.pairs.map((pair) => pair.signed), order);
  const count = (ai: string | null, doctor: string | null) =>
    row.pairs.find((pair) => pair.ai === ai && pair.signed === doctor)?.n ?? 0;
  const level = (ai: string | null, doctor: string | null) => {
    const found = count(ai, doctor);
    const total = row.pairs.reduce((sum, pair) => sum + (pair.ai === ai ? pair.n : 0), 0);
    return found === 0 ? 0 : Math.max(1, Math.ceil((5 * found) / total));
  };
  return { rows, columns, count, level };
}

function used(values: (string | null)[], order: string[]): (string | null)[] {
  const seen = new Set(values);
  const known = order.filter((key) => seen.has(key));
  return seen.has(null) ? [...known, null] : known;
}

/** The pairs in which both differ, the most frequent first. */
export function changesOf(row: FieldRow, most: number): Pair[] {
  return row.pairs.filter((pair) => pair.ai !== pair.signed).slice(0, most);
}

/** Periods with fewer comparisons would only show noise. */
const LEAST_OF_PERIOD = 5;

/** A line of shares from 0 to 1 in a box; it breaks where there is nothing to show. */
export function linesOf(trend: readonly Period[], width: number, height: number): string[] {
  const step = trend.length > 1 ? width / (trend.length - 1) : 0;
  const lines: string[][] = [[]];
  trend.forEach((period, at) => {
    const share = period.total < LEAST_OF_PERIOD ? null : shareOf(period);
    if (share === null) lines.push([]);
    else lines.at(-1)!.push(`${round(at * step)},${round(height * (1 - share))}`);
  });
  return lines.filter((points) => points.length > 0).map((points) => points.join(' '));
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

/** `2026-10-01` as people say it: a month, or the Monday of a week. */
export function periodWord(starts: string, grain: 'month' | 'week'): string {
  return grain === 'month' ? starts.slice(0, 7) : starts;
}

/** A model's name and version, and the beginning of its weights' hash. */
export function modelWords(name: string): { title: string; weights: string } {
  const [title = name, weights = ''] = name.split('+sha256.');
  return { title, weights };
}
