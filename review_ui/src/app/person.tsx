import type { Person, Side } from '../api/types';
import { t, word } from '../i18n';
import { CLOCK, SIDES } from '../lexicon';

export function sexAndAge(person: Person): string {
  const age = person.age === null ? t('person.ageUnknown') : t('person.age', { age: person.age });
  return `${t(`sex.${person.sex}`)} · ${age}`;
}

export function sideWord(side: Side | null): string {
  const concept = side === null ? undefined : SIDES[side];
  return concept ? word(concept) : '—';
}

export function clockWord(clock: number | null): string {
  const concept = clock === null ? undefined : CLOCK[String(clock)];
  return concept ? word(concept) : '';
}
