// Which versions of the Observations belong to which version of their report.
import type { Resource } from './types';

export interface Assembled {
  source: Resource;
  reason: string | null;
  /** As they stood with this version of the report. */
  observations: Resource[];
}

/**
 * Every version of a report, oldest first, with its Observations. One that nobody wrote
 * (it only tells of images that came later) is none.
 * A Provenance names the versions that were written together; times would not
 * do, for two versions may carry the same instant.
 */
export function assembleHistory(
  versions: Resource[],
  provenances: Resource[],
  histories: Resource[][],
): Assembled[] {
  const written = new Map<string, Resource>();
  for (const row of [...versions, ...histories.flat()]) written.set(versionedReference(row), row);
  const standing = new Map<string, Resource>(
    histories.filter((history) => history.length > 0).map((history) => [history[0]!.id, history[0]!]),
  );
  return versions.flatMap((source, at) => {
    const own = versionedReference(source);
    const provenance = provenances.find((row) => targets(row).includes(own));
    if (!provenance && at > 0) return [];
    for (const target of provenance ? targets(provenance) : []) {
      const observation = written.get(target);
      if (observation?.resourceType === 'Observation') standing.set(observation.id, observation);
    }
    return {
      source,
      reason: provenance?.reason?.[0]?.text ?? null,
      observations: [...standing.values()],
    };
  });
}

function versionedReference(row: Resource): string {
  return `${row.resourceType}/${row.id}/_history/${row.meta?.versionId}`;
}

function targets(provenance: Resource): string[] {
  return (provenance.target ?? []).map((row: Resource) => String(row.reference));
}
