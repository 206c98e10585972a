import type { Seen, Verb } from '../api/audit';
import { t } from '../i18n';

export function verbWord(verb: Verb): string {
  return t(`audit.verb.${verb}`);
}

export function whoWords(row: Seen): string {
  return row.who === null ? t('audit.nobody') : row.who.name;
}

export function endingWords(row: Seen): string {
  return t(`audit.ending.${row.ending}`);
}

/** Enough of an id to tell two women apart on a page; the whole of it is in the entry. */
export function shortId(id: string): string {
  return id.length > 8 ? `${id.slice(0, 8)}…` : id;
}
