// Two rows of patients side by side, and what people have said of such pairs.
import { json } from './http';
import { type Person, toPerson } from './reconciliation';

/** A row of a patient, and how much hangs on it. */
export interface Row {
  id: string;
  patient: Person;
  studies: number;
  namedByEhr: boolean;
  /** The numbers for which this row stands already. */
  others: string[];
}
export interface BothRows {
  /** What an act has to carry: it is refused when anything has changed since. */
  seen: string;
  rows: readonly [Row, Row];
  /** The row that gave way; null: they are two. */
  merged: string | null;
  differs: string[];
}
export type MergeAct = 'merge' | 'unmerge' | 'different';
export interface Said {
  /** Of a merge: who gave way, who stands. */
  ids: readonly [string, string];
  patients: readonly [Person, Person];
  verdict: 'same' | 'different';
  at: string;
  reason: string;
}

const ROWS = '/review/reconciliation/rows';

export async function readSaid(): Promise<Said[]> {
  return (await json(ROWS)).said.map(toSaid);
}

export async function readBothRows(ids: readonly [string, string]): Promise<BothRows> {
  return toBothRows(await json(`${ROWS}/${ids[0]}/${ids[1]}`));
}

/** Say it of two rows, for a reason; of a merge the second stands from now on. */
export async function sayOfRows(
  what: MergeAct,
  ids: readonly [string, string],
  seen: string,
  reason: string,
): Promise<void> {
  await json(`${ROWS}/${ids[0]}/${ids[1]}/${what}`, { method: 'POST', body: { seen, reason } });
}

/** The row that should stand: whom the hospital's system knows, then who has more. */
export function likelyToStand(both: BothRows): string {
  const [one, other] = both.rows;
  if (one.namedByEhr !== other.namedByEhr) return one.namedByEhr ? one.id : other.id;
  return one.studies > other.studies ? one.id : other.id;
}

// oxlint-disable-next-line no-explicit-any
export function toBothRows(body: any): BothRows {
  return {
    seen: body.seen,
    // oxlint-disable-next-line no-explicit-any
    rows: body.rows.map((row: any) => ({
      id: row.id,
      patient: toPerson(row.patient),
      studies: row.studies,
      namedByEhr: row.named_by_ehr,
      others: row.others,
    })),
    merged: body.merged,
    differs: body.differs,
  };
}

// oxlint-disable-next-line no-explicit-any
function toSaid(row: any): Said {
  return {
    ids: row.ids,
    patients: row.patients.map(toPerson),
    verdict: row.verdict,
    at: row.at,
    reason: row.reason,
  };
}
