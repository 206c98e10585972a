// What the auditor's page shows: the question, its rows so far, and how the chain stands.
import { signal } from '@preact/signals';
import {
  type Actor,
  type Asked,
  type Chain,
  findWomen,
  noteExport,
  type Page,
  readActors,
  readChain,
  readOlder,
  readTrail,
  type Seen,
  startCheck,
  type Woman,
} from '../api/audit';
import { explain } from '../app/state';
import { type Form, save } from './files';

export const NOTHING: Asked = { patients: [], actor: '', from: '', until: '', ending: '' };
const ASK_AGAIN_MS = 1000;

export const asked = signal<Asked>(NOTHING);
/** Null until the first answer. */
export const rows = signal<readonly Seen[] | null>(null);
export const older = signal<string | null>(null);
export const busy = signal(false);
export const trouble = signal<string | null>(null);
export const actors = signal<readonly Actor[]>([]);
/** What stands in the field of the number. */
export const typed = signal('');
/** Whom the number that was typed names; null when none was typed. */
export const women = signal<readonly Woman[] | null>(null);
export const chain = signal<Chain | null>(null);

let question = 0;

export async function load(): Promise<void> {
  await Promise.all([ask({}), loadActors(), watchChain(false)]);
}

/** Ask the trail anew with some of the question changed. */
export async function ask(changed: Partial<Asked>): Promise<void> {
  asked.value = { ...asked.value, ...changed };
  await show(() => readTrail(asked.value), () => []);
}

/** Everything again: no woman, no person, no day. */
export async function clear(): Promise<void> {
  women.value = null;
  typed.value = '';
  await ask(NOTHING);
}

export async function askOlder(): Promise<void> {
  const next = older.value;
  if (next === null || busy.value) return;
  await show(() => readOlder(next), () => rows.value ?? []);
}

async function show(read: () => Promise<Page>, before: () => readonly Seen[]): Promise<void> {
  question += 1;
  const mine = question;
  busy.value = true;
  try {
    const page = await read();
    if (mine !== question) return;
    rows.value = [...before(), ...page.rows];
    older.value = page.next;
    trouble.value = null;
  } catch (error) {
    if (mine === question) trouble.value = explain(error);
  } finally {
    if (mine === question) busy.value = false;
  }
}

/** Ask about the woman whom a Patient ID or an accession number names. */
export async function find(): Promise<void> {
  const number = typed.value.trim();
  if (number === '') {
    women.value = null;
    await ask({ patients: [] });
    return;
  }
  try {
    women.value = await findWomen(number);
  } catch (error) {
    trouble.value = explain(error);
    return;
  }
  // Of two with the same number none is taken for the other: the auditor says which.
  await ask({ patients: women.value.length === 1 ? women.value[0]!.patients : [] });
}

/** Write what is shown to a file, once the trail knows of it. */
export async function take(form: Form): Promise<void> {
  const shown = rows.value ?? [];
  if (shown.length === 0) return;
  try {
    await noteExport(form, shown);
    save(form, shown);
    trouble.value = null;
  } catch (error) {
    trouble.value = explain(error);
  }
}

async function loadActors(): Promise<void> {
  try {
    actors.value = await readActors();
  } catch (error) {
    trouble.value = explain(error);
  }
}

let watching: ReturnType<typeof setTimeout> | undefined;

/** Read how the chain stands, again and again while it is verified. */
export async function watchChain(background: boolean): Promise<void> {
  clearTimeout(watching);
  try {
    chain.value = await readChain(background);
    watchOn();
  } catch (error) {
    trouble.value = explain(error);
  }
}

function watchOn(): void {
  if (chain.value?.running) watching = setTimeout(() => void watchChain(true), ASK_AGAIN_MS);
}

export function stopWatching(): void {
  clearTimeout(watching);
}

export async function verify(whole: boolean): Promise<void> {
  clearTimeout(watching);
  try {
    chain.value = await startCheck(whole);
    watchOn();
  } catch (error) {
    trouble.value = explain(error);
  }
}
