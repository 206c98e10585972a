import { useEffect, useRef, useState } from 'preact/hooks';
import { retryWork } from '../api/fhir';
import type { FailedWork, WorklistRow } from '../api/types';
import { sexAndAge, sideWord } from '../app/person';
import { explain, go, hrefOf, lettersOn, say } from '../app/state';
import { oneOf, shownDay, shownNumber, shownTime, t } from '../i18n';
import { tierOf } from '../lexicon';
import { isTyping } from '../report/keys';
import { KeyMap } from '../report/keymap';
import { failedWork, filter, keepFresh, listed, loaded, refresh, search, showWaiting, stale } from './live';
import { FILTERS, matches, passes } from './order';

export function Worklist() {
  const [keys, setKeys] = useState(false);
  const searchBox = useRef<HTMLInputElement>(null);
  useEffect(() => keepFresh(), []);
  const rows = listed.value.rows.filter((row) => passes(row, filter.value) && matches(row, search.value));

  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.altKey || event.metaKey || keys) return;
      if (isTyping(event.target)) {
        if (event.key === 'Escape') (event.target as HTMLElement).blur();
        return;
      }
      if (!lettersOn.value || !byKey(event.key)) return;
      event.preventDefault();
    };
    const byKey = (key: string): boolean => {
      const chosen = FILTERS[Number(key) - 1];
      if (chosen) filter.value = chosen;
      else if (key === '/') searchBox.current?.focus();
      else if (key === 'r') showWaiting();
      else if (key === '?') setKeys(true);
      else if (key === 'j' || key === 'ArrowDown') moveFocus(1);
      else if (key === 'k' || key === 'ArrowUp') moveFocus(-1);
      else return false;
      return true;
    };
    addEventListener('keydown', pressed);
    return () => removeEventListener('keydown', pressed);
  }, [keys]);

  return (
    <main class="worklist">
      <div class="heading">
        <h1>{t('worklist.title')}</h1>
        <Live />
        <input
          ref={searchBox}
          type="search"
          aria-label={t('worklist.search')}
          placeholder={t('worklist.search')}
          value={search.value}
          onInput={(event) => {
            search.value = event.currentTarget.value;
          }}
        />
        <Filters />
        <button type="button" class="quiet" onClick={() => setKeys(true)}>
          <kbd>?</kbd> {t('app.keys')}
        </button>
      </div>
      <FailedList />
      {listed.value.waiting.length > 0 && (
        <button type="button" class="newcomers" onClick={showWaiting}>
          {t('worklist.new', { count: listed.value.waiting.length })}
        </button>
      )}
      {rows.length > 0 ? <Table rows={rows} /> : loaded.value && <Empty />}
      {!loaded.value && !stale.value && <p class="loading">{t('app.loading')}</p>}
      {keys && <KeyMap onClose={() => setKeys(false)} />}
    </main>
  );
}

function moveFocus(by: number): void {
  const links = [...document.querySelectorAll<HTMLAnchorElement>('.worklist tbody a')];
  const at = links.indexOf(document.activeElement as HTMLAnchorElement);
  const next = at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by));
  links[next]?.focus();
}

function Live() {
  return (
    <span class={stale.value ? 'live stale' : 'live'} role="status">
      {t(stale.value ? 'worklist.stale' : 'worklist.live')}
    </span>
  );
}

function Filters() {
  return (
    <div class="segments" role="group" aria-label={t('worklist.filter')}>
      {FILTERS.map((key, at) => (
        <button
          key={key}
          type="button"
          aria-pressed={filter.value === key}
          onClick={() => {
            filter.value = key;
          }}
        >
          <kbd>{at + 1}</kbd> {t(`worklist.filter.${key}`)}
        </button>
      ))}
    </div>
  );
}

function Table({ rows }: { rows: WorklistRow[] }) {
  return (
    <div class="table">
      <table>
        <caption class="unseen">{t('worklist.title')}</caption>
        <thead>
          <tr>
            <th scope="col">{t('worklist.risk')}</th>
            <th scope="col">{t('worklist.category')}</th>
            <th scope="col" class="number">
              {t('worklist.probability')}
            </th>
            <th scope="col">{t('worklist.patient')}</th>
            <th scope="col">{t('worklist.sexAge')}</th>
            <th scope="col">{t('worklist.side')}</th>
            <th scope="col" class="number">
              {t('worklist.size')}
            </th>
            <th scope="col">{t('worklist.date')}</th>
            <th scope="col">{t('worklist.accession')}</th>
            <th scope="col">{t('worklist.status')}</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <Row key={row.id} row={row} />
          ))}
        </tbody>
      </table>
      <p class="hint">{t('worklist.count', { count: rows.length })}</p>
    </div>
  );
}

function Row({ row }: { row: WorklistRow }) {
  const tier = tierOf(row.category);
  const to = { screen: 'report', id: row.id } as const;
  return (
    <tr class={`tier-${tier}`} onClick={() => go(to)}>
      <td>
        <span class={`tier ${tier}`}>{t(`tier.${tier}`)}</span>
      </td>
      <td>
        <Category row={row} />
      </td>
      <td class="number">{row.probability === null ? '—' : shownNumber(row.probability, 2)}</td>
      <td>
        <a href={hrefOf(to)} aria-label={t('worklist.open', { name: row.person.name })}>
          {row.person.name}
        </a>
        {row.late && (
          <span class="flag late" title={oneOf(row.late)}>
            {t('worklist.late')}
          </span>
        )}
        {row.completeness && row.completeness.state !== 'complete' && (
          <span class="flag" title={oneOf(row.completeness.words)}>
            {t(`worklist.${row.completeness.state}`)}
          </span>
        )}
        {row.notRead.length > 0 && (
          <span class="flag" title={row.notRead.map(oneOf).join('\n')}>
            {t('worklist.notRead')}
          </span>
        )}
      </td>
      <td>{sexAndAge(row.person)}</td>
      <td>{sideWord(row.side)}</td>
      <td class="number">
        {row.longAxisMm === null ? '—' : t('unit.mm', { value: shownNumber(row.longAxisMm, 1) })}
      </td>
      <td>{shownDay(row.studyDate)}</td>
      <td class="mono">{row.accession || '—'}</td>
      <td>
        <StatusBadge status={row.status} />
      </td>
    </tr>
  );
}

function Category({ row }: { row: WorklistRow }) {
  if (row.category === null) return <span class="absent">—</span>;
  return (
    <>
      <strong class="category">{row.category}</strong>
      {row.categoryByAi && <span class="ai">{t('form.aiMark')}</span>}
    </>
  );
}

export function StatusBadge({ status }: { status: WorklistRow['status'] }) {
  return <span class={`status ${status}`}>{t(`status.${status}`)}</span>;
}

function Empty() {
  const filtered = listed.value.rows.length > 0;
  return (
    <section class="empty">
      <h2>{t('worklist.empty.title')}</h2>
      <p>{t(filtered ? 'worklist.empty.filtered' : 'worklist.empty.lead')}</p>
    </section>
  );
}

function FailedList() {
  if (failedWork.value.length === 0) return null;
  return (
    <section class="failed" aria-labelledby="failed-title">
      <h2 id="failed-title">{t('worklist.failed')}</h2>
      <ul>
        {failedWork.value.map((work) => (
          <Failed key={work.id} work={work} />
        ))}
      </ul>
    </section>
  );
}

function Failed({ work }: { work: FailedWork }) {
  const [busy, setBusy] = useState(false);
  const retry = async () => {
    setBusy(true);
    try {
      await retryWork(work);
      say(t('worklist.failed.retried'));
      await refresh(false);
    } catch (error) {
      say(explain(error), 'bad');
      setBusy(false);
    }
  };
  return (
    <li>
      {work.exam && (
        <strong>
          {[work.exam.person.name, work.exam.studyDate, work.exam.accession].filter(Boolean).join(' · ')}
        </strong>
      )}
      <span class="reason">{oneOf(work.reason)}</span>
      {work.since && <small>{t('worklist.failed.since', { time: shownTime(work.since) })}</small>}
      <button type="button" disabled={busy} onClick={() => void retry()}>
        {t(work.cancelled ? 'worklist.readAnyway' : 'app.retry')}
      </button>
    </li>
  );
}
