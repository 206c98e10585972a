import { useEffect, useState } from 'preact/hooks';
import { type Act, type Line, nameOf, type Unreconciled } from '../api/reconciliation';
import { go, lettersOn } from '../app/state';
import { type MessageKey, t } from '../i18n';
import { isTyping } from '../report/keys';
import { SideBySide } from './compare';
import { ConfirmSheet } from './confirm';
import { choose, chosen, find, found as lookedUp, list, load, loadMore, neighbour, said, shown, trouble } from './live';
import { type AskedOfRows, Decisions, MergeSheet, Pairs } from './merge';
import './reconciliation.css';

export function ReconciliationPage() {
  const [asked, setAsked] = useState<Act | null>(null);
  const [ofRows, setOfRows] = useState<AskedOfRows | null>(null);
  useEffect(() => {
    void load();
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
      if (document.querySelector('dialog[open]') !== null) return;
      if (lettersOn.value && byKey(event.key)) event.preventDefault();
    };
    addEventListener('keydown', pressed);
    return () => removeEventListener('keydown', pressed);
  }, []);
  const found = list.value;
  const both = shown.value;
  return (
    <main class="reconcile" aria-busy={found === null}>
      <div class="heading">
        <h1>{t('reconcile.title')}</h1>
        <p class="hint">{t('reconcile.keys')}</p>
        <Search />
      </div>
      <p class="full">{t('reconcile.full')}</p>
      {trouble.value !== null && (
        <p class="fault" role="alert">
          {trouble.value}
        </p>
      )}
      {found === null ? (
        trouble.value === null && <p class="loading">{t('app.loading')}</p>
      ) : (
        <>
          {found.lines.length === 0 && lookedUp.value === null && both === null ? (
            <Empty found={found} />
          ) : (
            <Lines found={found} onAct={setAsked} />
          )}
          {found.pairs.length > 0 && <Pairs pairs={found.pairs} onAsk={setOfRows} />}
          {said.value.length > 0 && <Decisions said={said.value} onAsk={setOfRows} />}
        </>
      )}
      {asked !== null && both !== null && (
        <ConfirmSheet both={both} what={asked} onClose={() => setAsked(null)} />
      )}
      {ofRows !== null && <MergeSheet asked={ofRows} onClose={() => setOfRows(null)} />}
    </main>
  );
}

function byKey(key: string): boolean {
  if (key === 'j' || key === 'k') {
    const next = neighbour(key === 'j' ? 1 : -1);
    if (next === null) return false;
    void choose(next);
    document.querySelector<HTMLElement>(`.reconcile button[data-study="${next}"]`)?.focus();
  } else if (key === 'Escape') {
    if (chosen.value === null) go({ screen: 'worklist' });
    else void choose(null);
  } else return false;
  return true;
}

function Empty({ found }: { found: Unreconciled }) {
  return (
    <section class="empty">
      <h2>{t('reconcile.empty.title')}</h2>
      <p>{t(found.ordersKnown ? 'reconcile.empty.lead' : 'reconcile.empty.noOrders')}</p>
    </section>
  );
}

function Search() {
  return (
    <form
      role="search"
      onSubmit={(event) => {
        event.preventDefault();
        void find(new FormData(event.currentTarget).get('number')?.toString() ?? '');
      }}
    >
      <input
        type="search"
        name="number"
        aria-label={t('reconcile.find')}
        placeholder={t('reconcile.find')}
        onInput={(event) => {
          if (event.currentTarget.value === '') void find('');
        }}
      />
    </form>
  );
}

function Lines({ found, onAct }: { found: Unreconciled; onAct: (what: Act) => void }) {
  const lines = lookedUp.value ?? found.lines;
  return (
    <div class="columns">
      <section aria-labelledby="reconcile-list">
        <h2 id="reconcile-list">{t(lookedUp.value === null ? 'reconcile.list' : 'reconcile.found')}</h2>
        {lines.length === 0 && <p class="hint">{t('reconcile.nothing')}</p>}
        <ul class="lines">
          {lines.map((line) => (
            <li key={line.uid}>
              <Row line={line} />
            </li>
          ))}
        </ul>
        {found.more !== '' && lookedUp.value === null && (
          <button type="button" onClick={() => void loadMore()}>
            {t('reconcile.more')}
          </button>
        )}
      </section>
      <SideBySide onAct={onAct} />
    </div>
  );
}

function Row({ line }: { line: Line }) {
  return (
    <button
      type="button"
      data-study={line.uid}
      aria-pressed={chosen.value === line.uid}
      onClick={() => void choose(line.uid)}
    >
      <strong>{nameOf(line.patient.name)}</strong>
      <span class="mono">{line.studyDate ?? '—'}</span>
      <span class={`why ${line.why ?? 'settled'}`}>{t(`reconcile.why.${line.why ?? 'settled'}` as MessageKey)}</span>
      <span class="mono soft">{line.accessionNumber || '—'}</span>
      {line.unknownToEhr && <span class="soft wide">{t('reconcile.unknownToEhr')}</span>}
    </button>
  );
}
