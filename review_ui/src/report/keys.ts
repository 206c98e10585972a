// The keyboard of the review page: which keys mean what, as a pure state machine.
import { CATEGORIES, type LesionKey, terms } from '../lexicon';

export const FIELD_OF_LETTER: Record<string, LesionKey> = {
  q: 'shape',
  w: 'orientation',
  e: 'margin',
  r: 'lesion_boundary',
  t: 'calcifications',
  y: 'echo_pattern',
  i: 'posterior_features',
  g: 'assessment_category',
};

export const LETTER_OF_FIELD = Object.fromEntries(
  Object.entries(FIELD_OF_LETTER).map(([letter, key]) => [key, letter.toUpperCase()]),
) as Record<LesionKey, string>;

/** The digit that says "calcifications: none seen". */
export const NONE_DIGIT = 9;

export type Action =
  | { does: 'choose'; key: LesionKey; term: string }
  | { does: 'none-seen' }
  | { does: 'clear'; key: LesionKey }
  | { does: 'frame'; by: number }
  | { does: 'clip'; by: number }
  | { does: 'lesion'; by: number }
  | {
      does:
        | 'cine'
        | 'heat'
        | 'box'
        | 'length'
        | 'window'
        | 'fit'
        | 'undo'
        | 'save'
        | 'sign'
        | 'next'
        | 'help'
        | 'history'
        | 'similar'
        | 'back';
    };

/** What has been typed of a value so far: a field, and for BI-RADS perhaps a 4. */
export interface Pending {
  field: LesionKey | null;
  typed: string;
}

export const NOTHING: Pending = { field: null, typed: '' };

export interface Key {
  key: string;
  shift: boolean;
  ctrl: boolean;
}

const PLAIN: Record<string, Action> = {
  ' ': { does: 'cine' },
  ArrowLeft: { does: 'frame', by: -1 },
  ArrowRight: { does: 'frame', by: 1 },
  '[': { does: 'clip', by: -1 },
  ']': { does: 'clip', by: 1 },
  ',': { does: 'lesion', by: -1 },
  '.': { does: 'lesion', by: 1 },
  h: { does: 'heat' },
  c: { does: 'box' },
  l: { does: 'length' },
  v: { does: 'window' },
  z: { does: 'fit' },
  u: { does: 'undo' },
  n: { does: 'next' },
  d: { does: 'history' },
  s: { does: 'similar' },
  '?': { does: 'help' },
  Escape: { does: 'back' },
};

export interface Interpreted {
  pending: Pending;
  action: Action | null;
}

/** Read one key. Keys that mean nothing here leave everything as it is. */
export function interpret(pending: Pending, key: Key): Interpreted {
  if (key.ctrl) {
    const action = key.key.toLowerCase() === 's' ? ({ does: 'save' } as const) : null;
    return { pending, action };
  }
  if (key.key === 'Enter' && key.shift) return { pending: NOTHING, action: { does: 'sign' } };
  const sign = key.key.length === 1 ? key.key.toLowerCase() : key.key;
  if (pending.field !== null) {
    const value = readValue(pending.field, pending.typed + sign.toUpperCase());
    if (value !== 'unknown') return value;
  }
  const field = FIELD_OF_LETTER[sign];
  if (field) return { pending: { field, typed: '' }, action: null };
  return { pending: NOTHING, action: PLAIN[sign] ?? null };
}

function readValue(field: LesionKey, typed: string): Interpreted | 'unknown' {
  if (typed === 'BACKSPACE' || typed === 'DELETE') return done({ does: 'clear', key: field });
  if (field === 'assessment_category') return readCategory(typed);
  const digit = /^[0-9]$/.test(typed) ? Number(typed) : null;
  if (digit === null) return 'unknown';
  if (digit === 0) return done({ does: 'clear', key: field });
  if (field === 'calcifications' && digit === NONE_DIGIT) return done({ does: 'none-seen' });
  const term = terms(field)[digit - 1];
  return term ? done({ does: 'choose', key: field, term: term.key }) : 'unknown';
}

/** BI-RADS is typed as it is said: 3, 4A, 5. A position in a list would turn 5 into 4B. */
function readCategory(typed: string): Interpreted | 'unknown' {
  if (typed === '4') return { pending: { field: 'assessment_category', typed }, action: null };
  const found = CATEGORIES.find((row) => row.key === typed);
  return found ? done({ does: 'choose', key: 'assessment_category', term: found.key }) : 'unknown';
}

function done(action: Action): Interpreted {
  return { pending: NOTHING, action };
}

/** Whether single-letter keys belong to what is focused and not to the page (WCAG 2.1.4). */
export function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) {
    return true;
  }
  return target instanceof HTMLInputElement && !['radio', 'checkbox', 'button', 'range'].includes(target.type);
}
