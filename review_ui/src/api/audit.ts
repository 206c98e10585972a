// The audit trail: AuditEvents of /fhir as rows, and what the auditor's page asks beside them.
import { json, send } from './http';
import type { Resource } from './types';

const FHIR = 'application/fhir+json';
const PAGE = 50;

export type Verb =
  | 'saw'
  | 'found'
  | 'wrote'
  | 'changed'
  | 'deleted'
  | 'used'
  | 'transferred'
  | 'tookOut'
  | 'signedIn'
  | 'signedOut'
  | 'readTrail';
export type Ending = 'served' | 'refused' | 'failed';

/** One event: what somebody did, to one woman at most. */
export interface Seen {
  id: string;
  /** The number of the entry in the chain; several events may be one entry. */
  entry: number;
  at: string;
  /** Null where nobody was signed in. */
  who: { id: string; name: string } | null;
  roles: string[];
  /** The program through which it was done, where that is another than `who`. */
  program: string | null;
  verb: Verb;
  /** The node's own word for the act. */
  act: string;
  ending: Ending;
  reason: string;
  what: string;
  patient: string | null;
  address: string;
  query: string;
  request: string;
  /** How often the same was repeated after an entry before this one; null for a single act. */
  repeated: number | null;
  details: [string, string][];
  source: Resource;
}

/** What is asked of the trail; what is empty is not asked. Days are the reader's own. */
export interface Asked {
  patients: string[];
  actor: string;
  from: string;
  until: string;
  ending: Ending | '';
}

export interface Page {
  rows: Seen[];
  /** The cursor of the page after this one, null behind the last. */
  next: string | null;
}

const OUTCOMES: Record<string, Ending> = { '0': 'served', '4': 'refused', '8': 'failed', '12': 'failed' };
const CODES: Record<Ending, string> = { served: '0', refused: '4', failed: '8,12' };
const INTERACTIONS: Record<string, Verb> = {
  read: 'saw',
  vread: 'saw',
  'history-instance': 'saw',
  'history-type': 'saw',
  'search-type': 'found',
  create: 'wrote',
  update: 'changed',
  patch: 'changed',
  delete: 'deleted',
};
const DICOM: Record<string, Verb> = {
  '110101': 'readTrail',
  '110103': 'saw',
  '110104': 'transferred',
  '110106': 'tookOut',
  '110112': 'found',
};
const SUBTYPES: Record<string, Verb> = { '110122': 'signedIn', '110123': 'signedOut' };
const LETTERS: Record<string, Verb> = { C: 'wrote', R: 'saw', U: 'changed', D: 'deleted' };

export function toSeen(event: Resource): Seen {
  const agents: Resource[] = event.agent ?? [];
  const entities: Resource[] = event.entity ?? [];
  const person = agents.find((agent) => roleOf(agent) === 'IRCP');
  // The node is the agent that has an address on the web; the other one called it.
  const caller = agents.find((agent) => agent !== person && agent.network?.type === '2');
  const query = entities.find((one) => one.query !== undefined);
  const data = entities.find((one) => one.type?.code === '2' && one !== query);
  const details = entities.flatMap((one) => (one.detail ?? []) as Resource[]);
  const told = new Map(details.map((one): [string, string] => [one.type, one.valueString ?? '']));
  const who = person === undefined ? null : whoOf(person);
  const called = caller?.who?.identifier?.value ?? '';
  const address = caller?.network?.address ?? '';
  return {
    id: event.id,
    entry: Number.parseInt(event.id, 10),
    at: event.recorded,
    who,
    roles: (person?.role ?? []).map((role: Resource) => role.text ?? ''),
    program: called === address || called === who?.id ? null : (caller?.who?.display ?? called) || null,
    verb: verbOf(event),
    act: ownWord(event),
    ending: OUTCOMES[event.outcome] ?? 'failed',
    reason: event.outcomeDesc ?? '',
    what: data === undefined ? '' : nameOf(data),
    patient: patientOf(entities),
    address,
    query: query === undefined ? '' : decoded(query.query),
    request: entities.find((one) => one.type?.code === 'XrequestId')?.what?.identifier?.value ?? '',
    repeated: told.has('repeated') ? Number(told.get('repeated')) : null,
    details: [...told].filter(([name]) => name !== 'repeated'),
    source: event,
  };
}

function roleOf(agent: Resource): string {
  return agent.type?.coding?.[0]?.code ?? '';
}

function whoOf(person: Resource): { id: string; name: string } {
  const id = person.who?.identifier?.value ?? '';
  return { id, name: person.name ?? person.who?.display ?? id };
}

function verbOf(event: Resource): Verb {
  const subtypes: Resource[] = event.subtype ?? [];
  const codes = subtypes.map((one) => String(one.code));
  const known = codes.map((code) => INTERACTIONS[code] ?? SUBTYPES[code]).find((verb) => verb !== undefined);
  return known ?? DICOM[event.type?.code] ?? LETTERS[event.action] ?? 'used';
}

function ownWord(event: Resource): string {
  const subtypes: Resource[] = event.subtype ?? [];
  return subtypes.find((one) => one.display !== undefined)?.display ?? '';
}

function nameOf(entity: Resource): string {
  const told = entity.what?.reference ?? entity.what?.identifier?.value ?? '';
  return String(told).replace(/^urn:oid:/, '');
}

function patientOf(entities: Resource[]): string | null {
  const one = entities.find((entity) => entity.type?.code === '1');
  const reference = one?.what?.reference;
  return typeof reference === 'string' ? reference.replace(/^Patient\//, '') : null;
}

function decoded(base64: string): string {
  const bytes = Uint8Array.from(atob(base64), (sign) => sign.codePointAt(0) ?? 0);
  return new TextDecoder().decode(bytes);
}

/** The search of AuditEvents for what was asked, newest first. */
export function toQuery(asked: Asked): string {
  const query = new URLSearchParams();
  if (asked.patients.length > 0) query.append('patient', asked.patients.join(','));
  if (asked.actor !== '') query.append('agent:identifier', asked.actor);
  if (asked.from !== '') query.append('date', `ge${startOf(asked.from, 0)}`);
  if (asked.until !== '') query.append('date', `lt${startOf(asked.until, 1)}`);
  if (asked.ending !== '') query.append('outcome', CODES[asked.ending]);
  query.append('_count', String(PAGE));
  return query.toString();
}

/** The first moment of a day here, or of one some days later. */
function startOf(day: string, later: number): string {
  const [year, month, date] = day.split('-').map(Number);
  return new Date(year!, month! - 1, date! + later).toISOString();
}

export function toPage(bundle: Resource): Page {
  const entries: Resource[] = bundle.entry ?? [];
  const links: Resource[] = bundle.link ?? [];
  const next = links.find((link) => link.relation === 'next')?.url;
  return {
    rows: entries
      .map((entry) => entry.resource as Resource)
      .filter((resource) => resource.resourceType === 'AuditEvent')
      .map(toSeen),
    // Only the cursor: the page asks the node that served it, by whatever name.
    next: next === undefined ? null : new URL(next).searchParams.get('_page'),
  };
}

export async function readTrail(asked: Asked): Promise<Page> {
  return toPage(await json(`/fhir/AuditEvent?${toQuery(asked)}`, { accept: FHIR }));
}

export async function readOlder(next: string): Promise<Page> {
  return toPage(await json(`/fhir/AuditEvent?_page=${encodeURIComponent(next)}`, { accept: FHIR }));
}

// --- beside the entries -----------------------------------------------------------

/** Somebody whom the trail names. */
export interface Actor {
  id: string;
  name: string;
  kind: 'person' | 'program' | 'other';
}

/** Every row of one patient; no name after her data were erased. */
export interface Woman {
  patients: string[];
  name: string;
}

/** A verification of the chain: what was to be looked at, and up to where it holds. */
export interface Check {
  first: number;
  last: number;
  held: number;
  endedAt: string | null;
  fault: string;
}

export interface Chain {
  entries: number;
  running: Check | null;
  newest: Check | null;
}

export async function readActors(): Promise<Actor[]> {
  return (await json('/review/audit/actors')).actors;
}

/** Whom a Patient ID or an accession number names; the number travels in a body. */
export async function findWomen(number: string): Promise<Woman[]> {
  return (await json('/review/audit/patients', { method: 'POST', body: { number } })).women;
}

/** Let the trail know that these rows become a file. */
export async function noteExport(form: string, rows: readonly Seen[]): Promise<void> {
  const entries = rows.map((row) => row.entry);
  const body = { form, first: Math.min(...entries), last: Math.max(...entries), events: rows.length };
  await send('/review/audit/exports', { method: 'POST', body });
}

export async function readChain(background: boolean): Promise<Chain> {
  return toChain(await json('/review/audit/chain', { background }));
}

export async function startCheck(whole: boolean): Promise<Chain> {
  return toChain(await json('/review/audit/chain', { method: 'POST', body: { whole } }));
}

// oxlint-disable-next-line no-explicit-any
function toChain(body: any): Chain {
  return { entries: body.entries, running: toCheck(body.running), newest: toCheck(body.newest) };
}

// oxlint-disable-next-line no-explicit-any
function toCheck(body: any): Check | null {
  if (body === null) return null;
  return { first: body.first, last: body.last, held: body.held, endedAt: body.ended_at, fault: body.fault };
}
