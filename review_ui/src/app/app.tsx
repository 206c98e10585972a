import { useEffect } from 'preact/hooks';
import { language, switchLanguage, t } from '../i18n';
import { Review } from '../report/review';
import { Login } from '../session/login';
import { Worklist } from '../worklist/worklist';
import { hrefOf, leave, listen, me, notice, resume, route, session } from './state';

export function App() {
  useEffect(() => {
    void resume();
    return listen();
  }, []);
  useEffect(() => {
    document.documentElement.lang = language.value === 'zh' ? 'zh-CN' : 'en';
    document.title = t('app.name');
  }, [language.value]);
  const state = session.value;
  if (state === 'unknown') return <p class="loading">{t('app.loading')}</p>;
  const known = me.value !== null && state !== 'out';
  return (
    <>
      {known && (
        // While signed out again nothing of a patient shows, but nothing typed is lost.
        <div class="shell" hidden={state === 'expired'}>
          <TopBar />
          <Notice />
          {route.value.screen === 'report' ? <Review key={route.value.id} id={route.value.id} /> : <Worklist />}
        </div>
      )}
      {state !== 'in' && <Login expired={state === 'expired'} />}
    </>
  );
}

function TopBar() {
  return (
    <header class="top">
      <a class="brand" href={hrefOf({ screen: 'worklist' })}>
        <span class="wave" aria-hidden="true" />
        sononode
      </a>
      <div id="top-slot" class="slot" />
      <nav aria-label={t('app.name')}>
        <span class="who">{me.value?.display}</span>
        <button type="button" class="quiet" onClick={switchLanguage}>
          {t('app.language')}
        </button>
        <button type="button" class="quiet" onClick={() => void leave()}>
          {t('app.signOut')}
        </button>
      </nav>
    </header>
  );
}

function Notice() {
  const said = notice.value;
  return (
    <div class="notices" role="status" aria-live="polite">
      {said && (
        <p class={`notice ${said.tone}`}>
          {said.text}
          <button
            type="button"
            class="quiet icon"
            aria-label={t('app.close')}
            onClick={() => {
              notice.value = null;
            }}
          >
            ✕
          </button>
        </p>
      )}
    </div>
  );
}
