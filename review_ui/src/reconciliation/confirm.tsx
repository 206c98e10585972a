import { useState } from 'preact/hooks';
import type { Act, Comparison } from '../api/reconciliation';
import { Modal } from '../app/modal';
import { type MessageKey, t } from '../i18n';
import { OrderSide, StudySide, TargetSide } from './compare';
import { Decision } from './decision';
import { carryOut } from './live';

/** The second step: both sides once more, what will happen, and why it is done. */
export function ConfirmSheet({ both, what, onClose }: { both: Comparison; what: Act; onClose: () => void }) {
  const [reason, setReason] = useState('');
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<string | null>(null);
  const order =
    what.kind === 'link' || what.kind === 'unlink'
      ? both.orders.find((one) => one.orderId === what.orderId)
      : undefined;
  const ready = reason.trim() !== '' && !busy;
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    if (!ready) return;
    setBusy(true);
    const said = await carryOut(both, what, reason);
    setBusy(false);
    if (said === null) onClose();
    else setFault(said);
  };
  const title = what.kind === 'settle' && what.expected ? 'reconcile.expect' : `reconcile.confirm.${what.kind}`;
  return (
    <Modal title={t(title as MessageKey)} onClose={onClose} wide>
      <form class="reconcile-confirm" onSubmit={(event) => void submit(event)}>
        <div class="two">
          <StudySide both={both} />
          {order && <OrderSide both={both} order={order} />}
          {what.kind === 'move' && <TargetSide target={what.target} />}
        </div>
        <p class={what.kind === 'move' ? 'full' : 'hint'}>{t(`reconcile.effect.${what.kind}` as MessageKey)}</p>
        <Decision reason={reason} setReason={setReason} fault={fault} ready={ready} onClose={onClose} />
      </form>
    </Modal>
  );
}
