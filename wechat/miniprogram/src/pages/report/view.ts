import type { Lesion, Report, Visit } from "../../api/reports";
import { catalogue, fill, type Language, type Messages } from "../../messages/catalogue";

export interface LesionRow {
  key: string;
  place: string;
  size: string;
  /** Width of the bar, 0 to 100 % of the largest size seen; null draws no bar. */
  barPercent: number | null;
}

export interface VisitRow {
  key: string;
  day: string;
  lesions: LesionRow[];
}

/** Everything the report page draws, already in the patient's language. */
export interface ReportView {
  state: Report["state"];
  subtitle: string;
  day: string;
  stateText: string;
  text: string;
  category: string;
  advice: string;
  summary: string;
  visits: VisitRow[];
  phone: string;
}

/** The view of `report`. Visits are listed only when there are at least two. */
export function toReportView(report: Report, language: Language): ReportView {
  const t = catalogue[language];
  const content = report.content;
  return {
    state: report.state,
    subtitle: subtitle(report, t),
    day: report.examinedOn === null ? "" : fill(t.examinedOn, dayText(report.examinedOn, language)),
    stateText: stateText(report, t),
    text: content?.text[language] ?? "",
    category: content === null ? "" : fill(t.categoryLabel, content.category),
    advice: content?.advice[language] ?? "",
    summary: content?.summary ?? "",
    visits: content === null ? [] : visitRows(content.visits, language),
    phone: report.departmentPhone,
  };
}

function subtitle(report: Report, t: Messages): string {
  const age = report.age === null ? "" : fill(t.age, report.age);
  return [t.breastUltrasound, report.name, age].filter((part) => part !== "").join(" · ");
}

function stateText(report: Report, t: Messages): string {
  if (report.state === "ready") return t.readyState;
  if (report.state === "withdrawn") return t.withdrawnState;
  return report.content?.amended === true ? t.amendedByDoctor : t.signedByDoctor;
}

/** A day as people of the language write it; anything else stays as it came. */
export function dayText(day: string, language: Language): string {
  const match = /^(\d{4})-(\d{2})-(\d{2})$/.exec(day);
  if (match === null) return day;
  const t = catalogue[language];
  const month = t.months.split(",")[Number(match[2]) - 1];
  if (month === undefined) return day;
  return fill(t.day, match[1] ?? "", month, String(Number(match[3])));
}

/** Longest diameter in mm, or "—" when it was not measured: never 0. */
export function sizeText(lesion: Lesion, t: Messages): string {
  if (lesion.sizeMm === null) return t.noMeasure;
  return `${Number(lesion.sizeMm.toFixed(1))} mm`;
}

export function placeText(lesion: Lesion, t: Messages): string {
  const sides = { L: t.left, R: t.right, B: t.both };
  const side = lesion.side === null ? "" : sides[lesion.side];
  const clock = lesion.clock === null ? "" : fill(t.clock, String(lesion.clock));
  return [side, clock].filter((part) => part !== "").join(" ") || t.noMeasure;
}

export function visitRows(visits: Visit[], language: Language): VisitRow[] {
  if (visits.length < 2) return [];
  const t = catalogue[language];
  const sizes = visits.flatMap((visit) => visit.lesions.map((lesion) => lesion.sizeMm ?? 0));
  const largest = Math.max(0, ...sizes);
  return visits.map((visit, visitIndex) => ({
    key: `v${visitIndex}`,
    day: visit.examinedOn === null ? t.noMeasure : dayText(visit.examinedOn, language),
    lesions: visit.lesions.map((lesion, index) => ({
      key: `v${visitIndex}-${index}`,
      place: placeText(lesion, t),
      size: sizeText(lesion, t),
      barPercent: barPercent(lesion.sizeMm, largest),
    })),
  }));
}

function barPercent(sizeMm: number | null, largestMm: number): number | null {
  if (sizeMm === null || largestMm <= 0) return null;
  return Math.round((100 * sizeMm) / largestMm);
}
