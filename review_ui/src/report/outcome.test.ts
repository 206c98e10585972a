import { afterEach, expect, test } from 'vitest';
import { language } from '../i18n';
import { OUTCOMES, outcomeKey, outcomeOf, outcomeWords } from './outcome';

afterEach(() => {
  language.value = 'zh';
});

test('every outcome comes back from its key, also the one that takes back', () => {
  for (const outcome of OUTCOMES) expect(outcomeOf(outcomeKey(outcome))).toEqual(outcome);
  expect(new Set(OUTCOMES.map(outcomeKey)).size).toBe(OUTCOMES.length);
});

test('a case without an outcome says so in both languages', () => {
  expect(outcomeWords(null)).toBe('结局未记录');
  expect(outcomeWords({ ending: 'malignant', method: 'biopsy' })).toBe('恶性 · 活检');
  language.value = 'en';
  expect(outcomeWords(null)).toBe('outcome not recorded');
  expect(outcomeWords({ ending: 'benign', method: 'follow-up' })).toBe('benign · follow-up');
});
