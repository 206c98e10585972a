// Between coded values of FHIR and keys of the lexicon.
import {
  CALCIFICATIONS_NONE,
  CATEGORIES,
  type Concept,
  FOLLOWUPS,
  type LesionKey,
  lexiconField,
  PRIVATE_SYSTEM,
  type Term,
} from '../lexicon';
import type { Resource, Value } from './types';

/** The key of the term that a CodeableConcept says, or null when it says none of them. */
function termOf(concept: Resource | undefined, terms: readonly Term[]): string | null {
  for (const coding of concept?.coding ?? []) {
    const found = terms.find(
      (term) =>
        (coding.system === PRIVATE_SYSTEM && coding.code === term.key) ||
        (coding.system === term.system && coding.code === term.code),
    );
    if (found) return found.key;
  }
  return null;
}

export function readField(key: LesionKey, observation: Resource | undefined): Value {
  if (!observation) return null;
  if (key === 'assessment_category') return one(observation, CATEGORIES);
  const { terms } = lexiconField(key);
  if (saysNone(observation)) return [];
  if (observation.component) {
    const keys = observation.component.map((part: Resource) => termOf(part.valueCodeableConcept, terms));
    return keys.filter((found: string | null) => found !== null);
  }
  return one(observation, terms);
}

function one(observation: Resource, terms: readonly Term[]): Value {
  const key = termOf(observation.valueCodeableConcept, terms);
  return key === null ? null : [key];
}

function saysNone(observation: Resource): boolean {
  const codings: Resource[] = observation.valueCodeableConcept?.coding ?? [];
  return codings.some((coding) => coding.code === CALCIFICATIONS_NONE.code);
}

export function readFollowup(observation: Resource | undefined): Value {
  return observation ? one(observation, FOLLOWUPS) : null;
}

export const NOT_ASSESSED = {
  dataAbsentReason: {
    coding: [
      {
        system: 'http://terminology.hl7.org/CodeSystem/data-absent-reason',
        code: 'not-performed',
      },
    ],
  },
};

/** The value elements of an Observation that says `value`. */
export function writeField(key: LesionKey, value: Value): Resource {
  if (value === null) return NOT_ASSESSED;
  if (key === 'assessment_category') return { valueCodeableConcept: codeable(pick(CATEGORIES, value[0])) };
  const field = lexiconField(key);
  if (value.length === 0) {
    return { valueCodeableConcept: { coding: [coding(CALCIFICATIONS_NONE)], text: 'none' } };
  }
  const concepts = value.map((term) => codeable(pick(field.terms, term)));
  if (!field.multiple) return { valueCodeableConcept: concepts[0] };
  const code = codeable(field);
  return { component: concepts.map((concept) => ({ code, valueCodeableConcept: concept })) };
}

/** The follow-up with the doctor's own words as its text. */
export function writeAdvice(followup: Value, text: string): Resource {
  if (followup === null && !text) return NOT_ASSESSED;
  const concept: Resource = {};
  if (followup !== null) concept.coding = codeable(pick(FOLLOWUPS, followup[0])).coding;
  if (text) concept.text = text;
  return { valueCodeableConcept: concept };
}

function pick(terms: readonly Term[], key: string | undefined): Term {
  const found = terms.find((term) => term.key === key);
  if (!found) throw new Error(`the lexicon has no term ${key}`);
  return found;
}

function coding(concept: Concept): Resource {
  return { system: concept.system, code: concept.code, display: concept.meaning };
}

function codeable(term: Term | (Concept & { key: string })): Resource {
  const own = { system: PRIVATE_SYSTEM, code: term.key };
  const standard = term.system === null ? [] : [coding(term)];
  return { coding: [own, ...standard], text: term.zh };
}
