import { useEffect, useState } from 'preact/hooks';
import { type DeskCode, printDeskCode } from '../api/auth';
import { Modal } from '../app/modal';
import { explain } from '../app/state';
import { shownTime, t } from '../i18n';

/** The one-time QR code that the desk prints for a patient. */
export function Desk({ patientId, onClose }: { patientId: string; onClose: () => void }) {
  const [code, setCode] = useState<DeskCode | null>(null);
  const [fault, setFault] = useState<string | null>(null);
  useEffect(() => {
    printDeskCode(patientId).then(setCode, (error: unknown) => setFault(explain(error)));
  }, []);
  return (
    <Modal title={t('desk.title')} onClose={onClose}>
      {fault && <p class="fault">{fault}</p>}
      {code && (
        <div class="desk">
          <p>{t('desk.lead', { name: code.display, time: shownTime(code.expiresAt) })}</p>
          <img
            src={`data:image/svg+xml;charset=utf-8,${encodeURIComponent(code.svg)}`}
            alt={t('desk.title')}
            width="240"
            height="240"
          />
          <p class="hint">{t(code.hasCheck ? 'desk.check' : 'desk.noCheck')}</p>
          <div class="actions">
            <button type="button" class="primary" onClick={() => print()}>
              {t('desk.print')}
            </button>
          </div>
        </div>
      )}
    </Modal>
  );
}
