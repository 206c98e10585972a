import type { Agreement, FieldRow } from '../api/agreement';
import { t } from '../i18n';
import {
  changesOf,
  fieldWord,
  kappaText,
  matrixOf,
  modelWords,
  percent,
  periodWord,
  rangeText,
  shareOf,
  valueWord,
} from './figures';

interface Props {
  figures: Agreement;
  row: FieldRow;
  grain: 'month' | 'week';
}

/** What lies behind the figure of one field. */
export function Detail({ figures, row, grain }: Props) {
  return (
    <section class="detail" aria-labelledby="detail-title">
      <h2 id="detail-title" aria-live="polite">
        {fieldWord(row.field)}
      </h2>
      {row.pairs.length === 0 ? (
        <p class="hint">{t('agreement.nothing')}</p>
      ) : (
        <>
          {row.kind === 'multiple' ? <Terms row={row} /> : <Confusion row={row} />}
          {row.offScale > 0 && <p class="hint">{t('agreement.offScale', { count: row.offScale })}</p>}
          <Changes row={row} />
          <TrendTable row={row} grain={grain} />
        </>
      )}
      <Devices figures={figures} />
    </section>
  );
}

function Confusion({ row }: { row: FieldRow }) {
  const matrix = matrixOf(row);
  return (
    <div class="matrix">
      <p class="hint">{t('agreement.matrix')}</p>
      <table>
        <caption class="unseen">{fieldWord(row.field)}</caption>
        <thead>
          <tr>
            <td class="corner">{t('agreement.corner')}</td>
            {matrix.columns.map((doctor) => (
              <th key={doctor} scope="col">
                {valueWord(row.field, doctor)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {matrix.rows.map((ai) => (
            <tr key={ai}>
              <th scope="row">{valueWord(row.field, ai)}</th>
              {matrix.columns.map((doctor) => (
                <td
                  key={doctor}
                  class={`${heat(ai, doctor)}${matrix.level(ai, doctor)}${ai === doctor ? ' same' : ''}`}
                >
                  {matrix.count(ai, doctor) || <span class="absent">·</span>}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Agreement, change, and what only one assessed have a colour each. */
function heat(ai: string | null, doctor: string | null): string {
  if (ai === null || doctor === null) return 'open-';
  return ai === doctor ? 'agree-' : 'differ-';
}

function Terms({ row }: { row: FieldRow }) {
  return (
    <div class="matrix">
      <table>
        <caption>{t('agreement.terms')}</caption>
        <thead>
          <tr>
            <th scope="col">{t('agreement.term')}</th>
            <th scope="col">{t('agreement.both')}</th>
            <th scope="col">{t('agreement.aiOnly')}</th>
            <th scope="col">{t('agreement.doctorOnly')}</th>
            <th scope="col">{t('agreement.neither')}</th>
            <th scope="col">{t('agreement.kappa')}</th>
          </tr>
        </thead>
        <tbody>
          {row.terms.map((term) => (
            <tr key={term.term}>
              <th scope="row">{valueWord(row.field, term.term)}</th>
              <td>{term.both}</td>
              <td>{term.aiOnly}</td>
              <td>{term.signedOnly}</td>
              <td>{term.neither}</td>
              <td>
                {term.kappa === null ? (
                  <span class="absent">—</span>
                ) : (
                  <>
                    {kappaText(term.kappa)} <small>{rangeText(term.kappa)}</small>
                  </>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const MOST_CHANGES = 5;

function Changes({ row }: { row: FieldRow }) {
  const changes = changesOf(row, MOST_CHANGES);
  if (changes.length === 0) return <p class="hint">{t('agreement.noChanges')}</p>;
  return (
    <div class="often">
      <h3>{t('agreement.changes')}</h3>
      <ul>
        {changes.map((pair) => (
          <li key={`${pair.ai}/${pair.signed}`}>
            <span>
              <span class="ai">AI</span> {valueWord(row.field, pair.ai)} →{' '}
              <strong>{valueWord(row.field, pair.signed)}</strong>
            </span>
            <span class="number">{pair.n}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

function TrendTable({ row, grain }: { row: FieldRow; grain: 'month' | 'week' }) {
  return (
    <details>
      <summary>{t('agreement.trendNumbers')}</summary>
      <table class="plain">
        <caption class="unseen">{t('agreement.trendNumbers')}</caption>
        <thead>
          <tr>
            <th scope="col">{t('agreement.period')}</th>
            <th scope="col" class="number">
              {t('agreement.compared')}
            </th>
            <th scope="col" class="number">
              {t('agreement.rate')}
            </th>
          </tr>
        </thead>
        <tbody>
          {row.trend.map((period) => {
            const share = shareOf(period);
            return (
              <tr key={period.starts}>
                <th scope="row">{periodWord(period.starts, grain)}</th>
                <td class="number">{period.total}</td>
                <td class="number">{share === null ? '—' : percent(share)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </details>
  );
}

function Devices({ figures }: { figures: Agreement }) {
  const names = new Map(figures.models.map((row) => [row.id, row.name]));
  return (
    <div class="devices">
      <table class="plain">
        <caption>{t('agreement.devices')}</caption>
        <thead>
          <tr>
            <th scope="col">{t('agreement.model')}</th>
            <th scope="col">{t('agreement.machine')}</th>
            <th scope="col" class="number">
              {t('agreement.reports')}
            </th>
            <th scope="col" class="number">
              {t('agreement.rate')}
            </th>
            <th scope="col" class="number">
              Kappa
            </th>
          </tr>
        </thead>
        <tbody>
          {figures.devices.map((row) => {
            const model = modelWords(names.get(row.model) ?? row.model);
            return (
              <tr key={`${row.model}/${row.machine}`}>
                <td>
                  {model.title} <small class="mono">{model.weights.slice(0, 6)}</small>
                </td>
                <td>{row.machine || t('agreement.unknownMachine')}</td>
                <td class="number">{row.reports}</td>
                <td class="number">{row.agreement === null ? '—' : percent(row.agreement.value)}</td>
                <td class="number">{row.kappa === null ? '—' : kappaText(row.kappa)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
