import { expect, test } from 'vitest';
import { CATEGORIES, LESION_KEYS } from '../lexicon';
import { type Action, interpret, LETTER_OF_FIELD, NOTHING, type Pending } from './keys';

function type(...keys: string[]): { actions: Action[]; pending: Pending } {
  let pending = NOTHING;
  const actions: Action[] = [];
  for (const key of keys) {
    const read = interpret(pending, { key, shift: false, ctrl: false });
    pending = read.pending;
    if (read.action) actions.push(read.action);
  }
  return { actions, pending };
}

test('a field and a digit choose a value', () => {
  expect(type('e', '2').actions).toEqual([{ does: 'choose', key: 'margin', term: 'indistinct' }]);
  expect(type('q', '1').actions).toEqual([{ does: 'choose', key: 'shape', term: 'oval' }]);
});

test('BI-RADS is typed as it is said, so that 5 is never 4B', () => {
  const chosen = (...keys: string[]) => type('g', ...keys).actions;
  expect(chosen('5')).toEqual([{ does: 'choose', key: 'assessment_category', term: '5' }]);
  expect(chosen('0')).toEqual([{ does: 'choose', key: 'assessment_category', term: '0' }]);
  expect(chosen('4')).toEqual([]);
  for (const letter of ['a', 'b', 'c']) {
    const term = `4${letter.toUpperCase()}`;
    expect(chosen('4', letter)).toEqual([{ does: 'choose', key: 'assessment_category', term }]);
  }
});

test('every category can be typed', () => {
  for (const { key } of CATEGORIES) {
    expect(type('g', ...key.toLowerCase()).actions).toMatchObject([{ term: key }]);
  }
});

test('a 4 that is followed by something else chooses nothing', () => {
  expect(type('g', '4', 'h').actions).toEqual([{ does: 'heat' }]);
});

test('0 takes a value back and 9 says that no calcification is seen', () => {
  expect(type('t', '0').actions).toEqual([{ does: 'clear', key: 'calcifications' }]);
  expect(type('t', '9').actions).toEqual([{ does: 'none-seen' }]);
});

test('a digit that the field does not have, or without a field, does nothing', () => {
  expect(type('q', '9').actions).toEqual([]);
  expect(type('3').actions).toEqual([]);
});

test('every field has one letter of its own, and none of them is a command', () => {
  const letters = LESION_KEYS.map((key) => LETTER_OF_FIELD[key]);
  expect(new Set(letters).size).toBe(LESION_KEYS.length);
  for (const letter of letters) expect(type(letter.toLowerCase()).actions).toEqual([]);
});

test('signing takes Shift with Enter, saving Ctrl with S', () => {
  expect(interpret(NOTHING, { key: 'Enter', shift: true, ctrl: false }).action).toEqual({ does: 'sign' });
  expect(interpret(NOTHING, { key: 'Enter', shift: false, ctrl: false }).action).toBeNull();
  expect(interpret(NOTHING, { key: 's', shift: false, ctrl: true }).action).toEqual({ does: 'save' });
  expect(interpret(NOTHING, { key: 'r', shift: false, ctrl: true }).action).toBeNull();
});
