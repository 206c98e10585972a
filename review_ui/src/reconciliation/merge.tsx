import { useEffect, useState } from 'preact/hooks';
import { ApiError } from '../api/http';
import {
  type BothRows,
  likelyToStand,
  type MergeAct,
  readBothRows,
  type Row,
  type Said,
  sayOfRows,
} from '../api/merging';
import { nameOf, type Pair, type Person } from '../api/reconciliation';
import { Modal } from '../app/modal';
import { explain, say } from '../app/state';
import { type MessageKey, t } from '../i18n';
import { Fact, Who } from './compare';
import { Decision } from './decision';
import { load } from './live';

/** What is about to be said of two rows. */
export interface AskedOfRows {
  kind: MergeAct;
  ids: readonly [string, string];
}
type Ask = (what: AskedOfRows) => void;

/** Rows that may be one woman; nothing happens to them by itself. */
export function Pairs({ pairs, onAsk }: { pairs: readonly Pair[]; onAsk: Ask }) {
  return (
    <section aria-labelledby="reconcile-pairs" class="pairs">
      <h2 id="reconcile-pairs">{t('reconcile.pairs')}</h2>
      <p class="hint">{t('reconcile.pairsHint')}</p>
      <ul>
        {pairs.map((pair) => (
          <li key={pair.ids.join()}>
            <Two ids={pair.ids} patients={pair.patients} />
            <p class="soft">
              {pair.shared.map((kind) => t(`reconcile.shared.${kind}` as MessageKey)).join(' · ')}
            </p>
            <div class="actions">
              <Ask kind="merge" ids={pair.ids} onAsk={onAsk} />
              <Ask kind="different" ids={pair.ids} onAsk={onAsk} />
            </div>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** What people have said of two rows, each with the act that says otherwise. */
export function Decisions({ said, onAsk }: { said: readonly Said[]; onAsk: Ask }) {
  return (
    <section aria-labelledby="reconcile-said" class="pairs">
      <h2 id="reconcile-said">{t('reconcile.said')}</h2>
      <ul>
        {said.map((one) => (
          <li key={one.ids.join()} data-verdict={one.verdict}>
            <Two ids={one.ids} patients={one.patients} />
            <p>{t(`reconcile.said.${one.verdict}` as MessageKey)}</p>
            <p class="soft">
              <span class="mono">{one.at.slice(0, 10)}</span> {one.reason}
            </p>
            <div class="actions">
              <Ask kind={one.verdict === 'same' ? 'unmerge' : 'merge'} ids={one.ids} onAsk={onAsk} />
            </div>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Two({ ids, patients }: { ids: readonly [string, string]; patients: readonly [Person, Person] }) {
  return (
    <>
      {patients.map((one, at) => (
        <p key={ids[at]}>
          <strong>{nameOf(one.name)}</strong> <span class="mono">{one.patientId || '—'}</span>{' '}
          <span class="soft">{one.issuer || '—'}</span> <span class="mono">{one.birthDate ?? '—'}</span>
        </p>
      ))}
    </>
  );
}

function Ask({ kind, ids, onAsk }: AskedOfRows & { onAsk: Ask }) {
  return (
    <button type="button" data-act={kind} onClick={() => onAsk({ kind, ids })}>
      {t(`reconcile.${kind}` as MessageKey)}
    </button>
  );
}

/** The second step: both rows in full, which one stands, what will happen, and why. */
export function MergeSheet({ asked, onClose }: { asked: AskedOfRows; onClose: () => void }) {
  const [both, setBoth] = useState<BothRows | null>(null);
  const [stands, setStands] = useState('');
  const [reason, setReason] = useState('');
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<string | null>(null);
  const look = async () => {
    try {
      const found = await readBothRows(asked.ids);
      setBoth(found);
      setStands(found.merged === null ? likelyToStand(found) : otherOf(found, found.merged));
    } catch (error) {
      setFault(explain(error));
    }
  };
  useEffect(() => void look(), []);
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    if (both === null || reason.trim() === '' || busy) return;
    setBusy(true);
    try {
      await sayOfRows(asked.kind, [otherOf(both, stands), stands], both.seen, reason);
      say(t('reconcile.done'));
      await load();
      onClose();
    } catch (error) {
      const changed = error instanceof ApiError && error.status === 409;
      setFault(changed ? t('reconcile.changed') : explain(error));
      if (changed) await look();
    }
    setBusy(false);
  };
  return (
    <Modal title={t(`reconcile.confirm.${asked.kind}` as MessageKey)} onClose={onClose} wide>
      <form class="reconcile-confirm" onSubmit={(event) => void submit(event)}>
        {both === null && fault === null && <p class="loading">{t('app.loading')}</p>}
        {both !== null && (
          <div class="two" role={asked.kind === 'merge' ? 'radiogroup' : undefined} aria-label={t('reconcile.stands')}>
            {both.rows.map((row) => (
              <RowSide key={row.id} row={row} differs={both.differs}>
                {asked.kind === 'merge' && (
                  <label class="stands">
                    <input
                      type="radio"
                      name="stands"
                      value={row.id}
                      checked={stands === row.id}
                      onChange={() => setStands(row.id)}
                    />
                    {t('reconcile.stands')}
                  </label>
                )}
              </RowSide>
            ))}
          </div>
        )}
        <p class={asked.kind === 'merge' ? 'full' : 'hint'}>{t(`reconcile.effect.${asked.kind}` as MessageKey)}</p>
        <Decision
          reason={reason}
          setReason={setReason}
          fault={fault}
          ready={both !== null && reason.trim() !== '' && !busy}
          onClose={onClose}
        />
      </form>
    </Modal>
  );
}

function RowSide({
  row,
  differs,
  children,
}: {
  row: Row;
  differs: readonly string[];
  children: preact.ComponentChildren;
}) {
  return (
    <article class="side">
      <h3>{t('reconcile.row')}</h3>
      <dl>
        <Who person={row.patient} differs={differs} />
        <Fact name="studies" value={String(row.studies)} />
        <Fact name="namedByEhr" value={t(row.namedByEhr ? 'reconcile.yes' : 'reconcile.no')} />
        {row.others.length > 0 && <Fact name="others" value={row.others.join(' · ')} />}
      </dl>
      {children}
    </article>
  );
}

function otherOf(both: BothRows, id: string): string {
  const [one, other] = both.rows;
  return one.id === id ? other.id : one.id;
}
