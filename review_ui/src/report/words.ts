// Values in words, in the chosen language.
import type { FieldState, Value } from '../api/types';
import { t, word } from '../i18n';
import {
  CALCIFICATIONS_NONE,
  category,
  CATEGORY_CONCEPT,
  FOLLOWUPS,
  type LesionKey,
  lexiconField,
} from '../lexicon';
import type { Said } from './draft';

export function fieldName(key: LesionKey): string {
  return word(key === 'assessment_category' ? CATEGORY_CONCEPT : lexiconField(key));
}

/** What a value says; "—" for not assessed, which is never "none". */
export function valueWords(key: LesionKey, value: Value): string {
  if (value === null) return t('form.notAssessed');
  if (key === 'assessment_category') return value.map((term) => word(category(term))).join(' ');
  if (value.length === 0) return word(CALCIFICATIONS_NONE);
  const { terms } = lexiconField(key);
  const words = value.map((term) => terms.find((row) => row.key === term)).filter((row) => row !== undefined);
  return words.map(word).join(t('app.language') === 'English' ? '、' : ', ');
}

export function followupWords(value: Value): string {
  const found = FOLLOWUPS.find((row) => row.key === value?.[0]);
  return found ? word(found) : t('form.notAssessed');
}

export function placeOf(said: Said): string {
  return said.lesion ? t('form.lesion', { number: said.lesion.number }) : t('sign.overall');
}

export function aiNote(key: LesionKey, state: FieldState): string {
  return state.ai === null ? t('form.aiNoOpinion') : t('form.ai', { value: valueWords(key, state.ai) });
}
