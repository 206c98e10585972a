import { signal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { launch, type Named, readNamed } from '../api/clients';
import { explain, say } from '../app/state';
import { t } from '../i18n';

/** Programs that a report can be opened in; asked for once. */
const known = signal<Named[] | null>(null);

export async function loadNamed(): Promise<void> {
  try {
    known.value = await readNamed();
  } catch {
    known.value = []; // Without it the report is as good as before.
  }
}

/** Opens the report in another program, which learns patient, report and study. */
async function openIn(program: Named, reportId: string): Promise<void> {
  // Opened while the click counts: later on the browser would stop it.
  const tab = window.open('', '_blank');
  if (tab === null) {
    say(t('openIn.blocked'), 'bad');
    return;
  }
  tab.opener = null;
  try {
    tab.location.replace(await launch(program.id, reportId));
  } catch (error) {
    tab.close();
    say(explain(error), 'bad');
  }
}

export function OpenIn({ reportId }: { reportId: string }) {
  useEffect(() => {
    if (known.value === null) void loadNamed();
  }, []);
  const programs = known.value ?? [];
  if (programs.length === 1) {
    const only = programs[0]!;
    return (
      <button type="button" class="quiet" onClick={() => void openIn(only, reportId)}>
        {t('openIn.one', { name: only.name })}
      </button>
    );
  }
  if (programs.length === 0) return null;
  return (
    <select
      class="quiet open-in"
      aria-label={t('openIn.many')}
      value=""
      onChange={(event) => {
        const chosen = programs.find((program) => program.id === event.currentTarget.value);
        event.currentTarget.value = '';
        if (chosen !== undefined) void openIn(chosen, reportId);
      }}
    >
      <option value="">{t('openIn.many')}</option>
      {programs.map((program) => (
        <option key={program.id} value={program.id}>
          {program.name}
        </option>
      ))}
    </select>
  );
}
