import type { ComponentChildren } from 'preact';
import type { Seen } from '../api/audit';
import { Modal } from '../app/modal';
import { shownMoment, t } from '../i18n';
import { ask } from './live';
import { endingWords, verbWord, whoWords } from './words';

/** One entry, all that it says; from here the question can be narrowed to it. */
export function Detail({ row, onClose }: { row: Seen; onClose: () => void }) {
  const narrow = (changed: Parameters<typeof ask>[0]) => {
    onClose();
    void ask(changed);
  };
  return (
    <Modal title={t('audit.entry', { number: row.entry })} onClose={onClose} wide>
      <dl class="audit-facts">
        <Fact name={t('audit.when')}>{shownMoment(row.at)}</Fact>
        <Fact name={t('audit.who')}>
          {whoWords(row)}
          {row.roles.length > 0 && ` (${row.roles.join(', ')})`}
        </Fact>
        {row.program !== null && <Fact name={t('audit.program')}>{row.program}</Fact>}
        <Fact name={t('audit.act')}>
          {verbWord(row.verb)} <code>{row.act}</code>
        </Fact>
        {row.what !== '' && <Fact name={t('audit.what')}>{row.what}</Fact>}
        {row.patient !== null && <Fact name={t('audit.patient')}>{row.patient}</Fact>}
        {row.query !== '' && (
          <Fact name={t('audit.query')}>
            <code class="query">{row.query}</code>
          </Fact>
        )}
        <Fact name={t('audit.outcome')}>
          <span class={`ending ${row.ending}`}>{endingWords(row)}</span> {row.reason}
        </Fact>
        {row.repeated !== null && <Fact name={t('audit.repeated')}>{t('audit.times', { count: row.repeated })}</Fact>}
        {row.address !== '' && <Fact name={t('audit.address')}>{row.address}</Fact>}
        {row.request !== '' && <Fact name={t('audit.request')}>{row.request}</Fact>}
        {row.details.map(([name, value]) => (
          <Fact key={name} name={name}>
            {value}
          </Fact>
        ))}
      </dl>
      <details class="source">
        <summary>AuditEvent</summary>
        {/* oxlint-disable-next-line no-noninteractive-tabindex */}
        <pre tabindex={0}>{JSON.stringify(row.source, null, 2)}</pre>
      </details>
      <div class="actions">
        {row.patient !== null && (
          <button type="button" onClick={() => narrow({ patients: [row.patient!] })}>
            {t('audit.onlyPatient')}
          </button>
        )}
        {row.who !== null && (
          <button type="button" onClick={() => narrow({ actor: row.who!.id })}>
            {t('audit.onlyWho')}
          </button>
        )}
        <button type="button" class="primary" data-first onClick={onClose}>
          {t('app.close')}
        </button>
      </div>
    </Modal>
  );
}

function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
