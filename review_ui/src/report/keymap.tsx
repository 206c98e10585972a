import { Modal } from '../app/modal';
import { lettersOn } from '../app/state';
import { type MessageKey, t, word } from '../i18n';
import { CATEGORY_CONCEPT, LESION_KEYS, lexiconField } from '../lexicon';
import { LETTER_OF_FIELD } from './keys';

const ROWS: readonly [readonly string[], MessageKey][] = [
  [['Space'], 'keys.cine'],
  [['←', '→'], 'keys.frame'],
  [['[', ']'], 'keys.clip'],
  [[',', '.'], 'keys.lesion'],
  [['H'], 'keys.heat'],
  [['C'], 'keys.box'],
  [['L', 'V', 'Z'], 'keys.tools'],
  [['U'], 'keys.undo'],
  [['Ctrl S'], 'keys.save'],
  [['⇧ Enter'], 'keys.sign'],
  [['N'], 'keys.next'],
  [['D'], 'keys.history'],
  [['S'], 'keys.similar'],
  [['Esc'], 'keys.back'],
  [['?'], 'keys.help'],
];

export function KeyMap({ onClose }: { onClose: () => void }) {
  return (
    <Modal title={t('keys.title')} onClose={onClose} wide>
      <label class="check">
        <input
          type="checkbox"
          checked={lettersOn.value}
          onChange={(event) => {
            lettersOn.value = event.currentTarget.checked;
          }}
        />
        {t('keys.enabled')}
      </label>
      <div class="keymap">
        <section>
          <dl>
            {LESION_KEYS.map((key) => (
              <div key={key}>
                <dt>
                  <kbd>{LETTER_OF_FIELD[key]}</kbd>
                </dt>
                <dd>{word(key === 'assessment_category' ? CATEGORY_CONCEPT : lexiconField(key))}</dd>
              </div>
            ))}
          </dl>
          <p>{t('keys.field')}</p>
          <p>{t('keys.clear')}</p>
          <p>{t('keys.none')}</p>
          <p>{t('keys.category')}</p>
        </section>
        <section>
          <dl>
            {ROWS.map(([keys, message]) => (
              <div key={message}>
                <dt>
                  {keys.map((key) => (
                    <kbd key={key}>{key}</kbd>
                  ))}
                </dt>
                <dd>{t(message)}</dd>
              </div>
            ))}
          </dl>
        </section>
      </div>
      <p>{t('keys.list')}</p>
    </Modal>
  );
}
