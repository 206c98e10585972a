// How far AI and doctors agree, as the node counts it.
import { json } from './http';

export interface Estimate {
  value: number;
  low: number;
  high: number;
}
export interface Pair {
  /** Keys of the lexicon, several joined by `+`; null: not assessed. */
  ai: string | null;
  signed: string | null;
  n: number;
}
export interface Trials {
  agreed: number;
  total: number;
}
export interface Period extends Trials {
  starts: string;
}
export interface TermRow {
  term: string;
  both: number;
  aiOnly: number;
  signedOnly: number;
  neither: number;
  kappa: Estimate | null;
}
export interface Figures {
  compared: number;
  agreed: number;
  /** Too few pairs to judge. */
  few: boolean;
  agreement: Estimate | null;
  kappa: Estimate | null;
}
export type FieldKind = 'category' | 'single' | 'multiple' | 'lesion';
export interface FieldRow extends Figures {
  field: string;
  kind: FieldKind;
  labels: string[];
  notAssessedByAi: number;
  addedByDoctor: number;
  removedByDoctor: number;
  offScale: number;
  terms: TermRow[];
  pairs: Pair[];
  trend: Period[];
}
export interface DeviceRow extends Figures {
  model: string;
  machine: string;
  reports: number;
}
export type Verdict = 'steady' | 'drifted' | 'too_few';
export interface FieldDrift {
  field: string;
  verdict: Verdict;
  pValue: number | null;
  window: Trials;
  reference: Trials;
  since: string | null;
}
export interface Drift {
  model: string;
  name: string;
  /** Reports that are judged together, and how often nothing is taken for something. */
  size: number;
  alpha: number;
  reports: number;
  /** When the first and the last report of the judged window were signed. */
  window: readonly [string, string] | null;
  fields: FieldDrift[];
}
export interface Agreement {
  reports: number;
  leastPairs: number;
  models: { id: string; name: string; reports: number }[];
  machines: { name: string; reports: number }[];
  fields: FieldRow[];
  devices: DeviceRow[];
  drift: Drift | null;
}

export const GRAINS = ['month', 'week'] as const;
export interface Question {
  model: string | null;
  machine: string | null;
  /** Back from today; null: from the beginning. */
  months: number | null;
  grain: (typeof GRAINS)[number];
}

export async function readAgreement(asked: Question, signal: AbortSignal): Promise<Agreement> {
  const query = new URLSearchParams({ grain: asked.grain });
  if (asked.model !== null) query.set('model', asked.model);
  if (asked.machine !== null) query.set('machine', asked.machine);
  if (asked.months !== null) query.set('months', String(asked.months));
  return toAgreement(await json(`/review/agreement?${query}`, { signal }));
}

// oxlint-disable-next-line no-explicit-any
export function toAgreement(body: any): Agreement {
  return {
    reports: body.reports,
    leastPairs: body.least_pairs,
    models: body.models,
    machines: body.machines,
    fields: body.fields.map(toField),
    devices: body.devices.map(toDevice),
    drift: body.drift === null ? null : toDrift(body.drift),
  };
}

// oxlint-disable-next-line no-explicit-any
function toFigures(row: any): Figures {
  return {
    compared: row.compared,
    agreed: row.agreed,
    few: row.few,
    agreement: row.agreement ?? null,
    kappa: row.kappa ?? null,
  };
}

// oxlint-disable-next-line no-explicit-any
function toField(row: any): FieldRow {
  return {
    ...toFigures(row),
    field: row.field,
    kind: row.kind,
    labels: row.labels,
    notAssessedByAi: row.not_assessed_by_ai,
    addedByDoctor: row.added_by_doctor,
    removedByDoctor: row.removed_by_doctor,
    offScale: row.off_scale,
    // oxlint-disable-next-line no-explicit-any
    terms: row.terms.map((term: any) => ({
      term: term.term,
      both: term.both,
      aiOnly: term.ai_only,
      signedOnly: term.signed_only,
      neither: term.neither,
      kappa: term.kappa ?? null,
    })),
    pairs: row.pairs,
    trend: row.trend,
  };
}

// oxlint-disable-next-line no-explicit-any
function toDevice(row: any): DeviceRow {
  return { ...toFigures(row), model: row.model, machine: row.machine, reports: row.reports };
}

// oxlint-disable-next-line no-explicit-any
function toDrift(body: any): Drift {
  return {
    model: body.model,
    name: body.name,
    size: body.size,
    alpha: body.alpha,
    reports: body.reports,
    window: body.window,
    // oxlint-disable-next-line no-explicit-any
    fields: body.fields.map((row: any) => ({
      field: row.field,
      verdict: row.verdict,
      pValue: row.p_value,
      window: row.window,
      reference: row.reference,
      since: row.since,
    })),
  };
}
