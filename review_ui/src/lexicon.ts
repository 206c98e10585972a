// The vocabulary of a report, generated from the domain's table.
import data from './lexicon.json';

export interface Concept {
  system: string | null;
  code: string;
  meaning: string;
  zh: string;
  en: string;
}
export interface Term extends Concept {
  key: string;
}
export interface LexiconField extends Concept {
  key: FieldKey;
  multiple: boolean;
  terms: Term[];
}
export interface Category extends Term {
  rank: number;
  gated: boolean;
  followup: string;
}

export const FIELD_KEYS = [
  'shape',
  'orientation',
  'margin',
  'lesion_boundary',
  'calcifications',
  'echo_pattern',
  'posterior_features',
] as const;
export type FieldKey = (typeof FIELD_KEYS)[number];
export type LesionKey = FieldKey | 'assessment_category';
export const LESION_KEYS: readonly LesionKey[] = [...FIELD_KEYS, 'assessment_category'];

export const PRIVATE_SYSTEM: string = data.system;
export const CALCIFICATIONS_NONE: Concept = data.calcificationsNone;
export const CATEGORY_CONCEPT: Concept = data.assessmentCategory;
export const CATEGORIES: readonly Category[] = data.categories;
export const FOLLOWUPS: readonly Term[] = data.followups;
export const SIDES: Record<string, Concept> = data.laterality;
export const CLOCK: Record<string, Concept> = data.clock;

const FIELDS = new Map(data.fields.map((field) => [field.key, field as LexiconField]));

export function lexiconField(key: FieldKey): LexiconField {
  const found = FIELDS.get(key);
  if (!found) throw new Error(`the lexicon has no field ${key}`);
  return found;
}

export function category(key: string): Category {
  const found = CATEGORIES.find((row) => row.key === key);
  if (!found) throw new Error(`BI-RADS has no category ${key}`);
  return found;
}

/** The terms that a field offers, in the order of their digits on the keyboard. */
export function terms(key: LesionKey): readonly Term[] {
  return key === 'assessment_category' ? CATEGORIES : lexiconField(key).terms;
}

/** The most suspicious of `keys`, or null when there is none. */
export function worstCategory(keys: Iterable<string | null>): string | null {
  let worst: Category | null = null;
  for (const key of keys) {
    if (key === null) continue;
    const row = category(key);
    if (worst === null || row.rank > worst.rank) worst = row;
  }
  return worst?.key ?? null;
}

export type Tier = 'high' | 'raised' | 'open' | 'low' | 'none';

/** How urgently a study wants a doctor's eye; `none` when nobody gave a category. */
export function tierOf(key: string | null): Tier {
  if (key === null) return 'none';
  if (['4C', '5', '6'].includes(key)) return 'high';
  if (['4A', '4B'].includes(key)) return 'raised';
  return key === '0' ? 'open' : 'low';
}
