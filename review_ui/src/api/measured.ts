// What the ultrasound machine itself measured, as its Structured Report tells it.
import { json } from './http';

export interface Measured {
  /** Headings of the machine, outermost first, with its name for the lesion. */
  group: string[];
  site: string;
  name: { zh: string; en: string };
  /** The decimal as sent; null when the machine left it empty, which is not zero. */
  value: string | null;
  unit: string;
  /** A word instead of a number. */
  term: string | null;
  qualifier: string;
  derivation: string;
}

export interface MachineReport {
  title: string;
  device: string;
  /** The software that measured, when none of a person's hands did. */
  algorithm: string | null;
  verified: boolean;
  leftOut: number;
  measurements: Measured[];
}

/** Measurements of one lesion of the machine, under one heading. */
export interface Group {
  heading: string;
  rows: Measured[];
}

export async function readMeasured(reportId: string, signal: AbortSignal): Promise<MachineReport[]> {
  return toMachineReports(await json(`/review/measured/${reportId}`, { signal }));
}

// oxlint-disable-next-line no-explicit-any
export function toMachineReports(body: any): MachineReport[] {
  // oxlint-disable-next-line no-explicit-any
  return (body.reports ?? []).map((report: any) => ({
    title: report.title,
    device: report.device,
    algorithm: report.algorithm ?? null,
    verified: report.verified === true,
    leftOut: report.left_out ?? 0,
    // oxlint-disable-next-line no-explicit-any
    measurements: report.measurements.map((row: any) => ({
      group: row.group ?? [],
      site: row.site ?? '',
      name: row.name,
      value: row.value ?? null,
      unit: row.unit ?? '',
      term: row.term ?? null,
      qualifier: row.qualifier ?? '',
      derivation: row.derivation ?? '',
    })),
  }));
}

/** Rows that stand under the same headings and site, in the order in which they came. */
export function grouped(rows: readonly Measured[]): Group[] {
  const groups = new Map<string, Measured[]>();
  for (const row of rows) {
    const heading = [...row.group, row.site].filter(Boolean).join(' · ');
    groups.set(heading, [...(groups.get(heading) ?? []), row]);
  }
  return [...groups].map(([heading, members]) => ({ heading, rows: members }));
}

/** "12.3 mm", the machine's word, or "—" where it left the value empty. */
export function shownValue(row: Measured): string {
  if (row.term !== null) return row.term;
  if (row.value === null) return row.qualifier ? `— (${row.qualifier})` : '—';
  return row.unit && row.unit !== '1' ? `${row.value} ${row.unit}` : row.value;
}
