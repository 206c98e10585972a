import { useEffect } from 'preact/hooks';
import { type Agreement, GRAINS } from '../api/agreement';
import { go, hrefOf, lettersOn, may } from '../app/state';
import { type MessageKey, t } from '../i18n';
import { isTyping } from '../report/keys';
import './agreement.css';
import { Detail } from './detail';
import { DriftNotice } from './drift';
import { modelWords } from './figures';
import { ask, asked, chosenField, isNarrowed, load, PERIODS, shown, trouble } from './live';
import { Overview } from './overview';

export function AgreementPage() {
  const question = asked.value;
  useEffect(() => load(question), [question]);
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
      if (lettersOn.value && byKey(event.key)) event.preventDefault();
    };
    addEventListener('keydown', pressed);
    return () => removeEventListener('keydown', pressed);
  }, []);
  const figures = shown.value;
  return (
    <main class="agreement" aria-busy={figures === null}>
      <div class="heading">
        <h1>{t('agreement.title')}</h1>
        {figures !== null && figures.models.length > 0 && <Filters figures={figures} />}
      </div>
      {trouble.value !== null && <p class="fault" role="alert">{trouble.value}</p>}
      {figures === null ? trouble.value === null && <p class="loading">{t('app.loading')}</p> : <Figures figures={figures} />}
    </main>
  );
}

function byKey(key: string): boolean {
  const period = PERIODS[Number(key) - 1];
  if (period !== undefined && key >= '1' && key <= '3') ask({ months: period });
  else if (key === 'w') ask({ grain: 'week' });
  else if (key === 'm') ask({ grain: 'month' });
  else if (key === 'j' || (key === 'ArrowDown' && inOverview())) moveChoice(1);
  else if (key === 'k' || (key === 'ArrowUp' && inOverview())) moveChoice(-1);
  else if (key === 'Escape') go({ screen: 'worklist' });
  else return false;
  return true;
}

/** Elsewhere the arrows scroll. */
function inOverview(): boolean {
  return document.activeElement?.closest('.overview') !== null;
}

function moveChoice(by: number): void {
  const names = shown.value?.fields.map((row) => row.field) ?? [];
  const next = names[names.indexOf(chosenField.value) + by];
  if (next === undefined) return;
  chosenField.value = next;
  document.querySelector<HTMLElement>(`.overview button[data-field="${next}"]`)?.focus();
}

function Figures({ figures }: { figures: Agreement }) {
  if (figures.models.length === 0) return <Empty />;
  const chosen = figures.fields.find((row) => row.field === chosenField.value) ?? figures.fields[0]!;
  return (
    <>
      <p class="bias">{t('agreement.bias')}</p>
      {figures.drift && <DriftNotice drift={figures.drift} />}
      {figures.reports === 0 ? (
        <Filtered />
      ) : (
        <div class="columns">
          <Overview figures={figures} chosen={chosen.field} />
          <Detail figures={figures} row={chosen} grain={asked.value.grain} />
        </div>
      )}
    </>
  );
}

function Filters({ figures }: { figures: Agreement }) {
  const question = asked.value;
  return (
    <>
      <label>
        <span>{t('agreement.model')}</span>
        <select
          value={question.model ?? ''}
          onChange={(event) => ask({ model: event.currentTarget.value || null })}
        >
          <option value="">{t('agreement.allModels')}</option>
          {figures.models.map((row) => (
            <option key={row.id} value={row.id}>
              {modelWords(row.name).title} · {modelWords(row.name).weights.slice(0, 6)} ({row.reports})
            </option>
          ))}
        </select>
      </label>
      <label>
        <span>{t('agreement.machine')}</span>
        <select
          value={question.machine === null ? 'all' : `=${question.machine}`}
          onChange={(event) => {
            const value = event.currentTarget.value;
            // A machine without a name is a machine too.
            ask({ machine: value === 'all' ? null : value.slice(1) });
          }}
        >
          <option value="all">{t('agreement.allMachines')}</option>
          {figures.machines.map((row) => (
            <option key={row.name} value={`=${row.name}`}>
              {row.name || t('agreement.unknownMachine')} ({row.reports})
            </option>
          ))}
        </select>
      </label>
      <div class="segments" role="group" aria-label={t('agreement.period')}>
        {PERIODS.map((months, at) => (
          <button
            key={at}
            type="button"
            aria-pressed={question.months === months}
            onClick={() => ask({ months })}
          >
            <kbd>{at + 1}</kbd> {t(`agreement.period.${months ?? 'all'}` as MessageKey)}
          </button>
        ))}
      </div>
      <div class="segments" role="group" aria-label={t('agreement.grain')}>
        {GRAINS.map((grain) => (
          <button
            key={grain}
            type="button"
            aria-pressed={question.grain === grain}
            onClick={() => ask({ grain })}
          >
            <kbd>{grain === 'month' ? 'M' : 'W'}</kbd> {t(`agreement.grain.${grain}`)}
          </button>
        ))}
      </div>
    </>
  );
}

function Empty() {
  return (
    <section class="empty">
      <h2>{t('agreement.empty.title')}</h2>
      <p>{t('agreement.empty.lead')}</p>
      <a class="button" href={hrefOf({ screen: 'worklist' })}>
        {t(may('sign_report') ? 'agreement.empty.sign' : 'review.back')}
      </a>
    </section>
  );
}

function Filtered() {
  return (
    <section class="empty">
      <h2>{t('agreement.filtered.title')}</h2>
      <p>{t('agreement.filtered.lead')}</p>
      {isNarrowed(asked.value) && (
        <button type="button" onClick={() => ask({ model: null, machine: null, months: null })}>
          {t('agreement.filtered.clear')}
        </button>
      )}
    </section>
  );
}
