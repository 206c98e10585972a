import { expect, test } from 'vitest';
import { fill } from '.';
import { en, zh } from './messages';

const placeholders = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((m) => m[1]).toSorted();

test('both catalogues have the same messages with the same placeholders', () => {
  expect(Object.keys(en).toSorted()).toEqual(Object.keys(zh).toSorted());
  for (const [key, text] of Object.entries(zh)) {
    expect(placeholders(en[key as keyof typeof zh]), key).toEqual(placeholders(text));
  }
});

test('no message is empty, and only Chinese ones hold Chinese', () => {
  for (const [key, text] of Object.entries(en)) {
    expect(text.length, key).toBeGreaterThan(0);
    if (key !== 'app.language') expect(/\p{Script=Han}/u.test(text), key).toBe(false);
  }
});

test('a placeholder without a value stays visible', () => {
  expect(fill('{a} of {b}', { a: 0 })).toBe('0 of {b}');
});
