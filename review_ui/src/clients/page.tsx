import { useEffect, useState } from 'preact/hooks';
import type { Grant, Program } from '../api/clients';
import { go, lettersOn } from '../app/state';
import { shownTime, t } from '../i18n';
import { isTyping } from '../report/keys';
import './clients.css';
import { grants, load, programs, trouble } from './live';
import { explainScope } from './scopes';
import { DisableSheet, EndGrantSheet, KeysSheet, RegisterSheet } from './sheets';

type Asked =
  | { what: 'register' }
  | { what: 'keys' | 'disable'; program: Program }
  | { what: 'end'; grant: Grant };

export function ClientsPage() {
  const [asked, setAsked] = useState<Asked | null>(null);
  useEffect(() => {
    void load();
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
      if (!lettersOn.value || document.querySelector('dialog[open]') !== null) return;
      if (event.key === 'n') setAsked({ what: 'register' });
      else if (event.key === 'Escape') go({ screen: 'worklist' });
      else return;
      event.preventDefault();
    };
    addEventListener('keydown', pressed);
    return () => removeEventListener('keydown', pressed);
  }, []);
  const known = programs.value;
  const register = () => setAsked({ what: 'register' });
  return (
    <main class="clients" aria-busy={known === null}>
      <div class="heading">
        <h1>{t('clients.title')}</h1>
        <p class="hint">{t('clients.lead')}</p>
        {known !== null && known.length > 0 && (
          <button type="button" class="primary" onClick={register}>
            {t('clients.register')} <kbd>N</kbd>
          </button>
        )}
      </div>
      {trouble.value !== null && (
        <p class="fault" role="alert">
          {trouble.value}
        </p>
      )}
      {known === null && trouble.value === null && <p class="loading">{t('app.loading')}</p>}
      {known !== null && known.length === 0 && <Empty onRegister={register} />}
      {known !== null && known.length > 0 && <Programs known={known} onAsk={setAsked} />}
      {grants.value.length > 0 && <Grants given={grants.value} onAsk={setAsked} />}
      <Sheet asked={asked} onClose={() => setAsked(null)} />
    </main>
  );
}

function Sheet({ asked, onClose }: { asked: Asked | null; onClose: () => void }) {
  if (asked === null) return null;
  if (asked.what === 'register') return <RegisterSheet onClose={onClose} />;
  if (asked.what === 'end') return <EndGrantSheet grant={asked.grant} onClose={onClose} />;
  if (asked.what === 'keys') return <KeysSheet program={asked.program} onClose={onClose} />;
  return <DisableSheet program={asked.program} onClose={onClose} />;
}

function Empty({ onRegister }: { onRegister: () => void }) {
  return (
    <section class="empty">
      <h2>{t('clients.empty.title')}</h2>
      <p>{t('clients.empty.lead')}</p>
      <button type="button" class="primary" onClick={onRegister}>
        {t('clients.register')} <kbd>N</kbd>
      </button>
    </section>
  );
}

function Programs({ known, onAsk }: { known: readonly Program[]; onAsk: (asked: Asked) => void }) {
  return (
    <ul class="programs">
      {known.map((program) => (
        <li key={program.id} class={program.disabled ? 'shut' : ''}>
          <article aria-labelledby={`p-${program.id}`}>
            <header>
              <h2 id={`p-${program.id}`}>{program.name}</h2>
              <span class={`status ${program.disabled ? 'entered-in-error' : 'final'}`}>
                {t(program.disabled ? 'clients.state.disabled' : 'clients.state.active')}
              </span>
              <span class="grow" />
              {!program.disabled && (
                <>
                  {(program.keys.length > 0 || program.keysUri !== null) && (
                    <button type="button" onClick={() => onAsk({ what: 'keys', program })}>
                      {t('clients.rotate')}
                    </button>
                  )}
                  <button type="button" onClick={() => onAsk({ what: 'disable', program })}>
                    {t('clients.disable')}
                  </button>
                </>
              )}
            </header>
            <Facts program={program} />
            <ul class="explained">
              {program.scopes.map((scope) => (
                <li key={scope}>
                  <code>{scope}</code> {explainScope(scope)}
                </li>
              ))}
            </ul>
          </article>
        </li>
      ))}
    </ul>
  );
}

function Facts({ program }: { program: Program }) {
  return (
    <dl class="facts-list">
      <dt>client_id</dt>
      <dd>
        <code>{program.id}</code>
      </dd>
      <dt>{t('clients.lastUsed')}</dt>
      <dd>{program.lastUsed === null ? t('clients.never') : shownTime(program.lastUsed)}</dd>
      {program.roles.length > 0 && (
        <>
          <dt>{t('clients.role')}</dt>
          <dd>{program.roles.join(', ')}</dd>
        </>
      )}
      <dt>{t('clients.keys')}</dt>
      <dd>
        <Keys program={program} />
      </dd>
      {program.redirects.length > 0 && (
        <>
          <dt>{t('clients.redirects')}</dt>
          <dd>{program.redirects.join(' ')}</dd>
        </>
      )}
      {program.launchUrl !== null && (
        <>
          <dt>{t('clients.launchUrl')}</dt>
          <dd>{program.launchUrl}</dd>
        </>
      )}
    </dl>
  );
}

function Keys({ program }: { program: Program }) {
  if (program.keysUri !== null) return <>{program.keysUri}</>;
  if (program.keys.length === 0) return <>{t('clients.public')}</>;
  return (
    <ul>
      {program.keys.map((key) => (
        <li key={key.kid}>
          <code>{key.kid}</code> {key.kind} <span class="hint">SHA-256</span> <code class="print">{key.sha256}</code>
        </li>
      ))}
    </ul>
  );
}

function Grants({ given, onAsk }: { given: readonly Grant[]; onAsk: (asked: Asked) => void }) {
  return (
    <section class="grants table" aria-labelledby="grants">
      <h2 id="grants">{t('clients.grants')}</h2>
      <p class="hint">{t('clients.grants.lead')}</p>
      <table>
        <thead>
          <tr>
            <th>{t('clients.grants.person')}</th>
            <th>{t('clients.grants.program')}</th>
            <th>{t('clients.scopes')}</th>
            <th>{t('clients.lastUsed')}</th>
            <th>{t('clients.grants.ends')}</th>
            <th>
              <span class="unseen">{t('clients.end')}</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {given.map((grant) => (
            <tr key={grant.id}>
              <td>{grant.person}</td>
              <td>{grant.program}</td>
              <td class="wraps">{grant.scopes.join(' ')}</td>
              <td>{shownTime(grant.used)}</td>
              <td>{shownTime(grant.ends)}</td>
              <td>
                <button
                  type="button"
                  aria-label={t('clients.end.title', { person: grant.person, program: grant.program })}
                  onClick={() => onAsk({ what: 'end', grant })}
                >
                  {t('clients.end')}
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
