import { useEffect, useState } from 'preact/hooks';
import type { Ending, Seen, Woman } from '../api/audit';
import { go, lettersOn, may } from '../app/state';
import { type MessageKey, shownMoment, t } from '../i18n';
import { isTyping } from '../report/keys';
import './audit.css';
import { ChainState } from './chain';
import { Detail } from './detail';
import {
  actors,
  ask,
  asked,
  askOlder,
  busy,
  clear,
  find,
  load,
  older,
  rows,
  stopWatching,
  take,
  trouble,
  typed,
  verify,
  women,
} from './live';
import { endingWords, shortId, verbWord, whoWords } from './words';

const ENDINGS: (Ending | '')[] = ['', 'refused', 'failed', 'served'];

export function AuditPage() {
  const [opened, setOpened] = useState<Seen | null>(null);
  useEffect(() => {
    void load();
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
      if (!lettersOn.value || document.querySelector('dialog[open]') !== null) return;
      if (byKey(event.key)) event.preventDefault();
    };
    addEventListener('keydown', pressed);
    return () => {
      removeEventListener('keydown', pressed);
      stopWatching();
    };
  }, []);
  const shown = rows.value;
  return (
    <main class="audit" aria-busy={busy.value}>
      <div class="heading">
        <h1>{t('audit.title')}</h1>
        <p class="hint">{t('audit.keys')}</p>
      </div>
      <ChainState />
      <Question />
      {trouble.value !== null && (
        <p class="fault" role="alert">
          {trouble.value}
        </p>
      )}
      <Named />
      {shown === null && trouble.value === null && <p class="loading">{t('app.loading')}</p>}
      {shown !== null && (shown.length === 0 ? <Empty /> : <Table shown={shown} onOpen={setOpened} />)}
      {opened !== null && <Detail row={opened} onClose={() => setOpened(null)} />}
    </main>
  );
}

function byKey(key: string): boolean {
  const ending = ENDINGS[Number(key) - 1];
  if (ending !== undefined) void ask({ ending });
  else if (key === 'j' || key === 'k') moveFocus(key === 'j' ? 1 : -1);
  else if (key === 'o') void askOlder();
  else if (key === 'r') void ask({});
  else if (key === 'v') void verify(true);
  else if (key === '/') document.querySelector<HTMLInputElement>('.audit input[name=number]')?.focus();
  else if (key === 'Escape') {
    if (isNarrowed()) void clear();
    else if (may('read_report')) go({ screen: 'worklist' });
  } else return false;
  return true;
}

function moveFocus(by: number): void {
  const buttons = [...document.querySelectorAll<HTMLButtonElement>('.audit tbody button')];
  const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
  buttons[at < 0 ? 0 : Math.min(buttons.length - 1, Math.max(0, at + by))]?.focus();
}

function isNarrowed(): boolean {
  const { patients, actor, from, until, ending } = asked.value;
  return women.value !== null || patients.length > 0 || `${actor}${from}${until}${ending}` !== '';
}

// --- the question ---------------------------------------------------------------------

function Question() {
  const now = asked.value;
  return (
    <div class="question">
      <form
        role="search"
        onSubmit={(event) => {
          event.preventDefault();
          void find();
        }}
      >
        <label>
          <span>{t('audit.number')}</span>
          <input
            type="search"
            name="number"
            autocomplete="off"
            placeholder={t('audit.number.hint')}
            value={typed.value}
            onInput={(event) => {
              typed.value = event.currentTarget.value;
            }}
          />
        </label>
      </form>
      <WhoSelect />
      <Day name="from" value={now.from} />
      <Day name="until" value={now.until} />
      <div class="segments" role="group" aria-label={t('audit.outcome')}>
        {ENDINGS.map((ending, at) => (
          <button
            key={ending}
            type="button"
            aria-pressed={now.ending === ending}
            onClick={() => void ask({ ending })}
          >
            <kbd>{at + 1}</kbd> {t(`audit.ending.${ending === '' ? 'all' : ending}`)}
          </button>
        ))}
      </div>
      {isNarrowed() && (
        <button type="button" class="quiet" onClick={() => void clear()}>
          {t('audit.clear')} <kbd>Esc</kbd>
        </button>
      )}
    </div>
  );
}

function WhoSelect() {
  const chosen = asked.value.actor;
  const known = actors.value;
  return (
    <label>
      <span>{t('audit.who')}</span>
      <select value={chosen} onChange={(event) => void ask({ actor: event.currentTarget.value })}>
        <option value="">{t('audit.anybody')}</option>
        {(['person', 'program', 'other'] as const).map((kind) => {
          const some = known.filter((actor) => actor.kind === kind);
          if (some.length === 0) return null;
          return (
            <optgroup key={kind} label={t(`audit.kind.${kind}`)}>
              {some.map((actor) => (
                <option key={actor.id} value={actor.id}>
                  {actor.name}
                </option>
              ))}
            </optgroup>
          );
        })}
      </select>
    </label>
  );
}

function Day({ name, value }: { name: 'from' | 'until'; value: string }) {
  return (
    <label>
      <span>{t(`audit.${name}`)}</span>
      <input type="date" value={value} onChange={(event) => void ask({ [name]: event.currentTarget.value })} />
    </label>
  );
}

/** Whom the number named: nobody, her, or several of whom one is to be chosen. */
function Named() {
  const found = women.value;
  if (found === null) return null;
  if (found.length === 0) {
    return (
      <p class="named nobody" role="status">
        {t('audit.unknown')}
      </p>
    );
  }
  return (
    <div class="named" role="status">
      <span>{t(found.length === 1 ? 'audit.her' : 'audit.several')}</span>
      {found.map((woman) => (
        <Her key={woman.patients[0]} woman={woman} />
      ))}
    </div>
  );
}

function Her({ woman }: { woman: Woman }) {
  return (
    <button
      type="button"
      aria-pressed={asked.value.patients[0] === woman.patients[0]}
      onClick={() => void ask({ patients: woman.patients })}
    >
      {woman.name || t('audit.erased')} <small>{shortId(woman.patients[0]!)}</small>
      {woman.patients.length > 1 && <small>{t('audit.rows', { count: woman.patients.length })}</small>}
    </button>
  );
}

// --- the answer -----------------------------------------------------------------------

function Empty() {
  const narrowed = isNarrowed();
  return (
    <section class="empty">
      <h2>{t('audit.empty.title')}</h2>
      <p>{t(narrowed ? 'audit.empty.lead' : 'audit.empty.new')}</p>
      {narrowed && (
        <button type="button" class="primary" onClick={() => void clear()}>
          {t('audit.clear')}
        </button>
      )}
    </section>
  );
}

function Table({ shown, onOpen }: { shown: readonly Seen[]; onOpen: (row: Seen) => void }) {
  return (
    <div class="table">
      <table>
        <caption class="unseen">{t('audit.title')}</caption>
        <thead>
          <tr>
            {(['when', 'who', 'act', 'what', 'patient', 'address', 'outcome'] as const).map((name) => (
              <th key={name} scope="col">
                {t(`audit.${name}` as MessageKey)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map((row) => (
            <Row key={row.id} row={row} onOpen={onOpen} />
          ))}
        </tbody>
      </table>
      <Below shown={shown} />
    </div>
  );
}

function Row({ row, onOpen }: { row: Seen; onOpen: (row: Seen) => void }) {
  return (
    <tr class={row.ending} onClick={() => onOpen(row)}>
      <td>
        <button type="button" class="quiet mono">
          {shownMoment(row.at)}
        </button>
      </td>
      <td>
        {whoWords(row)} <small>{row.roles.join(', ')}</small>
      </td>
      <td>
        {verbWord(row.verb)} {row.repeated !== null && <small>{t('audit.times', { count: row.repeated })}</small>}
      </td>
      <td class="what" title={row.what}>
        {row.what || <small>{row.act}</small>}
      </td>
      <td class="mono">{row.patient === null ? '—' : shortId(row.patient)}</td>
      <td class="mono">{row.address || '—'}</td>
      <td>
        <span class={`ending ${row.ending}`}>{endingWords(row)}</span>
      </td>
    </tr>
  );
}

function Below({ shown }: { shown: readonly Seen[] }) {
  const denied = shown.filter((row) => row.ending === 'refused').length;
  return (
    <div class="below">
      <p class="hint" role="status">
        {t('audit.count', { count: shown.length })}
        {denied > 0 && asked.value.ending === '' && ` · ${t('audit.denied', { count: denied })}`}
      </p>
      {older.value !== null && (
        <button type="button" disabled={busy.value} onClick={() => void askOlder()}>
          {t('audit.older')} <kbd>O</kbd>
        </button>
      )}
      <span class="grow" />
      <button type="button" class="quiet" onClick={() => void take('csv')}>
        {t('audit.csv')}
      </button>
      <button type="button" class="quiet" onClick={() => void take('ndjson')}>
        {t('audit.ndjson')}
      </button>
    </div>
  );
}
