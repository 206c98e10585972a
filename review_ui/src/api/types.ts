// What the screens see of a report: small, complete types without optional-everything.
import type { LesionKey } from '../lexicon';

/** null: not assessed. Empty: assessed, and none seen. Never the same thing. */
export type Value = readonly string[] | null;

export type Status =
  | 'partial'
  | 'preliminary'
  | 'final'
  | 'amended'
  | 'corrected'
  | 'appended'
  | 'entered-in-error';

export type Side = 'L' | 'R' | 'B';

export interface Person {
  id: string | null;
  /** Masked by the node for everybody who reads images: 张*. */
  name: string;
  sex: 'female' | 'male' | 'other' | 'unknown';
  age: number | null;
}

export interface FieldState {
  /** Id of the Observation that holds the value. */
  id: string;
  value: Value;
  /** What the AI said; null when it had no opinion. */
  ai: Value;
}

export interface Box {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
}

export interface Size {
  longAxisMm: number;
  widthMm: number;
  heightMm: number;
  /** Across the drawn plane; null when no view in the other plane measured it. */
  lengthMm: number | null;
}

export interface Lesion {
  id: string;
  number: number;
  side: Side | null;
  clock: number | null;
  sopInstanceUid: string | null;
  frame: number;
  box: Box | null;
  heatMap: string | null;
  probability: number | null;
  size: Size | null;
  fields: Record<LesionKey, FieldState>;
}

/** The same words in both languages of the page. */
export interface Words {
  zh: string;
  en: string;
}

export type NotRead = Words;

/** Whether all images of a study came, and on whose word it was closed. */
export interface Completeness {
  state: 'complete' | 'incomplete' | 'discontinued';
  words: Words;
}

export interface Report {
  id: string;
  version: string;
  status: Status;
  person: Person;
  studyUid: string | null;
  studyDate: string | null;
  accession: string;
  lesions: Lesion[];
  category: FieldState;
  followup: FieldState;
  adviceText: string;
  impression: string;
  patientSummary: string;
  notRead: NotRead[];
  /** null while the study was not closed by the node, or long ago. */
  completeness: Completeness | null;
  /** What came after the doctor's version; null when nothing did. */
  late: Words | null;
  issued: string | null;
  signedBy: string | null;
  aiName: string | null;
  /** As received, for writing back what the screen does not know of. */
  sources: Sources;
}

export interface Sources {
  report: Resource;
  observations: Map<string, Resource>;
}

/** A FHIR resource as parsed; only `api/` looks inside. */
// oxlint-disable-next-line no-explicit-any
export type Resource = { [element: string]: any };

export interface WorklistRow {
  id: string;
  status: Status;
  person: Person;
  studyDate: string | null;
  accession: string;
  side: Side | null;
  category: string | null;
  categoryByAi: boolean;
  probability: number | null;
  longAxisMm: number | null;
  lesions: number;
  notRead: NotRead[];
  /** null while the study was not closed by the node, or long ago. */
  completeness: Completeness | null;
  /** What came after the doctor's version; null when nothing did. */
  late: Words | null;
  updated: string;
}

export interface Exam {
  person: Person;
  studyDate: string | null;
  accession: string;
}

export interface FailedWork {
  id: string;
  reason: Words;
  /** Whose examination it is; null when the work is about none. */
  exam: Exam | null;
  since: string | null;
  /** Not failed, but left out on purpose: the examination was broken off. */
  cancelled: boolean;
  source: Resource;
}

export interface Region {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
  /** cm per pixel, without sign. */
  dx: number;
  dy: number;
}

export interface Clip {
  sopInstanceUid: string;
  rows: number;
  columns: number;
  frames: number;
  framesPerSecond: number;
  /** Regions in which a length may be given in millimetres. */
  regions: Region[];
  /** What the AI looks at: the one tissue region, or the whole image. */
  read: Box;
  frameUrl: (frame: number) => string;
  thumbnailUrl: string;
}

export function isSigned(status: Status): boolean {
  return ['final', 'amended', 'corrected', 'appended'].includes(status);
}

export function sameValue(a: Value, b: Value): boolean {
  if (a === null || b === null) return a === b;
  return a.length === b.length && a.every((key) => b.includes(key));
}
