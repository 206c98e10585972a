import { t } from '../i18n';

/** The end of every confirmation: the reason that is kept, what went wrong, and the two ways out. */
export function Decision({
  reason,
  setReason,
  fault,
  ready,
  onClose,
}: {
  reason: string;
  setReason: (reason: string) => void;
  fault: string | null;
  ready: boolean;
  onClose: () => void;
}) {
  return (
    <>
      <label>
        {t('reconcile.reason')}
        <textarea
          data-first
          rows={2}
          maxLength={500}
          required
          value={reason}
          onInput={(event) => setReason(event.currentTarget.value)}
        />
      </label>
      <p class="fault" role="alert">
        {fault}
      </p>
      <div class="actions">
        <button type="button" onClick={onClose}>
          {t('app.cancel')}
        </button>
        <button type="submit" class="primary" disabled={!ready}>
          {t('reconcile.do')}
        </button>
      </div>
    </>
  );
}
