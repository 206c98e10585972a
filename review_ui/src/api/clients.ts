// Programs of other systems (SMART clients): who they are, and what people left to them.
import { json } from './http';

export interface Key {
  kid: string;
  kind: string;
  sha256: string;
}

export interface Program {
  id: string;
  name: string;
  roles: string[];
  scopes: string[];
  keys: Key[];
  keysUri: string | null;
  redirects: string[];
  launchUrl: string | null;
  lastUsed: string | null;
  disabled: boolean;
}

export interface Grant {
  id: string;
  program: string;
  person: string;
  scopes: string[];
  offline: boolean;
  used: string;
  ends: string;
}

/** What an administrator enters; `keys` is the text of a JWKS as it was pasted. */
export interface Registration {
  name: string;
  role: string;
  scopes: string;
  keys: string;
  keysUri: string;
  redirects: string;
  launchUrl: string;
}

/** Keys that cannot be read as JSON; what is in them the node looks at. */
export class NotJson extends Error {}

// oxlint-disable-next-line no-explicit-any
export function toProgram(body: any): Program {
  const uri = String(body.keys ?? '');
  return {
    id: body.client_id,
    name: body.name,
    roles: body.roles ?? [],
    scopes: words(body.scopes),
    keys: body.fingerprints ?? [],
    keysUri: /^https?:/.test(uri) ? uri : null,
    redirects: body.redirect_uris ?? [],
    launchUrl: body.launch_url ?? null,
    lastUsed: body.last_used ?? null,
    disabled: body.disabled === true,
  };
}

// oxlint-disable-next-line no-explicit-any
export function toGrant(body: any): Grant {
  return {
    id: body.grant_id,
    program: body.program,
    person: body.person,
    scopes: words(body.scopes),
    offline: body.offline === true,
    used: body.used,
    ends: body.ends,
  };
}

/** The body of a registration: what was left empty is not sent. */
export function toBody(entered: Registration): Record<string, unknown> {
  const body: Record<string, unknown> = {
    name: entered.name.trim(),
    scopes: words(entered.scopes).join(' '),
    roles: entered.role === '' ? [] : [entered.role],
    redirect_uris: words(entered.redirects),
    ...toKeys(entered.keys, entered.keysUri),
  };
  if (entered.launchUrl.trim() !== '') body.launch_url = entered.launchUrl.trim();
  return body;
}

export function toKeys(pasted: string, uri: string): Record<string, unknown> {
  if (uri.trim() !== '') return { jwks_uri: uri.trim() };
  if (pasted.trim() === '') return {};
  try {
    return { jwks: JSON.parse(pasted) };
  } catch {
    throw new NotJson();
  }
}

export function words(text: unknown): string[] {
  return String(text ?? '').split(/\s+/).filter(Boolean);
}

export async function readPrograms(): Promise<Program[]> {
  return (await json('/auth/clients')).map(toProgram);
}

export async function readGrants(): Promise<Grant[]> {
  return (await json('/auth/grants')).map(toGrant);
}

export async function register(entered: Registration): Promise<Program> {
  return toProgram(await json('/auth/clients', { method: 'POST', body: toBody(entered) }));
}

export async function disable(id: string): Promise<void> {
  await json(`/auth/clients/${id}/disable`, { method: 'POST', body: {} });
}

export async function changeKeys(id: string, pasted: string, uri: string): Promise<void> {
  await json(`/auth/clients/${id}/keys`, { method: 'POST', body: toKeys(pasted, uri) });
}

export async function endGrant(id: string): Promise<void> {
  await json(`/auth/grants/${id}`, { method: 'DELETE' });
}

/** A program that a report can be opened in. */
export interface Named {
  id: string;
  name: string;
}

export async function readNamed(): Promise<Named[]> {
  const body: { client_id: string; name: string }[] = await json('/auth/programs');
  return body.map((one) => ({ id: one.client_id, name: one.name }));
}

/** The address at which a program opens on a report; it works once, for minutes. */
export async function launch(programId: string, reportId: string): Promise<string> {
  const body = await json('/auth/launches', { method: 'POST', body: { client: programId, report: reportId } });
  return String(body.url);
}
