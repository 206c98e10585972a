// Confirmed cases of the own archive that look like a lesion, and how cases ended.
import { json, send } from './http';

export type Ending = 'benign' | 'malignant';
export type Method = 'biopsy' | 'follow-up';

export interface Outcome {
  ending: Ending;
  method: Method;
}

/** Why there are fewer than three. */
export type Fewer = 'few' | 'not_kept' | 'no_lesion';

export interface SimilarCase {
  place: number;
  category: string | null;
  /** Month in which the report was signed, 2026-11. */
  signedOn: string;
  /** null: nobody has recorded one. Not the same as benign. */
  outcome: Outcome | null;
  /** Cosine of what the AI saw in both lesions, at most 1. */
  similarity: number;
  imageUrl: string | null;
  /** The report behind the case, for those who may open it. */
  reportId: string | null;
}

export interface SimilarCases {
  cases: SimilarCase[];
  fewer: Fewer | null;
  /** How the lesion at hand ended. */
  outcome: Outcome | null;
}

export async function readSimilar(reportId: string, lesion: number, signal: AbortSignal): Promise<SimilarCases> {
  return toSimilar(await json(`/review/similar/${reportId}?lesion=${lesion}`, { signal }));
}

/** null takes back what was said before. */
export async function recordOutcome(reportId: string, lesion: number, outcome: Outcome | null): Promise<void> {
  await send('/review/outcomes', {
    method: 'POST',
    body: { report: reportId, lesion, outcome: outcome?.ending ?? null, method: outcome?.method ?? null },
  });
}

// oxlint-disable-next-line no-explicit-any
export function toSimilar(body: any): SimilarCases {
  return {
    // oxlint-disable-next-line no-explicit-any
    cases: (body.cases ?? []).map((row: any) => ({
      place: row.place,
      category: row.category ?? null,
      signedOn: row.signed_on,
      outcome: toOutcome(row.outcome),
      similarity: row.similarity,
      imageUrl: row.image ?? null,
      reportId: row.report ?? null,
    })),
    fewer: body.fewer ?? null,
    outcome: toOutcome(body.outcome),
  };
}

// oxlint-disable-next-line no-explicit-any
function toOutcome(body: any): Outcome | null {
  return body ? { ending: body.outcome, method: body.method } : null;
}
