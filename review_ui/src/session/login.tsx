import { useEffect, useRef, useState } from 'preact/hooks';
import { signIn } from '../api/auth';
import { ApiError } from '../api/http';
import { entered, explain } from '../app/state';
import { switchLanguage, t } from '../i18n';

export function Login({ expired }: { expired: boolean }) {
  const [fault, setFault] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);

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
        <button type="submit" class="primary" disabled={busy}>
          {t('login.submit')}
        </button>
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
