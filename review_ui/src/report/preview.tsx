import type { Report } from '../api/types';
import { me } from '../app/state';
import { language, shownDay, t } from '../i18n';
import { category } from '../lexicon';
import { decidingCategory, type Draft } from './draft';

/** The patient's report as her phone will show it, by the same rule as the release. */
export function PatientPreview({ report, draft }: { report: Report; draft: Draft }) {
  return (
    <details class="preview">
      <summary>{t('form.preview')}</summary>
      <Phone report={report} draft={draft} />
    </details>
  );
}

function Phone({ report, draft }: { report: Report; draft: Draft }) {
  const deciding = decidingCategory(report, draft);
  if (deciding === null) return <p class="hint">{t('patient.noCategory')}</p>;
  const gated = category(deciding).gated;
  const phone = me.value?.departmentPhone;
  return (
    <>
      {gated && <p class="hint">{t('patient.readyHint', { category: deciding })}</p>}
      <article class="phone">
        <h3>{t('patient.title')}</h3>
        <p class="who">
          {report.person.name} · {shownDay(report.studyDate)}
        </p>
        {gated ? <p>{t('patient.ready')}</p> : <Released deciding={deciding} words={draft.patientSummary} />}
        {phone && <p class="who">{t('patient.phone', { phone })}</p>}
      </article>
    </>
  );
}

function Released({ deciding, words }: { deciding: string; words: string }) {
  const texts = me.value?.patientTexts[deciding];
  const zh = language.value === 'zh';
  return (
    <>
      <p class="grade">BI-RADS {deciding}</p>
      {texts && <p>{zh ? texts.text_zh : texts.text_en}</p>}
      {texts && (
        <p>
          <strong>{t('patient.advice')}</strong> {zh ? texts.advice_zh : texts.advice_en}
        </p>
      )}
      {words.trim() && (
        <p>
          <strong>{t('patient.doctorWords')}</strong> {words.trim()}
        </p>
      )}
    </>
  );
}
