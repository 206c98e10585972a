// The rows that are shown, as files: AuditEvents as they came, or a table for a spreadsheet.
import type { Seen } from '../api/audit';

export type Form = 'csv' | 'ndjson';

const COLUMNS: [string, (row: Seen) => string | number | null][] = [
  ['id', (row) => row.id],
  ['recorded', (row) => row.at],
  ['who', (row) => row.who?.id ?? ''],
  ['name', (row) => row.who?.name ?? ''],
  ['roles', (row) => row.roles.join(' ')],
  ['program', (row) => row.program],
  ['act', (row) => row.act],
  ['outcome', (row) => row.source.outcome],
  ['outcomeDesc', (row) => row.reason],
  ['what', (row) => row.what],
  ['patient', (row) => row.patient],
  ['address', (row) => row.address],
  ['query', (row) => row.query],
  ['request', (row) => row.request],
  ['repeated', (row) => row.repeated],
];

export function toNdjson(rows: readonly Seen[]): string {
  return rows.map((row) => `${JSON.stringify(row.source)}\n`).join('');
}

/** RFC 4180 in UTF-8 with a mark, without which spreadsheets take Chinese for something else. */
export function toCsv(rows: readonly Seen[]): string {
  const lines = [COLUMNS.map(([name]) => name), ...rows.map((row) => COLUMNS.map(([, value]) => cell(value(row))))];
  return `\uFEFF${lines.map((line) => line.join(',')).join('\r\n')}\r\n`;
}

/** What begins like a formula is text: somebody else chose it, an AE title for one. */
function cell(value: string | number | null): string {
  const text = String(value ?? '');
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const TYPES: Record<Form, string> = { csv: 'text/csv;charset=utf-8', ndjson: 'application/fhir+ndjson' };

/** Hand a file to the browser. */
export function save(form: Form, rows: readonly Seen[]): void {
  const text = form === 'csv' ? toCsv(rows) : toNdjson(rows);
  const url = URL.createObjectURL(new Blob([text], { type: TYPES[form] }));
  const link = document.createElement('a');
  link.href = url;
  link.download = `audit-${rows.at(-1)?.entry ?? 0}-${rows[0]?.entry ?? 0}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
