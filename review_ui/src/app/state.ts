// What all screens share: who is signed in, where we are, and what was just said.
import { signal } from '@preact/signals';
import { type Me, readMe, signOut as endSession } from '../api/auth';
import { ApiError, onSignedOut } from '../api/http';
import { suggestLanguage, t } from '../i18n';

export type SessionState = 'unknown' | 'out' | 'in' | 'expired';

export const session = signal<SessionState>('unknown');
export const me = signal<Me | null>(null);
export const route = signal(readRoute());
export const notice = signal<{ text: string; tone: 'good' | 'bad' } | null>(null);
export const lettersOn = signal(true);
/** Set while a screen holds work that would be lost. */
export const holdsWork = signal(false);

export type Route =
  | { screen: 'worklist' | 'agreement' | 'reconciliation' | 'clients' | 'audit' }
  | { screen: 'report'; id: string };

function readRoute(): Route {
  if (globalThis.location?.hash === '#/agreement') return { screen: 'agreement' };
  if (globalThis.location?.hash === '#/reconciliation') return { screen: 'reconciliation' };
  if (globalThis.location?.hash === '#/clients') return { screen: 'clients' };
  if (globalThis.location?.hash === '#/audit') return { screen: 'audit' };
  const found = /^#\/report\/([A-Za-z0-9.-]{1,64})$/.exec(globalThis.location?.hash ?? '');
  return found ? { screen: 'report', id: found[1]! } : { screen: 'worklist' };
}

export function hrefOf(to: Route): string {
  if (to.screen === 'report') return `#/report/${to.id}`;
  return to.screen === 'worklist' ? '#/' : `#/${to.screen}`;
}

/** Go somewhere, unless the doctor would rather keep her unsaved work. */
export function go(to: Route): void {
  if (mayLeave()) location.hash = hrefOf(to);
}

function mayLeave(): boolean {
  // oxlint-disable-next-line no-alert
  if (holdsWork.value && !confirm(t('review.leave'))) return false;
  holdsWork.value = false;
  return true;
}

export function listen(): () => void {
  const hashChanged = () => {
    route.value = readRoute();
    notice.value = null;
  };
  const unload = (event: BeforeUnloadEvent) => {
    if (holdsWork.value) event.preventDefault();
  };
  addEventListener('hashchange', hashChanged);
  addEventListener('beforeunload', unload);
  onSignedOut(() => {
    session.value = me.value === null ? 'out' : 'expired';
  });
  return () => {
    removeEventListener('hashchange', hashChanged);
    removeEventListener('beforeunload', unload);
  };
}

/** Go on with the session that the browser has; with `again` one that may have come back. */
export async function resume(again = false): Promise<void> {
  try {
    entered(await readMe());
  } catch {
    if (!again) session.value = 'out';
  }
}

export function entered(who: Me): void {
  const other = me.value !== null && me.value.userId !== who.userId;
  suggestLanguage(who.locale);
  me.value = who;
  session.value = 'in';
  // Somebody else's unsaved work is not this person's to sign.
  if (other) location.reload();
}

export async function leave(): Promise<void> {
  if (!mayLeave()) return;
  let elsewhere: string | null = null;
  try {
    elsewhere = await endSession();
  } finally {
    location.hash = '#/';
    if (elsewhere === null) location.reload();
    else location.assign(elsewhere);
  }
}

export function may(action: string): boolean {
  return me.value?.may.has(action) ?? false;
}

/** A failure in words for the person at the screen. */
export function explain(error: unknown): string {
  if (!(error instanceof ApiError)) return t('app.failed', { detail: String(error) });
  if (error.status === 0) return t('app.unreachable');
  const words = error.status === 403 ? t('app.refused') : t('app.failed', { detail: error.message });
  return error.requestId ? `${words} (${t('app.requestId', { id: error.requestId })})` : words;
}

const GOOD_NEWS_MS = 5000;

export function say(text: string, tone: 'good' | 'bad' = 'good'): void {
  const said = { text, tone };
  notice.value = said;
  if (tone === 'bad') return;
  setTimeout(() => {
    if (notice.value === said) notice.value = null;
  }, GOOD_NEWS_MS);
}
