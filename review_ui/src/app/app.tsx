import { useEffect } from 'preact/hooks';
import { AgreementPage } from '../agreement/page';
import { AuditPage } from '../audit/page';
import { ClientsPage } from '../clients/page';
import { language, switchLanguage, t } from '../i18n';
import { ReconciliationPage } from '../reconciliation/page';
import { Review } from '../report/review';
import { Login } from '../session/login';
import { Worklist } from '../worklist/worklist';
import { hrefOf, leave, listen, may, me, notice, resume, route, session } from './state';

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
          <Screen />
        </div>
      )}
      {state !== 'in' && <Login expired={state === 'expired'} />}
    </>
  );
}

function Screen() {
  const to = route.value;
  if (to.screen === 'report') return <Review key={to.id} id={to.id} />;
  if (to.screen === 'agreement' && may('read_agreement')) return <AgreementPage />;
  if (to.screen === 'reconciliation' && may('reconcile')) return <ReconciliationPage />;
  if (to.screen === 'clients' && may('manage_users')) return <ClientsPage />;
  // Who may see no report has no worklist: an auditor's place is the trail.
  if (may('read_audit') && (to.screen === 'audit' || !may('read_report'))) return <AuditPage />;
  return <Worklist />;
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
        {may('reconcile') && (
          <a
            class="button quiet"
            href={hrefOf({ screen: 'reconciliation' })}
            aria-current={route.value.screen === 'reconciliation' ? 'page' : undefined}
          >
            {t('reconcile.menu')}
          </a>
        )}
        {may('read_agreement') && (
          <a
            class="button quiet"
            href={hrefOf({ screen: 'agreement' })}
            aria-current={route.value.screen === 'agreement' ? 'page' : undefined}
          >
            {t('agreement.menu')}
          </a>
        )}
        {may('manage_users') && (
          <a
            class="button quiet"
            href={hrefOf({ screen: 'clients' })}
            aria-current={route.value.screen === 'clients' ? 'page' : undefined}
          >
            {t('clients.menu')}
          </a>
        )}
        {may('read_audit') && (
          <a
            class="button quiet"
            href={hrefOf({ screen: 'audit' })}
            aria-current={route.value.screen === 'audit' ? 'page' : undefined}
          >
            {t('audit.menu')}
          </a>
        )}
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
