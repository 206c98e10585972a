// What a doctor's work becomes on the wire: one FHIR transaction.
import type { LesionKey } from '../lexicon';
import type { Draft } from '../report/draft';
import { saysWhat } from '../report/draft';
import { writeAdvice, writeField } from './codes';
import type { Report, Resource, Status } from './types';
import { sameValue } from './types';

const PATIENT_SUMMARY = 'https://fhir.sononode.org/StructureDefinition/patient-summary';
const VALUE_ELEMENTS = ['valueCodeableConcept', 'component', 'dataAbsentReason'];

export type Medium = 'phone' | 'in-person';

export interface Act {
  status: Status;
  /** Mandatory once the report has been signed. */
  reason: string;
  /** How the patient was told, when she was. */
  told: Medium | null;
  practitionerId: string | null;
  at: string;
}

export function buildTransaction(report: Report, draft: Draft, act: Act): Resource {
  const entries = changedObservations(report, draft, act).map((resource) => put(resource));
  entries.push(put(reportResource(report, draft, act.status)));
  if (act.reason.trim()) entries.push(post(provenance(report, act)));
  if (act.told) entries.push(post(communication(report, act)));
  return { resourceType: 'Bundle', type: 'transaction', entry: entries };
}

function changedObservations(report: Report, draft: Draft, act: Act): Resource[] {
  const changed: Resource[] = [];
  for (const { state, key } of saysWhat(report)) {
    const value = draft.values[state.id] ?? null;
    if (!sameValue(value, state.value)) changed.push(observation(report, state.id, writeField(key, value), act));
  }
  const sameAdvice = sameValue(draft.followup, report.followup.value) && draft.adviceText === report.adviceText;
  if (!sameAdvice) {
    changed.push(observation(report, report.followup.id, writeAdvice(draft.followup, draft.adviceText.trim()), act));
  }
  return changed;
}

/** The Observation with a new value: the doctor's from now on, no longer the AI's. */
function observation(report: Report, id: string, value: Resource, act: Act): Resource {
  const source = report.sources.observations.get(id);
  if (!source) throw new Error(`Observation/${id} was not read`);
  const kept = Object.entries(source).filter(([name]) => name !== 'device' && !VALUE_ELEMENTS.includes(name));
  const meta = { ...source.meta, security: withoutAi(source.meta?.security) };
  const performer = act.practitionerId ? { performer: [{ reference: `Practitioner/${act.practitionerId}` }] } : {};
  return { ...Object.fromEntries(kept), meta, ...performer, ...value };
}

function withoutAi(security: Resource[] | undefined): Resource[] | undefined {
  const kept = (security ?? []).filter((label) => label.code !== 'AIAST');
  return kept.length ? kept : undefined;
}

export function reportResource(report: Report, draft: Draft, status: Status): Resource {
  const source = report.sources.report;
  const extension: Resource[] = (source.extension ?? []).filter((row: Resource) => row.url !== PATIENT_SUMMARY);
  const summary = draft.patientSummary.trim();
  if (summary) extension.push({ url: PATIENT_SUMMARY, valueString: summary });
  const resource: Resource = { ...source, status };
  resource.meta = { ...source.meta, security: withoutAi(source.meta?.security) };
  delete resource.extension;
  delete resource.conclusion;
  if (extension.length) resource.extension = extension;
  if (draft.impression.trim()) resource.conclusion = draft.impression.trim();
  return resource;
}

function provenance(report: Report, act: Act): Resource {
  const who = { reference: `Practitioner/${act.practitionerId ?? 'unknown'}` };
  return {
    resourceType: 'Provenance',
    target: [{ reference: `DiagnosticReport/${report.id}` }],
    recorded: act.at,
    reason: [{ text: act.reason.trim() }],
    agent: [{ who }],
  };
}

/** The record that the patient heard the result from a person before she reads it. */
export function communication(report: Report, act: Act): Resource {
  return {
    resourceType: 'Communication',
    status: 'completed',
    about: [{ reference: `DiagnosticReport/${report.id}` }],
    subject: report.sources.report.subject?.reference
      ? { reference: report.sources.report.subject.reference }
      : undefined,
    sent: act.at,
    medium: [{ text: act.told }],
  };
}

function put(resource: Resource): Resource {
  const version = resource.meta?.versionId;
  return {
    resource,
    request: { method: 'PUT', url: `${resource.resourceType}/${resource.id}`, ifMatch: `W/"${version}"` },
  };
}

function post(resource: Resource): Resource {
  return { resource, request: { method: 'POST', url: resource.resourceType } };
}

export type { LesionKey };
