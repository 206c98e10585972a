import type { Agreement, Estimate, FieldRow } from '../api/agreement';
import { t } from '../i18n';
import { fieldWord, kappaText, linesOf, percent, periodWord, rangeText, shareOf } from './figures';
import { asked, chosenField } from './live';

const LINE = { width: 72, height: 24 };
const BAR = { width: 64, height: 14 };

/** Every field in one line; choosing one shows what lies behind its figure. */
export function Overview({ figures, chosen }: { figures: Agreement; chosen: string }) {
  return (
    <section class="overview table" aria-labelledby="overview-title">
      <h2 id="overview-title">{t('agreement.overview', { count: figures.reports })}</h2>
      <table>
        <caption class="unseen">{t('agreement.title')}</caption>
        <thead>
          <tr>
            <th scope="col">{t('agreement.field')}</th>
            <th scope="col" class="number">
              {t('agreement.compared')}
            </th>
            <th scope="col">{t('agreement.share')}</th>
            <th scope="col">{t('agreement.kappa')}</th>
            <th scope="col">{t('agreement.trend')}</th>
            <th scope="col" class="number">
              {t('agreement.notAssessed')}
            </th>
            <th scope="col" class="number">
              {t('agreement.added')}
            </th>
            <th scope="col" class="number">
              {t('agreement.removed')}
            </th>
          </tr>
        </thead>
        <tbody>
          {figures.fields.map((row) => (
            <Row key={row.field} row={row} chosen={row.field === chosen} least={figures.leastPairs} />
          ))}
        </tbody>
      </table>
      <p class="hint">{t('agreement.hint', { least: figures.leastPairs })}</p>
      <p class="hint">{t('agreement.keys')}</p>
    </section>
  );
}

function Row({ row, chosen, least }: { row: FieldRow; chosen: boolean; least: number }) {
  const choose = () => {
    chosenField.value = row.field;
  };
  return (
    <tr class={chosen ? 'chosen' : ''} onClick={choose}>
      <th scope="row">
        <button type="button" class="quiet" data-field={row.field} aria-pressed={chosen} onClick={choose}>
          {fieldWord(row.field)}
        </button>
      </th>
      <td class="number">{row.compared}</td>
      <td>
        <Share row={row} />
      </td>
      <td>
        <Kappa row={row} least={least} />
      </td>
      <td>
        <Trend row={row} />
      </td>
      <td class="number">{row.kind === 'lesion' ? '—' : row.notAssessedByAi}</td>
      <td class="number">{row.addedByDoctor}</td>
      <td class="number">{row.removedByDoctor}</td>
    </tr>
  );
}

function Share({ row }: { row: FieldRow }) {
  if (row.agreement === null) return <span class="absent">—</span>;
  return (
    <>
      <strong class={row.few ? 'few' : ''}>{percent(row.agreement.value)}</strong>{' '}
      <small>{rangeText(row.agreement, percent)}</small>
    </>
  );
}

function Kappa({ row, least }: { row: FieldRow; least: number }) {
  if (row.kind === 'lesion') return <span class="absent">{t('agreement.noKappa')}</span>;
  if (row.kappa === null) {
    const why = row.few ? t('agreement.few', { least }) : t('agreement.undefined');
    return <span class="absent">{why}</span>;
  }
  return (
    <span class="kappa">
      <KappaBar kappa={row.kappa} />
      <strong>{kappaText(row.kappa)}</strong> <small>{rangeText(row.kappa)}</small>
    </span>
  );
}

/** The figure beside it drawn: bar = kappa, whisker = its interval, from 0 to 1. */
export function KappaBar({ kappa }: { kappa: Estimate }) {
  const at = (value: number) => Math.max(0, Math.min(1, value)) * BAR.width;
  const middle = BAR.height / 2;
  return (
    <svg class="bar" width={BAR.width} height={BAR.height} aria-hidden="true" focusable="false">
      <rect class="ground" width={BAR.width} height={BAR.height} rx="3" />
      <rect class="value" width={at(kappa.value)} height={BAR.height} rx="3" />
      <line x1={at(kappa.low)} x2={at(kappa.high)} y1={middle} y2={middle} />
    </svg>
  );
}

function Trend({ row }: { row: FieldRow }) {
  const lines = linesOf(row.trend, LINE.width, LINE.height);
  if (lines.length === 0) return <span class="absent">—</span>;
  return (
    <>
      <svg
        class="trend"
        width={LINE.width + 6}
        height={LINE.height + 6}
        viewBox={`-3 -3 ${LINE.width + 6} ${LINE.height + 6}`}
        aria-hidden="true"
        focusable="false"
      >
        <line x1="0" x2={LINE.width} y1={LINE.height / 2} y2={LINE.height / 2} />
        {lines.map((points) =>
          points.includes(' ') ? <polyline key={points} points={points} /> : <Dot key={points} at={points} />,
        )}
        <Dot at={lines.at(-1)!.split(' ').at(-1)!} />
      </svg>
      <span class="unseen">{trendText(row)}</span>
    </>
  );
}

function Dot({ at }: { at: string }) {
  const [x, y] = at.split(',');
  return <circle cx={x} cy={y} r="2.5" />;
}

function trendText(row: FieldRow): string {
  return row.trend
    .map((period) => {
      const share = shareOf(period);
      const said = share === null ? t('form.notAssessedLong') : percent(share);
      return `${periodWord(period.starts, asked.value.grain)} ${said}`;
    })
    .join(', ');
}
