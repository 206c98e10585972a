import { Modal } from '../app/modal';
import { t } from '../i18n';
import type { Rebased } from './draft';
import { fieldName, placeOf, valueWords } from './words';

interface Props {
  /** null: the newer version has not been loaded yet. */
  rebased: Rebased | null;
  onReload: () => void;
  onClose: () => void;
}

/** Somebody else was faster: nothing is lost, and nothing is overwritten unseen. */
export function Conflict({ rebased, onReload, onClose }: Props) {
  return (
    <Modal title={t('conflict.title')} onClose={onClose}>
      {rebased ? <Outcome rebased={rebased} /> : <p>{t('conflict.lead')}</p>}
      <div class="actions">
        {rebased ? (
          <button type="button" class="primary" data-first onClick={onClose}>
            {t('app.close')}
          </button>
        ) : (
          <button type="button" class="primary" data-first onClick={onReload}>
            {t('conflict.reload')}
          </button>
        )}
      </div>
    </Modal>
  );
}

function Outcome({ rebased }: { rebased: Rebased }) {
  if (rebased.clashes.length === 0 && !rebased.wordsClash) return <p>{t('conflict.none')}</p>;
  return (
    <section class="changes">
      {rebased.clashes.length > 0 && <p>{t('conflict.clashes')}</p>}
      <ul>
        {rebased.clashes.map((clash) => (
          <li key={clash.state.id}>
            <span class="what">
              {placeOf(clash)} · {fieldName(clash.key)}
            </span>
            <del>{t('conflict.theirs', { value: valueWords(clash.key, clash.from) })}</del>
            <ins>{t('conflict.mine', { value: valueWords(clash.key, clash.to) })}</ins>
          </li>
        ))}
      </ul>
      {rebased.wordsClash && <p>{t('conflict.words')}</p>}
    </section>
  );
}
