import { expect, test } from 'vitest';
import type { FieldState } from '../api/types';
import {
  choose,
  chooseNone,
  decidingCategory,
  differences,
  isDirty,
  onlyAdds,
  overallCategory,
  rebase,
  saysTheSame,
  setValue,
  startDraft,
} from './draft';
import { coded, observation, reportWith } from './fixture';
import { diff } from './history';

const report = reportWith();
const lesion = report.lesions[0]!;

test('a fresh draft is what is saved, and agrees with the AI', () => {
  const draft = startDraft(report);
  expect(isDirty(report, draft)).toBe(false);
  expect(differences(report, draft)).toEqual([]);
});

test('the overall category and the follow-up go along with the lesion', () => {
  const draft = setValue(report, startDraft(report), lesion.fields.assessment_category, ['3']);
  expect(overallCategory(report, draft)).toBe('3');
  expect(draft.followup).toEqual(['short']);
});

test('an overall category and a follow-up that the doctor chose stay hers', () => {
  let draft = setValue(report, startDraft(report), report.category, ['5']);
  draft = { ...draft, followup: ['normal'] };
  draft = setValue(report, draft, lesion.fields.assessment_category, ['4A']);
  expect(overallCategory(report, draft)).toBe('5');
  expect(draft.followup).toEqual(['normal']);
});

test('the worst category anywhere decides what happens to the patient', () => {
  const draft = setValue(report, startDraft(report), report.category, ['2']);
  expect(decidingCategory(report, draft)).toBe('4C');
});

test('choosing again takes a value back, and several margins may be chosen', () => {
  expect(choose('shape', ['oval'], 'round')).toEqual(['round']);
  expect(choose('shape', ['oval'], 'oval')).toBeNull();
  expect(choose('margin', ['spiculated'], 'angular')).toEqual(['angular', 'spiculated']);
  expect(choose('margin', ['angular'], 'angular')).toBeNull();
  expect(choose('calcifications', [], 'macro')).toEqual(['macro']);
  expect(chooseNone(['macro'])).toEqual([]);
  expect(chooseNone([])).toBeNull();
});

test('a value where the AI had none is a difference', () => {
  const draft = setValue(report, startDraft(report), lesion.fields.orientation, ['parallel']);
  expect(differences(report, draft)).toMatchObject([{ key: 'orientation', from: null, to: ['parallel'] }]);
});

test('only added words count as appended', () => {
  const signed = reportWith([], new Map(), { status: 'final', conclusion: 'A' });
  const draft = startDraft(signed);
  expect(onlyAdds(signed, { ...draft, impression: 'A. And B' })).toBe(true);
  expect(onlyAdds(signed, { ...draft, impression: 'A\nB' })).toBe(true);
  expect(onlyAdds(signed, { ...draft, impression: 'A and B' })).toBe(false);
  expect(onlyAdds(signed, { ...draft, impression: 'A.5' })).toBe(false);
  expect(onlyAdds(signed, { ...draft, impression: 'B' })).toBe(false);
  expect(onlyAdds(signed, setValue(signed, draft, lesion.fields.shape, ['oval']))).toBe(false);
});

test('a version that only brings the paper says the same', () => {
  const signed = reportWith([], new Map(), { status: 'final', conclusion: 'A' });
  const printed = reportWith([], new Map(), { status: 'final', conclusion: 'A', presentedForm: [{}] });
  expect(saysTheSame(signed, printed)).toBe(true);
  const amended = reportWith([], new Map(), { status: 'amended', conclusion: 'A' });
  expect(saysTheSame(signed, amended)).toBe(false);
  expect(saysTheSame(signed, reportWith([], new Map(), { status: 'final', conclusion: 'B' }))).toBe(false);
  const others = reportWith([version2('l1-shape', 'round')], new Map(), { status: 'final', conclusion: 'A' });
  expect(saysTheSame(signed, others)).toBe(false);
});

const version2 = (suffix: string, key: string) =>
  observation(suffix, { valueCodeableConcept: coded(key) }, '2');

test('own changes survive somebody else’s version, and only real clashes are named', () => {
  const theirs = reportWith([version2('l1-shape', 'round'), version2('l1-category', '4A')]);
  let mine = setValue(report, startDraft(report), lesion.fields.shape, ['oval']);
  mine = setValue(report, mine, lesion.fields.orientation, ['parallel']);
  const { draft, clashes, wordsClash } = rebase(report, { ...mine, adviceText: '电话随访' }, theirs);
  const of = (state: FieldState) => draft.values[state.id];
  expect(of(lesion.fields.shape)).toEqual(['oval']);
  expect(of(lesion.fields.orientation)).toEqual(['parallel']);
  expect(of(lesion.fields.assessment_category)).toEqual(['4A']);
  expect(draft.adviceText).toBe('电话随访');
  expect(clashes.map((clash) => clash.key)).toEqual(['shape']);
  expect(wordsClash).toBe(false);
});

test('the same change by both is no clash', () => {
  const theirs = reportWith([version2('l1-shape', 'oval')]);
  const mine = setValue(report, startDraft(report), lesion.fields.shape, ['oval']);
  expect(rebase(report, mine, theirs).clashes).toEqual([]);
});

test('texts that both changed are named as a clash and the own one stands', () => {
  const theirs = reportWith([], new Map(), { conclusion: 'theirs' });
  const { draft, wordsClash } = rebase(report, { ...startDraft(report), impression: 'mine' }, theirs);
  expect(draft.impression).toBe('mine');
  expect(wordsClash).toBe(true);
});

test('a comparison of versions names what changed in clinical words', () => {
  const later = reportWith([version2('l1-shape', 'oval')], new Map(), { conclusion: '良性' });
  expect(diff(report, later)).toEqual([
    { what: '病灶 1 · 形状', left: '不规则形', right: '椭圆形' },
    { what: '诊断意见（院内）', left: '—', right: '良性' },
  ]);
  expect(diff(report, report)).toEqual([]);
});
