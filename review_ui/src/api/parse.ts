// From FHIR resources to what the screens see.
import { FIELD_KEYS, type LesionKey, SIDES, CLOCK } from '../lexicon';
import { readField, readFollowup } from './codes';
import type {
  Box,
  Completeness,
  Exam,
  FailedWork,
  FieldState,
  Lesion,
  NotRead,
  Person,
  Report,
  Resource,
  Side,
  Size,
  Status,
  Value,
  Words,
  WorklistRow,
} from './types';
import { worstCategory } from '../lexicon';

const OURS = 'https://fhir.sononode.org/StructureDefinition';
const TRANSLATION = 'http://hl7.org/fhir/StructureDefinition/translation';

const SUFFIX: Record<LesionKey, string> = {
  shape: 'shape',
  orientation: 'orientation',
  margin: 'margin',
  lesion_boundary: 'boundary',
  calcifications: 'calcification',
  echo_pattern: 'echo',
  posterior_features: 'posterior',
  assessment_category: 'category',
};

/** Resources of one answer by `Type/id`. */
export class Index {
  private readonly byReference = new Map<string, Resource>();

  add(bundle: Resource): this {
    for (const entry of bundle.entry ?? []) {
      const resource = entry.resource;
      if (resource?.id) this.byReference.set(`${resource.resourceType}/${resource.id}`, resource);
    }
    return this;
  }

  get(reference: string | undefined): Resource | undefined {
    return reference === undefined ? undefined : this.byReference.get(reference);
  }

  all(type: string): Resource[] {
    return [...this.byReference.values()].filter((row) => row.resourceType === type);
  }

  /** References that the reports and their lesions make and that are not here. */
  missingObservations(): string[] {
    const wanted = [
      ...this.all('DiagnosticReport').flatMap((report) => references(report.result)),
      ...this.all('Observation').flatMap((root) => references(root.hasMember)),
    ];
    return wanted.filter((reference) => !this.byReference.has(reference));
  }
}

export function references(list: Resource[] | undefined): string[] {
  return (list ?? []).map((item) => String(item.reference).replace(/\/_history\/.*$/, ''));
}

export function idOf(reference: string | undefined): string | null {
  return reference?.split('/')[1] ?? null;
}

function extensions(resource: Resource | undefined, name: string): Resource[] {
  return (resource?.extension ?? []).filter((row: Resource) => row.url === `${OURS}/${name}`);
}

function part(extension: Resource | undefined, url: string): Resource | undefined {
  return extension?.extension?.find((row: Resource) => row.url === url);
}

// --- people and studies -------------------------------------------------------

export function toPerson(patient: Resource | undefined, reference: Resource | undefined, on: string | null): Person {
  const named = patient?.name?.[0];
  const spoken = [named?.family, ...(named?.given ?? [])].filter(Boolean).join(' ');
  return {
    id: idOf(reference?.reference),
    name: named?.text ?? (spoken || reference?.display || '*'),
    sex: ['female', 'male', 'other'].includes(patient?.gender) ? patient?.gender : 'unknown',
    age: ageOf(patient, on),
  };
}

function ageOf(patient: Resource | undefined, on: string | null): number | null {
  const told = extensions(patient, 'patient-age')[0];
  const age = told?.valueString ?? told?.valueAge?.value ?? told?.valueInteger;
  if (age !== undefined && Number.isFinite(Number.parseInt(age, 10))) return Number.parseInt(age, 10);
  const born = patient?.birthDate;
  if (!born || born.length < 10 || !on) return null;
  const years = Number(on.slice(0, 4)) - Number(born.slice(0, 4));
  return on.slice(5, 10) < born.slice(5, 10) ? years - 1 : years;
}

export function toSide(site: Resource | undefined): Side | null {
  for (const coding of site?.coding ?? []) {
    for (const side of ['L', 'R', 'B'] as const) {
      if (coding.code === SIDES[side]?.code) return side;
    }
  }
  return null;
}

export function toNotRead(report: Resource): NotRead[] {
  return extensions(report, 'not-read').map((row) => toWords(row));
}

export function toCompleteness(report: Resource): Completeness | null {
  const told = extensions(report, 'study-completeness')[0];
  const state = part(told, 'state')?.valueCode;
  const words = part(told, 'words');
  if (!words || !['complete', 'incomplete', 'discontinued'].includes(state)) return null;
  return { state, words: toWords(words) };
}

export function toLateImages(report: Resource): Words | null {
  const words = part(extensions(report, 'late-images')[0], 'words');
  return words ? toWords(words) : null;
}

function toWords(row: Resource): Words {
  const zh = String(row.valueString ?? '');
  return { zh, en: translated(row['_valueString'], 'en') ?? zh };
}

/** What the translation extension of a text says; `element` is the `_text` beside it. */
function translated(element: Resource | undefined, lang: string): string | undefined {
  const found = (element?.extension ?? []).find(
    (entry: Resource) => entry.url === TRANSLATION && part(entry, 'lang')?.valueCode === lang,
  );
  return part(found, 'content')?.valueString;
}

function accessionOf(report: Resource): string {
  const found = (report.identifier ?? []).find((row: Resource) =>
    row.type?.coding?.some((coding: Resource) => coding.code === 'ACSN'),
  );
  return found?.value ?? '';
}

// --- lesions --------------------------------------------------------------------

function toSize(observation: Resource | undefined): Size | null {
  const lengths: (number | undefined)[] = (observation?.component ?? []).map(
    (row: Resource) => row.valueQuantity?.value,
  );
  const [longAxisMm, widthMm, heightMm, lengthMm] = lengths;
  if (longAxisMm === undefined || widthMm === undefined || heightMm === undefined) return null;
  return { longAxisMm, widthMm, heightMm, lengthMm: lengthMm ?? null };
}

/** 0..1, only where the AI gave one. */
function toProbability(observation: Resource | undefined): number | null {
  const percent = observation?.valueQuantity?.value;
  return typeof percent === 'number' ? percent / 100 : null;
}

function toBox(text: string | undefined): Box | null {
  const [x0, y0, x1, y1] = (text ?? '').split(',').map(Number);
  const numbers = [x0, y0, x1, y1];
  if (numbers.some((n) => n === undefined || Number.isNaN(n))) return null;
  return { x0: x0!, y0: y0!, x1: x1!, y1: y1! };
}

function toClock(root: Resource): number | null {
  for (const component of root.component ?? []) {
    for (const coding of component.valueCodeableConcept?.coding ?? []) {
      const hour = Object.keys(CLOCK).find((key) => CLOCK[key]?.code === coding.code);
      if (hour) return Number(hour);
    }
  }
  return null;
}

export function saidByAi(observation: Resource | undefined): boolean {
  return typeof observation?.device?.reference === 'string';
}

/** What the AI said of a field: now, or in the version that it wrote. */
export type AiVersions = ReadonlyMap<string, Resource>;

function aiVersion(observation: Resource | undefined, older: AiVersions): Resource | undefined {
  if (!observation) return undefined;
  return saidByAi(observation) ? observation : older.get(observation.id);
}

function toFieldState(id: string, key: LesionKey, index: Index, older: AiVersions): FieldState {
  const observation = index.get(`Observation/${id}`);
  return { id, value: readField(key, observation), ai: readField(key, aiVersion(observation, older)) };
}

function toLesion(root: Resource, index: Index, older: AiVersions): Lesion {
  const region = extensions(root, 'lesion-region')[0];
  const uid = part(region, 'sopInstanceUid')?.valueOid;
  const keys: LesionKey[] = [...FIELD_KEYS, 'assessment_category'];
  const states = keys.map((key) => [key, toFieldState(`${root.id}-${SUFFIX[key]}`, key, index, older)]);
  return {
    id: root.id,
    number: Number(/-l(\d+)$/.exec(root.id)?.[1] ?? 1),
    side: toSide(root.bodySite),
    clock: toClock(root),
    sopInstanceUid: uid ? String(uid).replace('urn:oid:', '') : null,
    frame: part(region, 'frame')?.valuePositiveInt ?? 1,
    box: toBox(part(region, 'box')?.valueString),
    heatMap: extensions(root, 'heat-map')[0]?.valueString ?? null,
    probability: toProbability(index.get(`Observation/${root.id}-probability`)),
    size: toSize(index.get(`Observation/${root.id}-size`)),
    fields: Object.fromEntries(states),
  };
}

function lesionRoots(report: Resource, index: Index): Resource[] {
  return references(report.result)
    .filter((reference) => /-l\d+$/.test(reference))
    .map((reference) => index.get(reference))
    .filter((root): root is Resource => root !== undefined);
}

// --- reports ---------------------------------------------------------------------

export function toReport(report: Resource, index: Index, older: AiVersions): Report {
  const studyDate = report.effectiveDateTime ?? null;
  const category = toFieldState(`${report.id}-category`, 'assessment_category', index, older);
  const advice = index.get(`Observation/${report.id}-advice`);
  const observations = index.all('Observation').map((row) => [row.id, row] as const);
  return {
    id: report.id,
    version: report.meta?.versionId ?? '1',
    status: report.status as Status,
    person: toPerson(index.get(report.subject?.reference), report.subject, studyDate),
    studyUid: idOf(report.imagingStudy?.[0]?.reference),
    studyDate,
    accession: accessionOf(report),
    lesions: lesionRoots(report, index).map((root) => toLesion(root, index, older)),
    category,
    followup: {
      id: `${report.id}-advice`,
      value: readFollowup(advice),
      ai: readFollowup(aiVersion(advice, older)),
    },
    adviceText: advice?.valueCodeableConcept?.text ?? '',
    impression: report.conclusion ?? '',
    patientSummary: extensions(report, 'patient-summary')[0]?.valueString ?? '',
    notRead: toNotRead(report),
    completeness: toCompleteness(report),
    late: toLateImages(report),
    issued: report.issued ?? null,
    signedBy: idOf(report.resultsInterpreter?.[0]?.reference),
    aiName: null,
    sources: { report, observations: new Map(observations) },
  };
}

export function toWorklistRow(report: Resource, index: Index): WorklistRow {
  const studyDate = report.effectiveDateTime ?? null;
  const roots = lesionRoots(report, index);
  const overall = index.get(`Observation/${report.id}-category`);
  const probabilities = roots.map((root) => toProbability(index.get(`Observation/${root.id}-probability`)));
  const sizes = roots.map((root) => toSize(index.get(`Observation/${root.id}-size`))?.longAxisMm ?? null);
  return {
    id: report.id,
    status: report.status as Status,
    person: toPerson(index.get(report.subject?.reference), report.subject, studyDate),
    studyDate,
    accession: accessionOf(report),
    side: sideOfAll(roots.map((root) => toSide(root.bodySite))),
    category: worstCategory([first(readField('assessment_category', overall))]),
    categoryByAi: saidByAi(overall),
    probability: highest(probabilities),
    longAxisMm: highest(sizes),
    lesions: roots.length,
    notRead: toNotRead(report),
    completeness: toCompleteness(report),
    late: toLateImages(report),
    updated: report.meta?.lastUpdated ?? '',
  };
}

export function first(value: Value): string | null {
  return value?.[0] ?? null;
}

function highest(numbers: (number | null)[]): number | null {
  const known = numbers.filter((n): n is number => n !== null);
  return known.length ? Math.max(...known) : null;
}

function sideOfAll(sides: (Side | null)[]): Side | null {
  const known = new Set(sides.filter((side) => side !== null));
  if (known.size > 1) return 'B';
  return [...known][0] ?? null;
}

/** An examination with its patient, both in `studies`. */
export function toExam(study: Resource, studies: Index): Exam {
  const studyDate = study.started ?? null;
  return {
    person: toPerson(studies.get(study.subject?.reference), study.subject, studyDate),
    studyDate,
    accession: accessionOf(study),
  };
}

export function toFailedWork(task: Resource, exam: Exam | null): FailedWork {
  const en = String(task.statusReason?.text ?? '');
  return {
    id: task.id,
    reason: { zh: translated(task.statusReason?.['_text'], 'zh-CN') ?? en, en },
    exam,
    since: task.lastModified ?? task.meta?.lastUpdated ?? null,
    cancelled: task.status === 'cancelled',
    source: task,
  };
}
