import { useEffect, useMemo } from 'preact/hooks';
import { isSigned, type Report, type WorklistRow } from '../api/types';
import { sexAndAge, sideWord } from '../app/person';
import { go, hrefOf, lettersOn, may } from '../app/state';
import { OpenIn } from '../clients/open_in';
import { oneOf, shownDay, shownNumber, shownTime, t } from '../i18n';
import { Viewer } from '../viewer/viewer';
import { listed } from '../worklist/live';
import { nextAfter } from '../worklist/order';
import { StatusBadge } from '../worklist/worklist';
import { Conflict } from './conflict';
import { Desk } from './desk';
import { differences, type Draft, unsaved } from './draft';
import { ReportForm } from './form';
import { History } from './history';
import { KeyMap } from './keymap';
import { type Action, interpret, isTyping, NOTHING } from './keys';
import { Measured } from './measured';
import { SignSheet } from './sign';
import { Similar, SIMILAR } from './similar';
import { Work } from './work';

export function Review({ id }: { id: string }) {
  const work = useMemo(() => new Work(id), [id]);
  useEffect(() => {
    void work.load();
    return () => work.close();
  }, [work]);
  useKeyboard(work);
  const report = work.report.value;
  const draft = work.draft.value;
  if (work.missing.value !== null) return <Missing text={work.missing.value} />;
  if (!report || !draft) return <p class="loading">{t('app.loading')}</p>;
  return (
    <main class="review">
      <Heading work={work} report={report} />
      <Banners work={work} report={report} />
      <div class="bench">
        <Viewer model={work.viewer} />
        <aside class="panel" aria-label={t('form.title')}>
          {/* oxlint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- scrollable by keyboard */}
          <div class="scroll" tabIndex={0} role="region" aria-label={t('form.title')}>
            <ReportForm
              report={report}
              draft={draft}
              pending={work.pending.value}
              lesion={work.lesion.value}
              readOnly={work.readOnly.value}
              onLesion={(lesion) => work.selectLesion(lesion)}
              onChange={(next) => work.change(next)}
            />
            <Measured report={report} />
            {report.completeness?.state === 'complete' && (
              <p class="hint completeness">{oneOf(report.completeness.words)}</p>
            )}
            <Similar report={report} lesion={work.lesion.value} />
            <Priors rows={work.priors.value} />
          </div>
          <Footer work={work} report={report} draft={draft} />
        </aside>
      </div>
      <Dialogs work={work} report={report} draft={draft} />
    </main>
  );
}

function Missing({ text }: { text: string }) {
  return (
    <main class="empty">
      <h1>{text}</h1>
      <a href={hrefOf({ screen: 'worklist' })}>{t('review.back')}</a>
    </main>
  );
}

function Heading({ work, report }: { work: Work; report: Report }) {
  return (
    <header class="heading">
      <a class="quiet button" href={hrefOf({ screen: 'worklist' })}>
        <kbd>Esc</kbd> {t('review.back')}
      </a>
      <h1>
        {report.person.name}
        <small>{sexAndAge(report.person)}</small>
      </h1>
      <dl class="facts">
        <div>
          <dt>{t('worklist.side')}</dt>
          <dd>{sideWord(work.lesion.value?.side ?? null)}</dd>
        </div>
        <div>
          <dt>{t('worklist.date')}</dt>
          <dd>{shownDay(report.studyDate)}</dd>
        </div>
        <div>
          <dt>{t('worklist.accession')}</dt>
          <dd class="mono">{report.accession || '—'}</dd>
        </div>
      </dl>
      <StatusBadge status={report.status} />
      <span class="hint">
        {t('review.version', { version: report.version })}
        {report.issued && ` · ${shownTime(report.issued)}`}
      </span>
      <span class="grow" />
      <button type="button" class="quiet" onClick={() => act(work, { does: 'next' })}>
        <kbd>N</kbd> {t('review.next')}
      </button>
      <button type="button" class="quiet" onClick={() => open(work, 'history')}>
        <kbd>D</kbd> {t('review.history')}
      </button>
      {may('print_report') && isSigned(report.status) && (
        <a class="quiet button" href={`/review/printed/${report.id}`} target="_blank" rel="noopener">
          {t('review.print')}
        </a>
      )}
      {may('bind_patient') && report.person.id && (
        <button type="button" class="quiet" onClick={() => open(work, 'desk')}>
          {t('review.desk')}
        </button>
      )}
      <OpenIn reportId={report.id} />
      <button type="button" class="quiet" onClick={() => open(work, 'keys')}>
        <kbd>?</kbd> {t('app.keys')}
      </button>
    </header>
  );
}

function open(work: Work, dialog: 'history' | 'desk' | 'keys' | 'sign'): void {
  work.dialog.value = dialog;
}

function Banners({ work, report }: { work: Work; report: Report }) {
  return (
    <div class="banners">
      {report.status === 'entered-in-error' && <p class="banner">{t('review.withdrawn')}</p>}
      {!may('edit_report') && <p class="banner">{t('review.readOnly')}</p>}
      {report.late && (
        <p class="banner late" role="alert">
          {oneOf(report.late)} — {t('review.late')}
        </p>
      )}
      {report.completeness && report.completeness.state !== 'complete' && (
        <p class="banner">{oneOf(report.completeness.words)}</p>
      )}
      {report.notRead.length > 0 && (
        <p class="banner">
          {t('review.notRead', { count: report.notRead.length })} — {reasons(report)}
        </p>
      )}
      {work.held.value && (
        <div class="banner held">
          <span>{t('sign.heldBanner')}</span>
          {(['phone', 'in-person'] as const).map((medium) => (
            <button key={medium} type="button" onClick={() => void work.recordTold(medium)}>
              {t(`sign.told.${medium}`)}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}

/** Why images were not read: every reason once, with how often it applies. */
function reasons(report: Report): string {
  const counted = new Map<string, number>();
  for (const row of report.notRead) counted.set(oneOf(row), (counted.get(oneOf(row)) ?? 0) + 1);
  return [...counted].map(([reason, count]) => (count > 1 ? `${reason} × ${count}` : reason)).join(' · ');
}

function Footer({ work, report, draft }: { work: Work; report: Report; draft: Draft }) {
  const again = isSigned(report.status);
  const changes = differences(report, draft).length;
  const waiting = unsaved(report, draft).length;
  return (
    <footer>
      <span class={changes ? 'delta' : 'hint'} role="status">
        {changes ? t('sign.changes', { count: changes }) : t('form.asAi')}
        {work.dirty.value && <small>{t('review.unsaved', { count: Math.max(1, waiting) })}</small>}
      </span>
      <span class="grow" />
      <button type="button" class="quiet" onClick={() => work.undo()}>
        <kbd>U</kbd> {t('form.undo')}
      </button>
      {!again && (
        <button type="button" disabled={!work.dirty.value || work.busy.value} onClick={() => void work.save()}>
          {t('form.save')}
        </button>
      )}
      {may('sign_report') && !work.readOnly.value && (
        <button type="button" class="primary" onClick={() => open(work, 'sign')}>
          {t(again ? 'form.amend' : 'form.sign')} <kbd>⇧⏎</kbd>
        </button>
      )}
    </footer>
  );
}

function Priors({ rows }: { rows: readonly WorklistRow[] }) {
  return (
    <section class="priors">
      <h2>{t('review.priors')}</h2>
      {rows.length === 0 && <p class="hint">{t('review.noPriors')}</p>}
      <ul>
        {rows.map((row) => (
          <li key={row.id}>
            <a href={hrefOf({ screen: 'report', id: row.id })}>{shownDay(row.studyDate)}</a>
            <span>BI-RADS {row.category ?? '—'}</span>
            <span>{row.longAxisMm === null ? '—' : t('unit.mm', { value: shownNumber(row.longAxisMm, 1) })}</span>
            <StatusBadge status={row.status} />
          </li>
        ))}
      </ul>
    </section>
  );
}

function Dialogs({ work, report, draft }: { work: Work; report: Report; draft: Draft }) {
  const close = () => {
    work.dialog.value = null;
    work.fault.value = null;
  };
  switch (work.dialog.value) {
    case 'sign':
      return (
        <SignSheet
          report={report}
          draft={draft}
          busy={work.busy.value}
          fault={work.fault.value}
          onClose={close}
          onSign={(how) => void work.sign(how)}
        />
      );
    case 'history':
      return <History report={report} onClose={close} />;
    case 'desk':
      return <Desk patientId={report.person.id!} onClose={close} />;
    case 'keys':
      return <KeyMap onClose={close} />;
    case 'conflict':
      return <Conflict rebased={work.rebased.value} onReload={() => void work.takeTheirs()} onClose={close} />;
    default:
      return null;
  }
}

function useKeyboard(work: Work): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (work.dialog.value !== null || event.altKey || event.metaKey) return;
      const typing = isTyping(event.target);
      if (typing && event.key === 'Escape') (event.target as HTMLElement).blur();
      const letter = !event.ctrlKey && !(event.shiftKey && event.key === 'Enter');
      if ((typing || !lettersOn.value) && letter) return;
      // Space and Enter belong to the button that has the focus, arrows to a slider or a radio.
      if (event.target instanceof HTMLElement && ownKeys(event.target, event)) return;
      const { pending, action } = interpret(work.pending.value, {
        key: event.key,
        shift: event.shiftKey,
        ctrl: event.ctrlKey,
      });
      const noticed = action !== null || pending.field !== null || work.pending.value.field !== null;
      work.pending.value = pending;
      if (action) act(work, action);
      if (noticed && !(event.ctrlKey && action === null)) event.preventDefault();
    };
    addEventListener('keydown', pressed);
    return () => {
      removeEventListener('keydown', pressed);
      work.pending.value = NOTHING;
    };
  }, [work]);
}

function ownKeys(target: HTMLElement, event: KeyboardEvent): boolean {
  if (target instanceof HTMLInputElement) return event.key === ' ' || event.key.startsWith('Arrow');
  const pressable = target instanceof HTMLButtonElement || target.tagName === 'SUMMARY';
  return pressable && (event.key === ' ' || (event.key === 'Enter' && !event.shiftKey));
}

function act(work: Work, action: Action): void {
  const { viewer } = work;
  switch (action.does) {
    case 'choose':
    case 'clear':
    case 'none-seen':
      return work.type(action);
    case 'frame':
      return viewer.step(action.by);
    case 'clip':
      return viewer.stepClip(action.by);
    case 'lesion':
      return work.stepLesion(action.by);
    case 'cine':
      return viewer.toggleCine();
    case 'heat':
      viewer.heat.value = !viewer.heat.value && viewer.heatCapture.value !== null;
      return undefined;
    case 'box':
      viewer.box.value = !viewer.box.value;
      return undefined;
    case 'length':
    case 'window':
      viewer.tool.value = action.does;
      return undefined;
    case 'fit':
      return viewer.fit();
    case 'undo':
      return work.undo();
    case 'save':
      void work.save();
      return undefined;
    case 'sign':
      if (may('sign_report') && !work.readOnly.value) open(work, 'sign');
      return undefined;
    case 'history':
      return open(work, 'history');
    case 'similar':
      document.getElementById(SIMILAR)?.focus();
      return undefined;
    case 'help':
      return open(work, 'keys');
    case 'next': {
      const next = nextAfter(listed.value, work.id);
      go(next ? { screen: 'report', id: next.id } : { screen: 'worklist' });
      return undefined;
    }
    case 'back':
      if (work.pending.value.field === null) go({ screen: 'worklist' });
      return undefined;
    default:
      return undefined;
  }
}
