import { useState } from 'preact/hooks';
import { isSigned, type Report, type Status } from '../api/types';
import type { Medium } from '../api/write';
import { Modal } from '../app/modal';
import { t, word } from '../i18n';
import { category } from '../lexicon';
import {
  type Change,
  decidingCategory,
  differences,
  type Draft,
  isDirty,
  onlyAdds,
  overallCategory,
  unsaved,
} from './draft';
import { fieldName, placeOf, valueWords } from './words';

export interface SignOff {
  status: Status;
  reason: string;
  told: Medium | null;
}

interface Props {
  report: Report;
  draft: Draft;
  busy: boolean;
  fault: string | null;
  onSign: (how: SignOff) => void;
  onClose: () => void;
}

const REASONS = ['review', 'prior', 'clinical', 'typing'] as const;
const KINDS = ['amended', 'corrected', 'appended'] as const;

export function SignSheet({ report, draft, busy, fault, onSign, onClose }: Props) {
  const again = isSigned(report.status);
  const adds = again && onlyAdds(report, draft);
  const [kind, setKind] = useState<(typeof KINDS)[number]>(adds ? 'appended' : 'amended');
  const [reason, setReason] = useState('');
  const [told, setTold] = useState<Medium | 'hold' | null>(null);
  const overall = overallCategory(report, draft);
  const deciding = decidingCategory(report, draft);
  const gated = deciding !== null && category(deciding).gated;
  const nothing = again && !isDirty(report, draft);
  const ready =
    overall !== null && !busy && !nothing && (!gated || told !== null) && (!again || reason.trim() !== '');

  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    if (!ready) return;
    const medium = gated && told !== 'hold' ? told : null;
    onSign({ status: again ? kind : 'final', reason, told: medium });
  };

  return (
    <Modal title={t(again ? 'sign.amendTitle' : 'sign.title')} onClose={onClose}>
      <form class="sign" onSubmit={submit}>
        <p class="verdict">
          {t('sign.category')}
          {overall === null ? (
            <strong class="absent">—</strong>
          ) : (
            <strong class={`tier-text ${gated ? 'gated' : ''}`}>{word(category(overall))}</strong>
          )}
        </p>
        {overall === null && <p class="fault">{t('sign.needCategory')}</p>}
        {again && <Changes title={t('sign.edits', { count: unsaved(report, draft).length })} changes={unsaved(report, draft)} />}
        <Differences report={report} draft={draft} folded={again} />
        {again && <KindOfChange kind={kind} adds={adds} onKind={setKind} />}
        {again && <Reason reason={reason} onReason={setReason} />}
        {gated && <Telling deciding={deciding} told={told} onTold={setTold} />}
        {nothing && <p class="hint">{t('sign.nothing')}</p>}
        <p class="hint">{t('sign.declaration')}</p>
        <p class="fault" role="alert">
          {fault}
        </p>
        <div class="actions">
          <button type="button" onClick={onClose}>
            {t('app.cancel')}
          </button>
          <button type="submit" class="primary" disabled={!ready} data-first>
            {t(again ? 'sign.confirmAmend' : 'sign.confirm')} <kbd>Enter</kbd>
          </button>
        </div>
      </form>
    </Modal>
  );
}

function Differences({ report, draft, folded }: { report: Report; draft: Draft; folded: boolean }) {
  const changes = differences(report, draft);
  if (changes.length === 0) return <p class="hint">{t('sign.unchanged')}</p>;
  const title = t('sign.changes', { count: changes.length });
  if (!folded) return <Changes title={title} changes={changes} fromAi />;
  return (
    <details>
      <summary>{title}</summary>
      <Changes title="" changes={changes} fromAi />
    </details>
  );
}

/** Field by field: what was, what is. */
export function Changes({ title, changes, fromAi }: { title: string; changes: Change[]; fromAi?: boolean }) {
  if (changes.length === 0) return null;
  return (
    <section class="changes">
      {title && <h3>{title}</h3>}
      <ul>
        {changes.map((change) => (
          <li key={change.state.id}>
            <span class="what">
              {placeOf(change)} · {fieldName(change.key)}
            </span>
            <del>
              {fromAi && <span class="ai">{t('form.aiMark')}</span>}
              {fromAi && change.from === null ? t('form.aiNoOpinion') : valueWords(change.key, change.from)}
            </del>
            <span aria-hidden="true">→</span>
            <ins>{valueWords(change.key, change.to)}</ins>
          </li>
        ))}
      </ul>
    </section>
  );
}

interface KindProps {
  kind: (typeof KINDS)[number];
  adds: boolean;
  onKind: (kind: (typeof KINDS)[number]) => void;
}

function KindOfChange({ kind, adds, onKind }: KindProps) {
  return (
    <fieldset class="choices">
      <legend>{t('sign.kind')}</legend>
      {KINDS.map((row) => (
        <label key={row}>
          <input
            type="radio"
            name="kind"
            checked={kind === row}
            disabled={row === 'appended' && !adds}
            onChange={() => onKind(row)}
          />
          <span>{t(`sign.kind.${row}`)}</span>
          <small>{t(`sign.kind.${row}.hint`)}</small>
        </label>
      ))}
    </fieldset>
  );
}

function Reason({ reason, onReason }: { reason: string; onReason: (text: string) => void }) {
  return (
    <div class="reason">
      <label>
        <span>{t('sign.reason')}</span>
        <textarea
          rows={2}
          required
          data-first
          maxLength={500}
          value={reason}
          onInput={(event) => onReason(event.currentTarget.value)}
        />
      </label>
      <div class="quick">
        {REASONS.map((row) => (
          <button key={row} type="button" class="chip" onClick={() => onReason(t(`sign.reason.${row}`))}>
            {t(`sign.reason.${row}`)}
          </button>
        ))}
      </div>
    </div>
  );
}

interface TellingProps {
  deciding: string;
  told: Medium | 'hold' | null;
  onTold: (told: Medium | 'hold') => void;
}

/** 4A to 6: the patient hears it from a person first. */
function Telling({ deciding, told, onTold }: TellingProps) {
  return (
    <fieldset class="choices telling">
      <legend>{t('sign.told.title')}</legend>
      <p>{t('sign.told.lead', { category: deciding })}</p>
      {(['phone', 'in-person', 'hold'] as const).map((row) => (
        <label key={row}>
          <input type="radio" name="told" data-first checked={told === row} onChange={() => onTold(row)} />
          <span>{t(`sign.told.${row}`)}</span>
          {row === 'hold' && <small>{t('sign.told.holdHint')}</small>}
        </label>
      ))}
    </fieldset>
  );
}
