import type { Drift, FieldDrift, Trials } from '../api/agreement';
import { shownDay, t } from '../i18n';
import { fieldWord, modelWords, percent, shareOf } from './figures';

/** Whether agreement has changed lately; an alarm says in what and what to do. */
export function DriftNotice({ drift }: { drift: Drift }) {
  const alarmed = drift.fields.filter((row) => row.verdict === 'drifted');
  const model = modelWords(drift.name).title;
  if (drift.window === null) {
    return (
      <p class="drift waiting">
        {t('agreement.drift.waiting', { model, reports: drift.reports, needed: 2 * drift.size })}
      </p>
    );
  }
  return (
    <section class={alarmed.length > 0 ? 'drift alarm' : 'drift steady'} aria-labelledby="drift-title">
      <h2 id="drift-title">{t(alarmed.length > 0 ? 'agreement.drift.alarm' : 'agreement.drift.steady', { model })}</h2>
      {alarmed.length > 0 && (
        <>
          <ul>
            {alarmed.map((row) => (
              <Alarm key={row.field} row={row} />
            ))}
          </ul>
          <p>{t('agreement.drift.act')}</p>
        </>
      )}
      <details>
        <summary>{t('agreement.drift.how')}</summary>
        <p>
          {t('agreement.drift.window', {
            model,
            size: drift.size,
            first: shownDay(drift.window[0]),
            last: shownDay(drift.window[1]),
            alpha: percent(drift.alpha),
          })}
        </p>
        <DriftTable drift={drift} />
      </details>
    </section>
  );
}

function Alarm({ row }: { row: FieldDrift }) {
  const fell = (shareOf(row.window) ?? 0) < (shareOf(row.reference) ?? 0);
  return (
    <li>
      <strong>{fieldWord(row.field)}</strong>{' '}
      {t(fell ? 'agreement.drift.fell' : 'agreement.drift.rose', {
        before: shown(row.reference),
        now: shown(row.window),
      })}
      {row.since !== null && <small> {t('agreement.drift.since', { day: shownDay(row.since) })}</small>}
    </li>
  );
}

function DriftTable({ drift }: { drift: Drift }) {
  return (
    <table class="plain">
      <caption class="unseen">{t('agreement.drift.how')}</caption>
      <thead>
        <tr>
          <th scope="col">{t('agreement.field')}</th>
          <th scope="col" class="number">
            {t('agreement.drift.before')}
          </th>
          <th scope="col" class="number">
            {t('agreement.drift.now')}
          </th>
          <th scope="col" class="number">
            p
          </th>
          <th scope="col">{t('agreement.drift.verdict')}</th>
        </tr>
      </thead>
      <tbody>
        {drift.fields.map((row) => (
          <tr key={row.field}>
            <th scope="row">{fieldWord(row.field)}</th>
            <td class="number">
              {shown(row.reference)} <small>({row.reference.total})</small>
            </td>
            <td class="number">
              {shown(row.window)} <small>({row.window.total})</small>
            </td>
            <td class="number">{row.pValue === null ? '—' : pText(row.pValue)}</td>
            <td class={row.verdict}>{t(`agreement.verdict.${row.verdict}`)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function shown(trials: Trials): string {
  const share = shareOf(trials);
  return share === null ? '—' : percent(share);
}

function pText(p: number): string {
  return p < 0.0001 ? '< 0.0001' : p.toFixed(4);
}
