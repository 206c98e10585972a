import { useEffect, useState } from 'preact/hooks';
import { readHistory, type ReportVersion } from '../api/fhir';
import { type Report, sameValue } from '../api/types';
import { Modal } from '../app/modal';
import { explain } from '../app/state';
import { shownTime, t } from '../i18n';
import { saysWhat } from './draft';
import { fieldName, followupWords, placeOf, valueWords } from './words';

export interface DiffRow {
  what: string;
  left: string;
  right: string;
}

/** What differs between two versions of a report, in clinical words. */
export function diff(left: Report, right: Report): DiffRow[] {
  const rows: DiffRow[] = [];
  for (const said of saysWhat(right)) {
    const before = saysWhat(left).find((row) => row.state.id === said.state.id)?.state.value ?? null;
    if (sameValue(before, said.state.value)) continue;
    const what = `${placeOf(said)} · ${fieldName(said.key)}`;
    rows.push({ what, left: valueWords(said.key, before), right: valueWords(said.key, said.state.value) });
  }
  const words = [
    ['form.followup', followupWords(left.followup.value), followupWords(right.followup.value)],
    ['form.adviceText', left.adviceText, right.adviceText],
    ['form.impression', left.impression, right.impression],
    ['form.patientSummary', left.patientSummary, right.patientSummary],
  ] as const;
  for (const [key, before, after] of words) {
    if (before !== after) rows.push({ what: t(key), left: before || '—', right: after || '—' });
  }
  return rows;
}

export function History({ report, onClose }: { report: Report; onClose: () => void }) {
  const [versions, setVersions] = useState<ReportVersion[] | null>(null);
  const [fault, setFault] = useState<string | null>(null);
  const [chosen, setChosen] = useState<[number, number]>([0, 0]);
  useEffect(() => {
    readHistory(report).then(
      (found) => {
        setVersions(found);
        setChosen([Math.max(0, found.length - 2), found.length - 1]);
      },
      (error: unknown) => setFault(explain(error)),
    );
  }, []);
  return (
    <Modal title={t('history.title')} onClose={onClose} wide>
      {fault && <p class="fault">{fault}</p>}
      {!versions && !fault && <p class="loading">{t('app.loading')}</p>}
      {versions && <Compared versions={versions} chosen={chosen} onChosen={setChosen} />}
    </Modal>
  );
}

interface ComparedProps {
  versions: ReportVersion[];
  chosen: [number, number];
  onChosen: (chosen: [number, number]) => void;
}

function Compared({ versions, chosen, onChosen }: ComparedProps) {
  const [left, right] = [versions[chosen[0]], versions[chosen[1]]];
  if (!left || !right || versions.length < 2) return <p class="hint">{t('history.only')}</p>;
  const rows = diff(left.report, right.report);
  return (
    <>
    {right.reason && <p class="why">{t('history.reason', { reason: right.reason })}</p>}
    <table class="diff">
      <thead>
        <tr>
          <th scope="col">{t('history.field')}</th>
          <th scope="col">
            <Choice label={t('history.left')} versions={versions} at={chosen[0]} onAt={(at) => onChosen([at, chosen[1]])} />
          </th>
          <th scope="col">
            <Choice label={t('history.right')} versions={versions} at={chosen[1]} onAt={(at) => onChosen([chosen[0], at])} />
          </th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={row.what}>
            <th scope="row">{row.what}</th>
            <td>
              <del>{row.left}</del>
            </td>
            <td>
              <ins>{row.right}</ins>
            </td>
          </tr>
        ))}
        {rows.length === 0 && (
          <tr>
            <td colSpan={3}>{t('history.same')}</td>
          </tr>
        )}
      </tbody>
    </table>
    </>
  );
}

interface ChoiceProps {
  label: string;
  versions: ReportVersion[];
  at: number;
  onAt: (at: number) => void;
}

function Choice({ label, versions, at, onAt }: ChoiceProps) {
  return (
    <select aria-label={label} value={String(at)} onChange={(event) => onAt(Number(event.currentTarget.value))}>
      {versions.map((row, index) => (
        <option key={row.version} value={String(index)}>
          {t('history.option', {
            version: row.version,
            status: t(`status.${row.report.status}`),
            time: shownTime(row.at),
          })}
        </option>
      ))}
    </select>
  );
}
