// The worklist that lives behind the screen: it keeps its order while a study is read.
import { signal } from '@preact/signals';
import { readFailedWork, readWorklist } from '../api/fhir';
import type { FailedWork } from '../api/types';
import { may } from '../app/state';
import { arrange, askFrom, type Filter, type Listed, takeIn } from './order';

const REFRESH_MS = 4000;

export const listed = signal<Listed>({ rows: [], waiting: [] });
export const failedWork = signal<FailedWork[]>([]);
export const loaded = signal(false);
export const stale = signal(false);
export const filter = signal<Filter>('unsigned');
export const search = signal('');

/** Ask the node once for what changed. */
export async function refresh(background: boolean): Promise<void> {
  try {
    // An administrator mends work without seeing any patient.
    const reads = may('read_report');
    const changed = reads ? await readWorklist(askFrom(listed.value), background) : [];
    const taken = takeIn(listed.value, changed);
    // Nothing is under the doctor's hand yet: no need to make her ask for it.
    listed.value = listed.value.rows.length === 0 ? arrange(taken) : taken;
    if (may('retry_work')) failedWork.value = await readFailedWork(background, reads);
    stale.value = false;
    loaded.value = true;
  } catch {
    stale.value = true;
  }
}

export function showWaiting(): void {
  listed.value = arrange(listed.value);
}

/** Keep refreshing until the returned function is called. */
export function keepFresh(): () => void {
  let timer = 0;
  let stopped = false;
  const round = async (background: boolean) => {
    if (!document.hidden) await refresh(background);
    if (!stopped) timer = setTimeout(() => void round(true), REFRESH_MS);
  };
  listed.value = arrange(listed.value);
  void round(false);
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}
