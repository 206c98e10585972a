import { useState } from 'preact/hooks';
import type { Act, Candidate, Comparison, Person, Target } from '../api/reconciliation';
import { findPatients, nameOf } from '../api/reconciliation';
import { explain } from '../app/state';
import { type MessageKey, t } from '../i18n';
import { choose, chosen, shown } from './live';

/** The chosen study beside every order that it may answer. */
export function SideBySide({ onAct }: { onAct: (what: Act) => void }) {
  const both = shown.value;
  if (chosen.value === null) return <p class="hint choose">{t('reconcile.choose')}</p>;
  if (both === null) return <p class="loading">{t('app.loading')}</p>;
  return (
    <section class="both" aria-label={t('reconcile.title')}>
      <StudySide both={both} />
      <div class="orders">
        {both.filedAs !== '' && (
          <p class="void">
            {t('reconcile.void')}{' '}
            <button type="button" class="quiet" onClick={() => void choose(both.filedAs)}>
              {t('reconcile.filedAs')}
            </button>
          </p>
        )}
        {both.orders.length === 0 && both.filedAs === '' && <p class="hint">{t('reconcile.noCandidates')}</p>}
        {both.orders.map((order) => (
          <OrderSide key={order.orderId} both={both} order={order}>
            {both.filedAs === '' && <Verdicts order={order} onAct={onAct} />}
          </OrderSide>
        ))}
        {both.filedAs === '' && !both.orders.some((order) => order.linked) && (
          <button type="button" onClick={() => onAct({ kind: 'settle', expected: both.settled })}>
            {t(both.settled ? 'reconcile.expect' : 'reconcile.settle')}
          </button>
        )}
        {both.filedAs === '' && <OtherPatient both={both} onAct={onAct} />}
      </div>
    </section>
  );
}

/** Whom to file the study under when no order leads to her. */
function OtherPatient({ both, onAct }: { both: Comparison; onAct: (what: Act) => void }) {
  const [found, setFound] = useState<Target[] | null>(null);
  const [fault, setFault] = useState<string | null>(null);
  const look = async (event: SubmitEvent) => {
    event.preventDefault();
    const number = new FormData(event.currentTarget as HTMLFormElement).get('patient')?.toString().trim();
    if (!number) return;
    try {
      setFound(await findPatients(number));
      setFault(null);
    } catch (error) {
      setFault(explain(error));
    }
  };
  return (
    <details class="other">
      <summary>{t('reconcile.other')}</summary>
      <p class="hint">{t('reconcile.otherHint')}</p>
      <form role="search" onSubmit={(event) => void look(event)}>
        <input type="search" name="patient" aria-label={t('reconcile.patientId')} placeholder={t('reconcile.patientId')} />
        <button type="submit">{t('reconcile.look')}</button>
      </form>
      {fault !== null && (
        <p class="fault" role="alert">
          {fault}
        </p>
      )}
      {found !== null && found.length === 0 && <p class="hint">{t('reconcile.nobody')}</p>}
      {found?.map((target) => (
        <article key={target.id} class="side">
          <dl>
            <Who person={target.patient} differs={[]} />
          </dl>
          <div class="actions">
            <button type="button" onClick={() => onAct({ kind: 'move', target, orderId: null })}>
              {t('reconcile.move')}
            </button>
          </div>
        </article>
      ))}
      {both.reportStatus !== '' && <p class="hint">{t('reconcile.otherReport')}</p>}
    </details>
  );
}

export function TargetSide({ target }: { target: Target }) {
  return (
    <article class="side">
      <h3>{t('reconcile.target')}</h3>
      <dl>
        <Who person={target.patient} differs={[]} />
      </dl>
    </article>
  );
}

export function StudySide({ both }: { both: Comparison }) {
  return (
    <article class="side">
      <h3>{t('reconcile.study')}</h3>
      <dl>
        <Who person={both.patient} differs={[]} />
        <Fact name="accession" value={both.accessionNumber} />
        <Fact name="date" value={both.studyDate} />
        <Fact name="procedure" value={both.description} />
        <Fact name="reports" value={reportWord(both.reportStatus)} />
      </dl>
    </article>
  );
}

interface Side {
  both: Comparison;
  order: Candidate;
  children?: preact.ComponentChildren;
}

export function OrderSide({ both, order, children }: Side) {
  const other = order.accessionNumber !== both.accessionNumber;
  return (
    <article class={`side ${order.linked ? 'linked' : ''}`}>
      <h3>
        {t('reconcile.order')}
        {order.linked && <span class="mark"> · {t('reconcile.linked')}</span>}
        {order.verdict === 'unlinked' && <span class="soft"> · {t('reconcile.undone')}</span>}
      </h3>
      <dl>
        <Who person={order.patient} differs={order.differs} />
        <Fact name="accession" value={order.accessionNumber} differs={other} />
        <Fact name="placer" value={order.placerNumber} />
        <Fact name="date" value={order.scheduledOn} />
        <Fact name="procedure" value={order.procedure} />
        <Fact name="status" value={t(`reconcile.status.${order.status}` as MessageKey)} />
      </dl>
      {children}
    </article>
  );
}

function Verdicts({ order, onAct }: { order: Candidate; onAct: (what: Act) => void }) {
  const { orderId, linked, refused, verdict } = order;
  return (
    <>
      {refused !== '' && verdict !== 'unlinked' && (
        <p class="fault">{t(`reconcile.refused.${refused}` as MessageKey)}</p>
      )}
      <div class="actions">
        {!linked && refused === '' && (
          <button type="button" class="primary" onClick={() => onAct({ kind: 'link', orderId })}>
            {t('reconcile.link')}
          </button>
        )}
        {refused === 'other-patient' && verdict !== 'unlinked' && (
          <button type="button" onClick={() => onAct({ kind: 'move', target: order.target, orderId })}>
            {t('reconcile.move')}
          </button>
        )}
        {verdict !== 'unlinked' && (linked || order.namedBy !== null) && (
          <button type="button" onClick={() => onAct({ kind: 'unlink', orderId })}>
            {t('reconcile.unlink')}
          </button>
        )}
      </div>
    </>
  );
}

export function Who({ person, differs }: { person: Person; differs: readonly string[] }) {
  return (
    <>
      <Fact name="name" value={nameOf(person.name)} differs={differs.includes('name')} />
      <Fact name="patientId" value={person.patientId} differs={differs.includes('patient_id')} />
      <Fact name="issuer" value={person.issuer} differs={differs.includes('issuer')} />
      <Fact name="birthDate" value={person.birthDate} differs={differs.includes('birth_date')} />
      <Fact name="sex" value={person.sex} differs={differs.includes('sex')} />
    </>
  );
}

export function Fact({ name, value, differs }: { name: string; value: string | null; differs?: boolean }) {
  return (
    <div class={differs ? 'differs' : ''}>
      <dt>{t(`reconcile.${name}` as MessageKey)}</dt>
      <dd>
        {value || '—'}
        {differs && <small> {t('reconcile.differs')}</small>}
      </dd>
    </div>
  );
}

function reportWord(status: string): string {
  return status === '' ? '' : t(`status.${status}` as MessageKey);
}
