// The programs and grants as they were last read; every change reads them anew.
import { signal } from '@preact/signals';
import { type Grant, type Program, readGrants, readPrograms } from '../api/clients';
import { explain } from '../app/state';

export const programs = signal<Program[] | null>(null);
export const grants = signal<Grant[]>([]);
export const trouble = signal<string | null>(null);

export async function load(): Promise<void> {
  try {
    const [known, given] = await Promise.all([readPrograms(), readGrants()]);
    programs.value = known;
    grants.value = given;
    trouble.value = null;
  } catch (error) {
    trouble.value = explain(error);
  }
}
