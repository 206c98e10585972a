// One report on the doctor's desk: what is loaded, her draft, and what she does with it.
import { batch, computed, signal } from '@preact/signals';
import { readClips } from '../api/dicomweb';
import { readPriors, readReport, readTold, recordTold, saveReport } from '../api/fhir';
import { ApiError } from '../api/http';
import { isSigned, type Lesion, type Report, type WorklistRow } from '../api/types';
import type { Act, Medium } from '../api/write';
import { explain, holdsWork, may, me, say } from '../app/state';
import { t } from '../i18n';
import { category } from '../lexicon';
import { ViewerModel } from '../viewer/model';
import { decidingCategory, type Draft, isDirty, rebase, type Rebased, saysTheSame, startDraft } from './draft';
import { type Action, NOTHING, type Pending } from './keys';
import { choose, chooseNone, setValue, valueOf } from './draft';
import type { SignOff } from './sign';

const UNDO_STEPS = 100;
/** Stale If-Match, in the words of HTTP and of a transaction. */
const SOMEBODY_WAS_FASTER = [409, 412];

function isOvertaken(error: unknown): boolean {
  return error instanceof ApiError && SOMEBODY_WAS_FASTER.includes(error.status);
}

export type Dialog = 'sign' | 'history' | 'keys' | 'desk' | 'conflict';

export class Work {
  readonly report = signal<Report | null>(null);
  readonly draft = signal<Draft | null>(null);
  readonly lesionId = signal<string | null>(null);
  readonly pending = signal<Pending>(NOTHING);
  readonly dialog = signal<Dialog | null>(null);
  readonly rebased = signal<Rebased | null>(null);
  readonly priors = signal<readonly WorklistRow[]>([]);
  readonly told = signal<boolean | null>(null);
  readonly busy = signal(false);
  readonly fault = signal<string | null>(null);
  readonly missing = signal<string | null>(null);
  readonly viewer = new ViewerModel();
  private readonly past: Draft[] = [];
  private closed = false;

  readonly lesion = computed<Lesion | null>(() => {
    const lesions = this.report.value?.lesions ?? [];
    return lesions.find((row) => row.id === this.lesionId.value) ?? lesions[0] ?? null;
  });
  readonly dirty = computed(
    () => this.report.value !== null && this.draft.value !== null && isDirty(this.report.value, this.draft.value),
  );
  readonly readOnly = computed(
    () => !may('edit_report') || this.report.value === null || this.report.value.status === 'entered-in-error',
  );
  /** Signed, of a grade that is told first, and no record yet that it was. */
  readonly held = computed(() => {
    const report = this.report.value;
    if (!report || !isSigned(report.status) || this.told.value === true) return false;
    const deciding = decidingCategory(report, startDraft(report));
    return deciding !== null && category(deciding).gated;
  });

  constructor(readonly id: string) {}

  async load(): Promise<void> {
    try {
      const report = await readReport(this.id);
      if (this.closed) return;
      this.accept(report, startDraft(report));
      await Promise.all([this.loadImages(report), this.loadAround(report)]);
    } catch (error) {
      const gone = error instanceof ApiError && [403, 404, 410].includes(error.status);
      this.missing.value = gone ? t('review.missing') : explain(error);
    }
  }

  private accept(report: Report, draft: Draft): void {
    batch(() => {
      this.report.value = report;
      this.draft.value = draft;
      this.fault.value = null;
    });
    this.past.length = 0;
    holdsWork.value = this.dirty.value;
  }

  private async loadImages(report: Report): Promise<void> {
    if (report.studyUid === null) return;
    try {
      const { clips, captures } = await readClips(report.studyUid);
      if (this.closed) return;
      this.viewer.show(clips, captures);
      this.viewer.focus(this.lesion.value);
      if (!this.viewer.onLesionFrame.value) this.viewer.play();
    } catch (error) {
      say(explain(error), 'bad');
    }
  }

  private async loadAround(report: Report): Promise<void> {
    const [priors, told] = await Promise.all([
      readPriors(report).catch((): WorklistRow[] => []),
      isSigned(report.status) ? readTold(report) : null,
    ]);
    this.priors.value = priors;
    this.told.value = told;
  }

  close(): void {
    this.closed = true;
    this.viewer.close();
    holdsWork.value = false;
  }

  change(next: Draft): void {
    if (this.draft.value === null || this.readOnly.value) return;
    this.past.push(this.draft.value);
    if (this.past.length > UNDO_STEPS) this.past.shift();
    this.draft.value = next;
    holdsWork.value = this.dirty.value;
  }

  undo(): void {
    const before = this.past.pop();
    if (!before) return;
    this.draft.value = before;
    holdsWork.value = this.dirty.value;
  }

  selectLesion(lesion: Lesion): void {
    this.lesionId.value = lesion.id;
    this.viewer.focus(lesion);
  }

  stepLesion(by: number): void {
    const lesions = this.report.value?.lesions ?? [];
    const at = lesions.findIndex((row) => row.id === this.lesion.value?.id);
    const next = lesions[(at + by + lesions.length) % lesions.length];
    if (next) this.selectLesion(next);
  }

  /** A value typed on the keyboard: of the lesion, or of the whole when there is none. */
  type(action: Action): void {
    const [report, draft, lesion] = [this.report.value, this.draft.value, this.lesion.value];
    if (!report || !draft) return;
    if (action.does === 'none-seen') {
      if (!lesion) return;
      const state = lesion.fields.calcifications;
      this.change(setValue(report, draft, state, chooseNone(valueOf(draft, state))));
    } else if (action.does === 'choose' || action.does === 'clear') {
      const overall = action.key === 'assessment_category' ? report.category : undefined;
      const state = lesion?.fields[action.key] ?? overall;
      if (!state) return;
      const value = action.does === 'clear' ? null : choose(action.key, valueOf(draft, state), action.term);
      this.change(setValue(report, draft, state, value));
    }
  }

  async save(): Promise<void> {
    const report = this.report.value;
    if (!report || !this.dirty.value || isSigned(report.status)) return;
    await this.write({ status: 'preliminary', reason: '', told: null }, t('review.draftSaved'));
  }

  async sign(how: SignOff): Promise<void> {
    await this.write(how, t('review.signedNow'));
  }

  private async write(how: SignOff, said: string): Promise<void> {
    const [report, draft] = [this.report.value, this.draft.value];
    if (!report || !draft || this.busy.value) return;
    this.busy.value = true;
    this.fault.value = null;
    try {
      await this.send(report, draft, this.act(how));
      const saved = await readReport(this.id);
      const told = how.told ? true : await readTold(saved);
      batch(() => {
        this.told.value = told;
        this.accept(saved, startDraft(saved));
        this.dialog.value = null;
      });
      say(said);
    } catch (error) {
      this.failed(error);
    } finally {
      this.busy.value = false;
    }
  }

  /** A version that came with the paper alone is no conflict: nobody has changed a word. */
  private async send(report: Report, draft: Draft, act: Act): Promise<void> {
    try {
      await saveReport(report, draft, act);
    } catch (error) {
      if (!isOvertaken(error)) throw error;
      const newer = await readReport(this.id);
      if (!saysTheSame(report, newer)) throw error;
      await saveReport(newer, draft, act);
    }
  }

  private act(how: SignOff): Act {
    return { ...how, practitionerId: me.value?.practitionerId ?? null, at: new Date().toISOString() };
  }

  private failed(error: unknown): void {
    if (isOvertaken(error)) {
      this.rebased.value = null;
      this.dialog.value = 'conflict';
      return;
    }
    this.fault.value = explain(error);
    if (this.dialog.value !== 'sign') say(explain(error), 'bad');
  }

  /** Take the newer version and lay the doctor's own changes over it. */
  async takeTheirs(): Promise<void> {
    const [base, mine] = [this.report.value, this.draft.value];
    if (!base || !mine) return;
    try {
      const theirs = await readReport(this.id);
      const rebased = rebase(base, mine, theirs);
      this.accept(theirs, rebased.draft);
      this.rebased.value = rebased;
    } catch (error) {
      say(explain(error), 'bad');
    }
  }

  async recordTold(medium: Medium): Promise<void> {
    const report = this.report.value;
    if (!report) return;
    try {
      await recordTold(report, this.act({ status: report.status, reason: '', told: medium }));
      this.told.value = true;
      say(t('sign.toldRecorded'));
    } catch (error) {
      say(explain(error), 'bad');
    }
  }
}
