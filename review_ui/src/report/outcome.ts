// How a case ended, in words and as a choice.
import type { Outcome } from '../api/similar';
import { t } from '../i18n';

/** What a doctor may record; null is "not recorded" and takes back. */
export const OUTCOMES: readonly (Outcome | null)[] = [
  null,
  { ending: 'benign', method: 'biopsy' },
  { ending: 'benign', method: 'follow-up' },
  { ending: 'malignant', method: 'biopsy' },
  { ending: 'malignant', method: 'follow-up' },
];

export function outcomeKey(outcome: Outcome | null): string {
  return outcome ? `${outcome.ending} ${outcome.method}` : '';
}

export function outcomeOf(key: string): Outcome | null {
  return OUTCOMES.find((row) => outcomeKey(row) === key) ?? null;
}

export function outcomeWords(outcome: Outcome | null): string {
  if (!outcome) return t('similar.outcome.none');
  return `${t(`similar.outcome.${outcome.ending}`)} · ${t(`similar.method.${outcome.method}`)}`;
}
