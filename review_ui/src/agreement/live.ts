// The figures behind the screen and what was asked for; both survive leaving the page.
import { signal } from '@preact/signals';
import { type Agreement, type Question, readAgreement } from '../api/agreement';
import { explain } from '../app/state';

export const PERIODS = [3, 12, null] as const;

export const asked = signal<Question>({ model: null, machine: null, months: 12, grain: 'month' });
export const shown = signal<Agreement | null>(null);
export const trouble = signal<string | null>(null);
export const chosenField = signal('overall_category');

export function ask(change: Partial<Question>): void {
  asked.value = { ...asked.value, ...change };
}

export function isNarrowed(question: Question): boolean {
  return question.model !== null || question.machine !== null || question.months !== null;
}

/** Ask the node; the returned function drops an answer that nobody waits for. */
export function load(question: Question): () => void {
  const controller = new AbortController();
  readAgreement(question, controller.signal).then(
    (answer) => {
      shown.value = answer;
      trouble.value = null;
    },
    (error: unknown) => {
      if (!controller.signal.aborted) trouble.value = explain(error);
    },
  );
  return () => controller.abort();
}
