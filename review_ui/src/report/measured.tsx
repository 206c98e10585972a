// What was measured at the machine, beside what AI and doctor say.
import { useSignal } from '@preact/signals';
import { useEffect, useId } from 'preact/hooks';
import { type Group, grouped, type MachineReport, readMeasured, shownValue } from '../api/measured';
import type { Report } from '../api/types';
import { explain } from '../app/state';
import { oneOf, t } from '../i18n';

export function Measured({ report }: { report: Report }) {
  const found = useSignal<MachineReport[]>([]);
  const fault = useSignal<string | null>(null);
  const asked = useSignal(0);
  useEffect(() => {
    const leaving = new AbortController();
    fault.value = null;
    readMeasured(report.id, leaving.signal)
      .then((reports) => {
        if (!leaving.signal.aborted) found.value = reports;
      })
      .catch((error: unknown) => {
        if (!leaving.signal.aborted) fault.value = explain(error);
      });
    return () => leaving.abort();
  }, [report.id, report.version, asked.value]);
  if (fault.value !== null) {
    return (
      <p class="fault">
        {fault.value}{' '}
        <button type="button" class="quiet" onClick={() => (asked.value += 1)}>
          {t('app.retry')}
        </button>
      </p>
    );
  }
  return (
    <>
      {found.value.map((one) => (
        <Document key={`${one.device} ${one.title}`} report={one} />
      ))}
    </>
  );
}

function Document({ report }: { report: MachineReport }) {
  const heading = useId();
  return (
    <section class="measured" aria-labelledby={heading}>
      <h2 id={heading}>
        {t('measured.title')}
        {report.algorithm !== null && <span class="ai">{t('form.aiMark')}</span>}
      </h2>
      <p class="hint">
        {[report.device, report.algorithm, t(report.verified ? 'measured.verified' : 'measured.unverified')]
          .filter(Boolean)
          .join(' · ')}
      </p>
      {report.measurements.length === 0 && <p class="hint">{t('measured.none')}</p>}
      {grouped(report.measurements).map((group) => (
        <Rows key={group.heading} group={group} />
      ))}
      {report.leftOut > 0 && <p class="hint">{t('measured.leftOut', { count: report.leftOut })}</p>}
    </section>
  );
}

function Rows({ group }: { group: Group }) {
  return (
    <table>
      {group.heading && <caption>{group.heading}</caption>}
      <tbody>
        {group.rows.map((row, place) => (
          // oxlint-disable-next-line react/no-array-index-key -- a machine may send the same row twice
          <tr key={place}>
            <th scope="row">
              {oneOf(row.name)}
              {row.derivation && <small> {row.derivation}</small>}
            </th>
            <td>{shownValue(row)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
