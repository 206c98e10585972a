import { expect, test } from 'vitest';
import { likelyToStand, toBothRows } from './merging';

const person = { patient_id: 'M1', issuer: '', name: 'Li', birth_date: null, sex: null };
const row = (id: string, studies: number, named_by_ehr = false) => ({
  id,
  patient: person,
  studies,
  named_by_ehr,
  others: [],
});
const both = (...rows: ReturnType<typeof row>[]) => toBothRows({ seen: 's', rows, merged: null, differs: [] });

test('the row that the EHR knows stands, whoever has more studies', () => {
  expect(likelyToStand(both(row('a', 9), row('b', 1, true)))).toBe('b');
  expect(likelyToStand(both(row('a', 0, true), row('b', 1)))).toBe('a');
});

test('between rows that the EHR knows alike the one with more studies stands', () => {
  expect(likelyToStand(both(row('a', 9), row('b', 1)))).toBe('a');
  expect(likelyToStand(both(row('a', 1, true), row('b', 2, true)))).toBe('b');
});
