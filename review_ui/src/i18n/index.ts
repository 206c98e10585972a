// The chosen language and everything that depends on it.
import { signal } from '@preact/signals';
import type { Concept } from '../lexicon';
import { en, type MessageKey, zh } from './messages';

export type Language = 'zh' | 'en';
export type { MessageKey };

const REMEMBERED = 'sononode.language';
const catalogues: Record<Language, Record<MessageKey, string>> = { zh, en };

export const language = signal<Language>(remembered() ?? 'zh');

function remembered(): Language | null {
  const found = typeof localStorage === 'undefined' ? null : localStorage.getItem(REMEMBERED);
  return found === 'zh' || found === 'en' ? found : null;
}

/** Follow the browser until somebody has chosen. */
export function suggestLanguage(suggested: Language): void {
  if (remembered() === null) language.value = suggested;
}

export function switchLanguage(): void {
  language.value = language.value === 'zh' ? 'en' : 'zh';
  localStorage.setItem(REMEMBERED, language.value);
}

export function t(key: MessageKey, values: Record<string, string | number> = {}): string {
  return fill(catalogues[language.value][key], values);
}

export function fill(text: string, values: Record<string, string | number>): string {
  return text.replaceAll(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

export function word(concept: Concept): string {
  return concept[language.value];
}

export function oneOf(texts: { zh: string; en: string }): string {
  return texts[language.value];
}

function locale(): string {
  return language.value === 'zh' ? 'zh-CN' : 'en-GB';
}

export function shownTime(iso: string): string {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return '—';
  return at.toLocaleString(locale(), {
    year: 'numeric',
    month: '2-digit',
    day: '2-digit',
    hour: '2-digit',
    minute: '2-digit',
  });
}

/** A time to the second, as two acts of a minute are told apart. */
export function shownMoment(iso: string): string {
  const seconds = new Date(iso).getSeconds();
  return Number.isNaN(seconds) ? '—' : `${shownTime(iso)}:${String(seconds).padStart(2, '0')}`;
}

/** A day as the modality told it; never shifted by a time zone. */
export function shownDay(day: string | null): string {
  return day ? day.slice(0, 10) : '—';
}

export function shownNumber(value: number, digits: number): string {
  return value.toFixed(digits);
}
