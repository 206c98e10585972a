// Studies beside the orders that they may answer, as the node compares them.
import { json } from './http';

export type Why = 'no-order' | 'unknown-accession' | 'other-patient';
export type Verdict = 'linked' | 'unlinked';

export interface Person {
  patientId: string;
  issuer: string;
  name: string;
  birthDate: string | null;
  sex: string | null;
}
export interface Line {
  uid: string;
  studyDate: string | null;
  /** Null: it has what it needs, and was looked up. */
  why: Why | null;
  unknownToEhr: boolean;
  accessionNumber: string;
  patient: Person;
}
export interface Pair {
  ids: readonly [string, string];
  /** `number`, `person`: name and birth date. */
  shared: string[];
  differs: string[];
  patients: readonly [Person, Person];
}
export interface Unreconciled {
  ordersKnown: boolean;
  lines: Line[];
  /** Where the next page begins; empty: this is the last. */
  more: string;
  pairs: Pair[];
}
/** Whom a study can be filed under, and what an act has to carry of her. */
export interface Target {
  id: string;
  seen: string;
  patient: Person;
}
export interface Candidate {
  orderId: string;
  status: string;
  accessionNumber: string;
  placerNumber: string;
  scheduledOn: string | null;
  procedure: string;
  patient: Person;
  target: Target;
  namedBy: string | null;
  linked: boolean;
  verdict: Verdict | null;
  differs: string[];
  refused: '' | 'other-patient' | 'cancelled';
}
export interface Comparison {
  /** What an act has to carry: it is refused when anything has changed since. */
  seen: string;
  uid: string;
  studyDate: string | null;
  description: string;
  accessionNumber: string;
  reportStatus: string;
  patient: Person;
  why: Why | null;
  settled: boolean;
  /** Not empty: the study is void, and this is the one that stands in its place. */
  filedAs: string;
  orders: Candidate[];
}
export type Act =
  | { kind: 'link' | 'unlink'; orderId: string }
  | { kind: 'settle'; expected: boolean }
  | { kind: 'move'; target: Target; orderId: string | null };

const BASE = '/review/reconciliation';

export async function readUnreconciled(after: string, signal?: AbortSignal): Promise<Unreconciled> {
  const query = after ? `?${new URLSearchParams({ after })}` : '';
  const body = await json(`${BASE}${query}`, signal ? { signal } : {});
  return {
    ordersKnown: body.orders_known,
    more: body.more,
    lines: body.studies.map(toLine),
    // oxlint-disable-next-line no-explicit-any
    pairs: body.patients.map((row: any) => ({
      ids: row.ids,
      shared: row.shared,
      differs: row.differs,
      patients: row.patients.map(toPerson),
    })),
  };
}

/** Studies with this accession number or Study Instance UID, on the list or not. */
export async function findStudies(number: string): Promise<Line[]> {
  const body = await json(`${BASE}?${new URLSearchParams({ find: number })}`);
  return body.studies.map(toLine);
}

export async function readComparison(uid: string, signal?: AbortSignal): Promise<Comparison> {
  return toComparison(await json(`${BASE}/studies/${uid}`, signal ? { signal } : {}));
}

/** Do it, for a reason; answers both sides as they are then. */
export async function act(shown: Comparison, what: Act, reason: string): Promise<Comparison> {
  const body = { ...toldOf(what), reason, seen: shown.seen };
  const answer = await json(`${BASE}/studies/${shown.uid}/${what.kind}`, { method: 'POST', body });
  return what.kind === 'move' ? readComparison(shown.uid) : toComparison(answer);
}

function toldOf(what: Act): Record<string, unknown> {
  if (what.kind === 'settle') return { expected: what.expected };
  if (what.kind !== 'move') return { order_id: what.orderId };
  return { patient: what.target.id, seen_target: what.target.seen, order_id: what.orderId };
}

/** Patients with this Patient ID, of whichever issuer. */
export async function findPatients(number: string): Promise<Target[]> {
  const body = await json(`${BASE}/patients?${new URLSearchParams({ number })}`);
  return body.patients.map(toTarget);
}

// oxlint-disable-next-line no-explicit-any
export function toComparison(body: any): Comparison {
  return {
    seen: body.seen,
    uid: body.study.study_instance_uid,
    studyDate: body.study.study_date,
    description: body.study.description,
    accessionNumber: body.study.accession_number,
    reportStatus: body.study.report_status,
    patient: toPerson(body.study.patient),
    why: body.why,
    settled: body.settled,
    filedAs: body.filed_as,
    // oxlint-disable-next-line no-explicit-any
    orders: body.orders.map((row: any) => ({
      orderId: row.order_id,
      status: row.status,
      accessionNumber: row.accession_number,
      placerNumber: row.placer_order_number,
      scheduledOn: row.scheduled_on,
      procedure: row.procedure,
      patient: toPerson(row.patient),
      target: toTarget(row.target),
      namedBy: row.named_by,
      linked: row.linked,
      verdict: row.verdict,
      differs: row.differs,
      refused: row.refused,
    })),
  };
}

// oxlint-disable-next-line no-explicit-any
function toTarget(row: any): Target {
  return { id: row.id, seen: row.seen, patient: toPerson(row.patient) };
}

// oxlint-disable-next-line no-explicit-any
function toLine(row: any): Line {
  return {
    uid: row.study_instance_uid,
    studyDate: row.study_date,
    why: row.why,
    unknownToEhr: row.unknown_to_ehr,
    accessionNumber: row.accession_number,
    patient: toPerson(row.patient),
  };
}

// oxlint-disable-next-line no-explicit-any
export function toPerson(row: any): Person {
  return {
    patientId: row.patient_id,
    issuer: row.issuer,
    name: row.name,
    birthDate: row.birth_date,
    sex: row.sex,
  };
}

/** A DICOM name for reading: 张三 (ZHANG SAN) for `ZHANG^SAN=张^三`. */
export function nameOf(name: string): string {
  const [latin = '', own = ''] = name.split('=').map((group) => {
    const parts = group.split('^').filter(Boolean);
    return parts.join(/\p{Script=Han}/u.test(group) ? '' : ' ');
  });
  if (own && latin) return `${own} (${latin})`;
  return own || latin || '—';
}
