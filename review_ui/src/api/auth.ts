// Signing in, and the desk QR code.
import { json, send, useCsrf } from './http';

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

export async function signIn(login: string, password: string): Promise<Me> {
  return toMe(await json('/auth/login', { method: 'POST', body: { login, password } }));
}

export async function signOut(): Promise<void> {
  await send('/auth/logout', { method: 'POST' });
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
