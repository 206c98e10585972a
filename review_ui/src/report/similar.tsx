// Cases of the own archive that look like the lesion at hand, for the doctor to compare.
import { useSignal } from '@preact/signals';
import { useEffect, useId } from 'preact/hooks';
import { type Outcome, readSimilar, recordOutcome, type SimilarCase, type SimilarCases } from '../api/similar';
import { isSigned, type Lesion, type Report } from '../api/types';
import { explain, hrefOf, may, say } from '../app/state';
import { shownNumber, t } from '../i18n';
import { OUTCOMES, outcomeKey, outcomeOf, outcomeWords } from './outcome';

/** Where the keyboard goes to. */
export const SIMILAR = 'similar';

interface Props {
  report: Report;
  lesion: Lesion | null;
}

export function Similar({ report, lesion }: Props) {
  const found = useSignal<SimilarCases | null>(null);
  const fault = useSignal<string | null>(null);
  const asked = useSignal(0);
  const heading = useId();
  const number = lesion?.number ?? null;
  useEffect(() => {
    if (number === null || !may('compare_cases')) return undefined;
    const leaving = new AbortController();
    found.value = null;
    fault.value = null;
    readSimilar(report.id, number, leaving.signal)
      .then((answer) => {
        if (!leaving.signal.aborted) found.value = answer;
      })
      .catch((error: unknown) => {
        if (!leaving.signal.aborted) fault.value = explain(error);
      });
    return () => leaving.abort();
  }, [report.id, report.version, number, asked.value]);
  if (number === null || !may('compare_cases')) return null;
  return (
    <section class="similar" id={SIMILAR} tabIndex={-1} aria-labelledby={heading} aria-busy={found.value === null && fault.value === null}>
      <h2 id={heading}>
        {t('similar.title')}
        <span class="ai">{t('form.aiMark')}</span> <kbd>S</kbd>
      </h2>
      <p class="hint">{t('similar.lead')}</p>
      {fault.value !== null && <Failed text={fault.value} onRetry={() => (asked.value += 1)} />}
      {found.value !== null && <Found found={found.value} />}
      {found.value !== null && isSigned(report.status) && may('record_outcome') && (
        <OwnOutcome
          key={outcomeKey(found.value.outcome)}
          reportId={report.id}
          lesion={number}
          outcome={found.value.outcome}
          onRecorded={() => (asked.value += 1)}
        />
      )}
    </section>
  );
}

function Failed({ text, onRetry }: { text: string; onRetry: () => void }) {
  return (
    <p class="fault">
      {text}{' '}
      <button type="button" class="quiet" onClick={onRetry}>
        {t('app.retry')}
      </button>
    </p>
  );
}

function Found({ found }: { found: SimilarCases }) {
  return (
    <>
      {found.cases.length > 0 && (
        <ol class="cases">
          {found.cases.map((row) => (
            <Card key={row.imageUrl ?? row.place} row={row} />
          ))}
        </ol>
      )}
      {found.fewer !== null && <p class="hint">{t(`similar.fewer.${found.fewer}`)}</p>}
    </>
  );
}

function Card({ row }: { row: SimilarCase }) {
  const category = row.category ?? '—';
  return (
    <li>
      {row.imageUrl === null ? (
        <span class="no-picture hint">{t('similar.noPicture')}</span>
      ) : (
        <img src={row.imageUrl} alt={t('similar.alt', { place: row.place })} decoding="async" />
      )}
      <strong>BI-RADS {category}</strong>
      <span class={row.outcome ? `ending ${row.outcome.ending}` : 'absent'}>{outcomeWords(row.outcome)}</span>
      <span class="hint">{t('similar.similarity', { value: shownNumber(row.similarity, 2) })}</span>
      <span class="hint">{t('similar.signedOn', { month: row.signedOn })}</span>
      {row.reportId !== null && (
        // In a tab of its own: the draft at hand stays as it is.
        <a href={hrefOf({ screen: 'report', id: row.reportId })} target="_blank" rel="noopener">
          {t('similar.open')}
          <span class="unseen">{t('similar.openLong', { place: row.place })}</span>
        </a>
      )}
    </li>
  );
}

interface OwnProps {
  reportId: string;
  lesion: number;
  outcome: Outcome | null;
  onRecorded: () => void;
}

function OwnOutcome({ reportId, lesion, outcome, onRecorded }: OwnProps) {
  const id = useId();
  const chosen = useSignal(outcomeKey(outcome));
  const busy = useSignal(false);
  const record = async () => {
    busy.value = true;
    try {
      await recordOutcome(reportId, lesion, outcomeOf(chosen.value));
      say(t('similar.recorded'));
      onRecorded();
    } catch (error) {
      say(explain(error), 'bad');
    } finally {
      busy.value = false;
    }
  };
  return (
    <div class="own">
      <label for={id}>{t('similar.own')}</label>
      <select id={id} value={chosen.value} onChange={(event) => (chosen.value = event.currentTarget.value)}>
        {OUTCOMES.map((row) => (
          <option key={outcomeKey(row)} value={outcomeKey(row)}>
            {outcomeWords(row)}
          </option>
        ))}
      </select>
      <button
        type="button"
        disabled={busy.value || chosen.value === outcomeKey(outcome)}
        onClick={() => void record()}
      >
        {t('similar.record')}
      </button>
    </div>
  );
}
