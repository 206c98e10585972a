import { useEffect, useRef, useState } from 'preact/hooks';
import { readWaysIn, signIn, signOnHref, type WaysIn } from '../api/auth';
import { ApiError } from '../api/http';
import { entered, explain, resume } from '../app/state';
import { suggestLanguage, switchLanguage, t } from '../i18n';

const PASSWORD_ONLY: WaysIn = { signOn: false, passwords: true, locale: 'zh' };

export function Login({ expired }: { expired: boolean }) {
  const [fault, setFault] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const [ways, setWays] = useState<WaysIn>(PASSWORD_ONLY);
  const field = useRef<HTMLInputElement>(null);
  const other = useRef<HTMLAnchorElement>(null);
  useEffect(() => {
    void readWaysIn().then(
      (found) => {
        setWays(found);
        suggestLanguage(found.locale);
      },
      () => {}, // The form still works, and says what is wrong.
    );
  }, []);
  useEffect(() => {
    if (!ways.signOn) field.current?.focus();
    else if (!field.current?.value) other.current?.focus();
  }, [ways.signOn]);
  useEffect(() => {
    if (!expired) return;
    // She may have signed in again in another tab; what she typed here is kept.
    const seen = () => void resume(true);
    addEventListener('focus', seen);
    return () => removeEventListener('focus', seen);
  }, [expired]);

  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    setBusy(true);
    setFault(null);
    try {
      entered(await signIn(String(form.get('login')), String(form.get('password'))));
    } catch (error) {
      setFault(error);
      setBusy(false);
    }
  };

  return (
    <main class="login">
      <form onSubmit={submit}>
        <h1>
          <span class="wave" aria-hidden="true" />
          sononode
        </h1>
        <p class="lead">{t('login.lead')}</p>
        {expired && <p class="banner">{t('login.expired')}</p>}
        {ways.signOn && (
          <a
            ref={other}
            class="button primary sign-on"
            href={signOnHref(location.hash)}
            target={expired ? 'sononode-sign-on' : undefined}
          >
            {t('login.signOn')}
          </a>
        )}
        {ways.passwords && (
          <>
            {ways.signOn && <p class="hint">{t('login.orHere')}</p>}
            <label>
              {t('login.login')}
              <input ref={field} name="login" autocomplete="username" required spellcheck={false} />
            </label>
            <label>
              {t('login.password')}
              <input name="password" type="password" autocomplete="current-password" required />
            </label>
            <p class="fault" role="alert">
              {fault !== null && wording(fault)}
            </p>
            <button type="submit" class={ways.signOn ? '' : 'primary'} disabled={busy}>
              {t('login.submit')}
            </button>
          </>
        )}
        <p class="hint">{t('login.masked')}</p>
        <button type="button" class="quiet" onClick={switchLanguage}>
          {t('app.language')}
        </button>
      </form>
    </main>
  );
}

function wording(fault: unknown): string {
  if (fault instanceof ApiError && fault.status === 401) return t('login.wrong');
  if (fault instanceof ApiError && fault.status === 429) return t('login.tooMany');
  return explain(fault);
}
