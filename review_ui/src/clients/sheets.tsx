import { useState } from 'preact/hooks';
import { changeKeys, disable, endGrant, type Grant, NotJson, type Program, type Registration, register, words } from '../api/clients';
import { ApiError } from '../api/http';
import { Modal } from '../app/modal';
import { explain, say } from '../app/state';
import { t } from '../i18n';
import { load } from './live';
import { actsForItself, explainScope, PRESETS } from './scopes';

const EMPTY: Registration = {
  name: '',
  role: '',
  scopes: '',
  keys: '',
  keysUri: '',
  redirects: '',
  launchUrl: '',
};
const ROLES = ['ehr', 'pacs'] as const;

function wording(error: unknown): string {
  if (error instanceof NotJson) return t('clients.notJson');
  // What an administrator entered wrongly the node says by name.
  if (error instanceof ApiError && error.status === 400) return t('clients.faulty', { detail: error.message });
  return explain(error);
}

/** Does something once and closes, or says in the sheet why not. */
function useAct(onClose: () => void): [string | null, boolean, (act: () => Promise<string>) => void] {
  const [fault, setFault] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const run = async (act: () => Promise<string>) => {
    setBusy(true);
    setFault(null);
    try {
      const done = await act();
      await load();
      onClose();
      say(done);
    } catch (error) {
      setFault(wording(error));
      setBusy(false);
    }
  };
  return [fault, busy, (act) => void run(act)];
}

function Actions({ fault, busy, word, onClose }: { fault: string | null; busy: boolean; word: string; onClose: () => void }) {
  return (
    <>
      <p class="fault" role="alert">
        {fault}
      </p>
      <p class="actions">
        <button type="button" onClick={onClose}>
          {t('app.cancel')}
        </button>
        <button type="submit" class="primary" disabled={busy}>
          {word}
        </button>
      </p>
    </>
  );
}

export function RegisterSheet({ onClose }: { onClose: () => void }) {
  const [entered, setEntered] = useState(EMPTY);
  const [fault, busy, run] = useAct(onClose);
  const set = (change: Partial<Registration>) => setEntered({ ...entered, ...change });
  const scopes = words(entered.scopes);
  const itself = actsForItself(scopes);
  const people = scopes.some((scope) => !scope.startsWith('system/'));
  return (
    <Modal title={t('clients.register')} onClose={onClose} wide>
      <form
        class="client-form"
        onSubmit={(event) => {
          event.preventDefault();
          run(async () => t('clients.registered', { name: (await register(entered)).name }));
        }}
      >
        <label>
          {t('clients.name')}
          <input data-first required maxLength={100} value={entered.name} onInput={(e) => set({ name: e.currentTarget.value })} />
        </label>
        <label>
          {t('clients.scopes')}
          <textarea
            rows={2}
            required
            spellcheck={false}
            value={entered.scopes}
            onInput={(e) => set({ scopes: e.currentTarget.value })}
          />
        </label>
        <p class="presets">
          <span class="hint">{t('clients.presets')}</span>
          {PRESETS.map((preset) => (
            <button
              type="button"
              key={preset.key}
              onClick={() => set({ scopes: [...new Set([...scopes, ...words(preset.scopes)])].join(' ') })}
            >
              {t(preset.key)}
            </button>
          ))}
        </p>
        <Explained scopes={scopes} />
        {itself && (
          <label>
            {t('clients.role')}
            <select required value={entered.role} onChange={(e) => set({ role: e.currentTarget.value })}>
              <option value="">{t('clients.role.choose')}</option>
              {ROLES.map((role) => (
                <option key={role} value={role}>
                  {t(`clients.role.${role}`)}
                </option>
              ))}
            </select>
          </label>
        )}
        {people && (
          <>
            <label>
              {t('clients.redirects')}
              <textarea rows={1} spellcheck={false} required value={entered.redirects} onInput={(e) => set({ redirects: e.currentTarget.value })} />
            </label>
            <label>
              {t('clients.launchUrl')}
              <input type="url" value={entered.launchUrl} onInput={(e) => set({ launchUrl: e.currentTarget.value })} />
            </label>
          </>
        )}
        <KeyFields entered={entered} set={set} required={itself} />
        <Actions fault={fault} busy={busy} word={t('clients.register')} onClose={onClose} />
      </form>
    </Modal>
  );
}

function Explained({ scopes }: { scopes: readonly string[] }) {
  if (scopes.length === 0) return <p class="hint">{t('clients.scopes.hint')}</p>;
  return (
    <ul class="explained" aria-label={t('clients.explanation')}>
      {scopes.map((scope, at) => {
        const told = explainScope(scope);
        return (
          <li key={`${at} ${scope}`} class={told === null ? 'unknown' : ''}>
            <code>{scope}</code> {told ?? t('clients.scope.unknown')}
          </li>
        );
      })}
    </ul>
  );
}

type KeyEntry = Pick<Registration, 'keys' | 'keysUri'>;

function KeyFields({ entered, set, required }: { entered: KeyEntry; set: (change: Partial<KeyEntry>) => void; required: boolean }) {
  const given = entered.keys.trim() !== '' || entered.keysUri.trim() !== '';
  return (
    <fieldset>
      <legend>{t('clients.keys')}</legend>
      <p class="hint">{t(required ? 'clients.keys.needed' : 'clients.keys.optional')}</p>
      <label>
        {t('clients.keysUri')}
        <input
          type="url"
          placeholder="https://"
          required={required && !given}
          disabled={entered.keys.trim() !== ''}
          value={entered.keysUri}
          onInput={(e) => set({ keysUri: e.currentTarget.value })}
        />
      </label>
      <label>
        {t('clients.jwks')}
        <textarea
          rows={3}
          spellcheck={false}
          class="mono"
          placeholder={'{"keys": [{"kty": "EC", "crv": "P-384", "kid": "…", "x": "…", "y": "…"}]}'}
          disabled={entered.keysUri.trim() !== ''}
          value={entered.keys}
          onInput={(e) => set({ keys: e.currentTarget.value })}
        />
      </label>
    </fieldset>
  );
}

export function KeysSheet({ program, onClose }: { program: Program; onClose: () => void }) {
  const [entered, setEntered] = useState<KeyEntry>({ keys: '', keysUri: '' });
  const [fault, busy, run] = useAct(onClose);
  return (
    <Modal title={t('clients.rotate.title', { name: program.name })} onClose={onClose} wide>
      <form
        class="client-form"
        onSubmit={(event) => {
          event.preventDefault();
          run(async () => {
            await changeKeys(program.id, entered.keys, entered.keysUri);
            return t('clients.rotated', { name: program.name });
          });
        }}
      >
        <p>{t('clients.rotate.lead')}</p>
        <KeyFields entered={entered} set={(change) => setEntered({ ...entered, ...change })} required />
        <Actions fault={fault} busy={busy} word={t('clients.rotate')} onClose={onClose} />
      </form>
    </Modal>
  );
}

export function DisableSheet({ program, onClose }: { program: Program; onClose: () => void }) {
  const [fault, busy, run] = useAct(onClose);
  return (
    <Modal title={t('clients.disable.title', { name: program.name })} onClose={onClose}>
      <form
        class="client-form"
        onSubmit={(event) => {
          event.preventDefault();
          run(async () => {
            await disable(program.id);
            return t('clients.disabled', { name: program.name });
          });
        }}
      >
        <p>{t('clients.disable.lead')}</p>
        <Actions fault={fault} busy={busy} word={t('clients.disable')} onClose={onClose} />
      </form>
    </Modal>
  );
}

export function EndGrantSheet({ grant, onClose }: { grant: Grant; onClose: () => void }) {
  const [fault, busy, run] = useAct(onClose);
  return (
    <Modal title={t('clients.end.title', { person: grant.person, program: grant.program })} onClose={onClose}>
      <form
        class="client-form"
        onSubmit={(event) => {
          event.preventDefault();
          run(async () => {
            await endGrant(grant.id);
            return t('clients.ended', { program: grant.program });
          });
        }}
      >
        <p>{t('clients.end.lead')}</p>
        <Actions fault={fault} busy={busy} word={t('clients.end')} onClose={onClose} />
      </form>
    </Modal>
  );
}
