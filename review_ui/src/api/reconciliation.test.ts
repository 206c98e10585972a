import { expect, test } from 'vitest';
import { nameOf } from './reconciliation';

test('a name is shown as people read it, both spellings', () => {
  expect(nameOf('ZHANG^SAN=张^三')).toBe('张三 (ZHANG SAN)');
  expect(nameOf('Müller^Anna')).toBe('Müller Anna');
  expect(nameOf('张^三')).toBe('张三');
  expect(nameOf('')).toBe('—');
});
