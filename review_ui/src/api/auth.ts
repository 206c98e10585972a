// Signing in, and the desk QR code.
import { json, useCsrf } from './http';

export interface PatientText {
  text_zh: string;
  text_en: string;
  advice_zh: string;
  advice_en: string;
}

export interface Me {
  userId: string;
  display: string;
  practitionerId: string | null;
  locale: 'zh' | 'en';
  may: ReadonlySet<string>;
  departmentPhone: string;
  patientTexts: Record<string, PatientText>;
}

export interface DeskCode {
  svg: string;
  expiresAt: string;
  display: string;
  hasCheck: boolean;
}

// oxlint-disable-next-line no-explicit-any
function toMe(body: any): Me {
  useCsrf(body.csrf);
  return {
    userId: body.user_id,
    display: body.display,
    practitionerId: body.practitioner_id ?? null,
    locale: body.locale === 'en' ? 'en' : 'zh',
    may: new Set<string>(body.may),
    departmentPhone: body.site?.department_phone ?? '',
    patientTexts: body.site?.patient_texts ?? {},
  };
}

export async function readMe(): Promise<Me> {
  return toMe(await json('/auth/me'));
}

/** How people sign in here: by the hospital's sign-on, by a password, or both. */
export interface WaysIn {
  signOn: boolean;
  passwords: boolean;
  locale: 'zh' | 'en';
}

export async function readWaysIn(): Promise<WaysIn> {
  const body = await json('/auth/sign-in');
  return {
    signOn: body.sign_on === true,
    passwords: body.passwords !== false,
    locale: body.locale === 'en' ? 'en' : 'zh',
  };
}

/** Where the hospital's sign-on begins; afterwards the page shows `hash` again. */
export function signOnHref(hash: string): string {
  return `/auth/oidc/start?back=${encodeURIComponent(hash.startsWith('#/') ? hash : '#/')}`;
}

export async function signIn(login: string, password: string): Promise<Me> {
  return toMe(await json('/auth/login', { method: 'POST', body: { login, password } }));
}

/** End the session; the address at which the hospital's own goes on to be ended, if it does. */
export async function signOut(): Promise<string | null> {
  const body = await json('/auth/logout', { method: 'POST' });
  return typeof body?.leave === 'string' && body.leave.startsWith('/') ? body.leave : null;
}

export async function printDeskCode(patientId: string): Promise<DeskCode> {
  const body = await json('/auth/bindings', {
    method: 'POST',
    body: { patient: `Patient/${patientId}` },
  });
  return {
    svg: body.svg,
    expiresAt: body.expires_at,
    display: body.display,
    hasCheck: body.check === true,
  };
}
