import type { Chain, Check } from '../api/audit';
import { shownTime, t } from '../i18n';
import { chain, verify } from './live';

/** Whether the trail is what was recorded: up to which entry, since when, and a button. */
export function ChainState() {
  const known = chain.value;
  if (known === null) return null;
  return (
    <section class={`chain ${mood(known)}`} aria-labelledby="chain">
      <h2 id="chain" class="unseen">
        {t('audit.chain')}
      </h2>
      {known.running === null ? <Standing known={known} /> : <Running check={known.running} />}
    </section>
  );
}

function mood(known: Chain): string {
  if (known.newest === null || known.running !== null) return '';
  return known.newest.fault === '' ? 'holds' : 'broken';
}

function Running({ check }: { check: Check }) {
  const all = Math.max(1, check.last - check.first + 1);
  const done = Math.max(0, check.held - check.first + 1);
  return (
    <>
      <label for="chain-progress">{t('audit.chain.running', { held: check.held, last: check.last })}</label>
      <progress id="chain-progress" max={all} value={done} />
    </>
  );
}

function Standing({ known }: { known: Chain }) {
  const { newest } = known;
  const fresh = newest === null ? known.entries : known.entries - newest.last;
  return (
    <>
      <p role="status">{standing(known)}</p>
      {newest !== null && newest.fault === '' && fresh > 0 && (
        <button type="button" class="quiet" onClick={() => void verify(false)}>
          {t('audit.chain.verifyNew', { count: fresh })}
        </button>
      )}
      <button type="button" onClick={() => void verify(true)}>
        {t('audit.chain.verify')} <kbd>V</kbd>
      </button>
    </>
  );
}

function standing({ entries, newest }: Chain): string {
  if (newest === null) return t('audit.chain.never', { entries });
  const time = newest.endedAt === null ? '' : shownTime(newest.endedAt);
  if (newest.fault !== '') return t('audit.chain.broken', { detail: newest.fault, time });
  return t(newest.first > 1 ? 'audit.chain.holdsFrom' : 'audit.chain.holds', {
    first: newest.first,
    last: newest.last,
    time,
  });
}
