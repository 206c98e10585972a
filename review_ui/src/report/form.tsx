import { useEffect, useId, useRef } from 'preact/hooks';
import type { FieldState, Lesion, Report, Value } from '../api/types';
import { sameValue } from '../api/types';
import { clockWord, sideWord } from '../app/person';
import { shownNumber, t, word } from '../i18n';
import { CALCIFICATIONS_NONE, FIELD_KEYS, FOLLOWUPS, type LesionKey, lexiconField, terms } from '../lexicon';
import { choose, chooseNone, type Draft, setValue, valueOf } from './draft';
import { LETTER_OF_FIELD, NONE_DIGIT, type Pending } from './keys';
import { PatientPreview } from './preview';
import { aiNote, fieldName } from './words';

interface Props {
  report: Report;
  draft: Draft;
  pending: Pending;
  lesion: Lesion | null;
  readOnly: boolean;
  onLesion: (lesion: Lesion) => void;
  onChange: (next: Draft) => void;
}

export function ReportForm(props: Props) {
  const { report, draft, lesion, readOnly, onChange } = props;
  return (
    <form class="report-form" aria-label={t('form.title')} onSubmit={(event) => event.preventDefault()}>
      <fieldset class="plain" disabled={readOnly}>
        {report.aiName && <p class="ai-note source">{t('review.aiBy', { name: report.aiName })}</p>}
        <LesionTabs {...props} />
        {lesion ? <LesionFields {...props} lesion={lesion} /> : <p class="hint">{t('review.noLesion')}</p>}
        <section class="overall">
          <FieldRow
            {...props}
            fieldKey="assessment_category"
            state={report.category}
            name={t('form.overall')}
            letter={lesion ? '' : LETTER_OF_FIELD.assessment_category}
          />
          {lesion && <p class="hint">{t('form.overallHint')}</p>}
        </section>
        <Conclusions report={report} draft={draft} onChange={onChange} />
      </fieldset>
    </form>
  );
}

function LesionTabs({ report, lesion, onLesion }: Props) {
  if (report.lesions.length < 2) return null;
  return (
    <div class="segments lesions" role="group" aria-label={t('form.title')}>
      {report.lesions.map((row) => (
        <button key={row.id} type="button" aria-pressed={row.id === lesion?.id} onClick={() => onLesion(row)}>
          {t('form.lesion', { number: row.number })}
        </button>
      ))}
    </div>
  );
}

function LesionFields(props: Props & { lesion: Lesion }) {
  const { lesion } = props;
  return (
    <section class="lesion">
      <header>
        <h2>{t('form.lesion', { number: lesion.number })}</h2>
        <span>{t('form.lesionPlace', { side: sideWord(lesion.side), clock: clockWord(lesion.clock) })}</span>
        <dl class="facts">
          <div>
            <dt>{t('form.size')}</dt>
            <dd>{sizeWords(lesion)}</dd>
          </div>
          <div>
            <dt>{t('form.probability')}</dt>
            <dd class="ai-value">
              {lesion.probability === null ? t('form.aiNoOpinion') : shownNumber(lesion.probability, 2)}
            </dd>
          </div>
        </dl>
      </header>
      {FIELD_KEYS.map((key) => (
        <FieldRow
          key={key}
          {...props}
          fieldKey={key}
          state={lesion.fields[key]}
          name={fieldName(key)}
          letter={LETTER_OF_FIELD[key]}
        />
      ))}
      <FieldRow
        {...props}
        fieldKey="assessment_category"
        state={lesion.fields.assessment_category}
        name={t('form.category')}
        letter={LETTER_OF_FIELD.assessment_category}
      />
    </section>
  );
}

function sizeWords(lesion: Lesion): string {
  if (!lesion.size) return `— ${t('form.uncalibrated')}`;
  const { longAxisMm, widthMm, heightMm, lengthMm } = lesion.size;
  const measured = [longAxisMm, widthMm, heightMm, lengthMm].filter((mm) => mm !== null);
  const parts = measured.map((mm) => shownNumber(mm, 1));
  return t('unit.mm', { value: parts.join(' × ') });
}

interface RowProps extends Props {
  fieldKey: LesionKey;
  state: FieldState;
  name: string;
  letter: string;
}

function FieldRow({ report, draft, pending, fieldKey, state, name, letter, onChange }: RowProps) {
  const id = useId();
  const value = valueOf(draft, state);
  const changed = !sameValue(value, state.ai);
  const awaited = letter !== '' && pending.field === fieldKey;
  const row = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (awaited) row.current?.scrollIntoView({ block: 'nearest' });
  }, [awaited]);
  const set = (next: Value) => onChange(setValue(report, draft, state, next));
  return (
    <div ref={row} class={`field${changed ? ' changed' : ''}${awaited ? ' awaited' : ''}`} role="group" aria-labelledby={id}>
      <div class="label">
        <span id={id}>{name}</span>
        {letter && <kbd>{awaited ? `${letter} ${pending.typed}…` : letter}</kbd>}
      </div>
      <div class={fieldKey === 'assessment_category' ? 'options tight' : 'options'}>
        <Options fieldKey={fieldKey} state={state} value={value} set={set} />
      </div>
      {(changed || state.ai === null) && (
        <p class={changed ? 'said changed' : 'said'}>
          {aiNote(fieldKey, state)}
          {changed && <strong>{t('form.changed')}</strong>}
        </p>
      )}
    </div>
  );
}

interface OptionsProps {
  fieldKey: LesionKey;
  state: FieldState;
  value: Value;
  set: (next: Value) => void;
}

function Options({ fieldKey, state, value, set }: OptionsProps) {
  const multiple = fieldKey !== 'assessment_category' && lexiconField(fieldKey).multiple;
  const shared = { group: state.id, multiple };
  return (
    <>
      {terms(fieldKey).map((term, at) => (
        <Option
          key={term.key}
          {...shared}
          digit={fieldKey === 'assessment_category' ? '' : String(at + 1)}
          label={fieldKey === 'assessment_category' ? term.key : word(term)}
          title={word(term)}
          checked={value?.includes(term.key) ?? false}
          byAi={state.ai?.includes(term.key) ?? false}
          onChoose={() => set(multiple ? choose(fieldKey, value, term.key) : [term.key])}
        />
      ))}
      {fieldKey === 'calcifications' && (
        <Option
          {...shared}
          digit={String(NONE_DIGIT)}
          label={word(CALCIFICATIONS_NONE)}
          title={word(CALCIFICATIONS_NONE)}
          checked={value?.length === 0}
          byAi={state.ai?.length === 0}
          onChoose={() => set(chooseNone(value))}
        />
      )}
      <Option
        {...shared}
        digit=""
        label={t('form.notAssessed')}
        title={t('form.notAssessedLong')}
        checked={value === null}
        byAi={false}
        onChoose={() => set(null)}
      />
    </>
  );
}

interface OptionProps {
  group: string;
  multiple: boolean;
  digit: string;
  label: string;
  title: string;
  checked: boolean;
  byAi: boolean;
  onChoose: () => void;
}

function Option({ group, multiple, digit, label, title, checked, byAi, onChoose }: OptionProps) {
  return (
    <label class={byAi ? 'option by-ai' : 'option'} title={title}>
      <input
        type={multiple ? 'checkbox' : 'radio'}
        name={group}
        aria-label={byAi ? `${title} (${t('form.aiMark')})` : title}
        checked={checked}
        onChange={onChoose}
      />
      {digit && <kbd aria-hidden="true">{digit}</kbd>}
      <span>{label}</span>
      {byAi && (
        <span class="ai" aria-hidden="true">
          {t('form.aiMark')}
        </span>
      )}
    </label>
  );
}

interface ConclusionsProps {
  report: Report;
  draft: Draft;
  onChange: (next: Draft) => void;
}

function Conclusions({ report, draft, onChange }: ConclusionsProps) {
  return (
    <section class="conclusions">
      <h2>{t('form.conclusion')}</h2>
      <label>
        <span>{t('form.followup')}</span>
        <select
          value={draft.followup?.[0] ?? ''}
          onChange={(event) => {
            const chosen = event.currentTarget.value;
            onChange({ ...draft, followup: chosen ? [chosen] : null });
          }}
        >
          <option value="">{t('form.followup.none')}</option>
          {FOLLOWUPS.map((row) => (
            <option key={row.key} value={row.key}>
              {word(row)}
            </option>
          ))}
        </select>
      </label>
      <Words
        label={t('form.adviceText')}
        value={draft.adviceText}
        onInput={(adviceText) => onChange({ ...draft, adviceText })}
      />
      <Words
        label={t('form.impression')}
        value={draft.impression}
        onInput={(impression) => onChange({ ...draft, impression })}
      />
      <Words
        label={t('form.patientSummary')}
        hint={t('form.patientSummaryHint')}
        value={draft.patientSummary}
        onInput={(patientSummary) => onChange({ ...draft, patientSummary })}
      />
      <PatientPreview report={report} draft={draft} />
    </section>
  );
}

interface WordsProps {
  label: string;
  hint?: string;
  value: string;
  onInput: (text: string) => void;
}

function Words({ label, hint, value, onInput }: WordsProps) {
  return (
    <label>
      <span>{label}</span>
      <textarea rows={2} maxLength={2000} value={value} onInput={(event) => onInput(event.currentTarget.value)} />
      {hint && <small>{hint}</small>}
    </label>
  );
}
