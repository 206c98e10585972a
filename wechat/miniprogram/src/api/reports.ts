import type { Language } from "../messages/catalogue";

/** How much of a report the doctor has released to the patient. */
export type ReleaseState = "ready" | "released" | "withdrawn";

export interface ReportSummary {
  handle: string;
  state: ReleaseState;
  /** Day of the examination, YYYY-MM-DD, or null when the hospital sent none. */
  examinedOn: string | null;
  unread: boolean;
}

export interface ReportList {
  names: string[];
  reports: ReportSummary[];
  templateIds: string[];
  departmentPhone: string;
}

export interface Lesion {
  side: "L" | "R" | "B" | null;
  clock: number | null;
  /** Longest diameter in mm, or null when it was not measured: shown as "—", never 0. */
  sizeMm: number | null;
}

export interface Visit {
  examinedOn: string | null;
  lesions: Lesion[];
}

/** What the doctor released; only a released report has it. */
export interface Content {
  amended: boolean;
  category: string;
  text: Record<Language, string>;
  advice: Record<Language, string>;
  summary: string;
  visits: Visit[];
}

export interface Report extends ReportSummary {
  name: string;
  age: string | null;
  departmentPhone: string;
  content: Content | null;
}

type Json = Record<string, unknown>;

export function parseReportList(value: unknown): ReportList {
  const body = object(value);
  return {
    names: array(body.names).map(text),
    reports: array(body.reports).map((entry) => parseSummary(object(entry))),
    templateIds: array(body.template_ids).map(text),
    departmentPhone: text(body.department_phone),
  };
}

export function parseReport(value: unknown): Report {
  const body = object(value);
  const summary = parseSummary(body);
  return {
    ...summary,
    name: text(body.name),
    age: textOrNull(body.age),
    departmentPhone: text(body.department_phone),
    content: summary.state === "released" ? parseContent(body) : null,
  };
}

function parseSummary(body: Json): ReportSummary {
  return {
    handle: text(body.handle),
    state: parseState(body.state),
    examinedOn: textOrNull(body.examined_on),
    unread: body.unread === true,
  };
}

/** A state that this version does not know shows nothing, as a withdrawn one does. */
function parseState(value: unknown): ReleaseState {
  return value === "released" || value === "ready" ? value : "withdrawn";
}

function parseContent(body: Json): Content {
  return {
    amended: body.amended === true,
    category: text(body.category),
    text: bothLanguages(body.text),
    advice: bothLanguages(body.advice),
    summary: text(body.summary),
    visits: array(body.trend).map((entry) => parseVisit(object(entry))),
  };
}

function parseVisit(body: Json): Visit {
  return {
    examinedOn: textOrNull(body.examined_on),
    lesions: array(body.lesions).map((entry) => parseLesion(object(entry))),
  };
}

function parseLesion(body: Json): Lesion {
  const side = body.side;
  return {
    side: side === "L" || side === "R" || side === "B" ? side : null,
    clock: typeof body.clock === "number" ? body.clock : null,
    sizeMm: typeof body.size_mm === "number" ? body.size_mm : null,
  };
}

function bothLanguages(value: unknown): Record<Language, string> {
  const body = object(value);
  return { zh: text(body.zh), en: text(body.en) };
}

function object(value: unknown): Json {
  return typeof value === "object" && value !== null ? (value as Json) : {};
}

function array(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function textOrNull(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}
