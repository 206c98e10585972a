import assert from "node:assert/strict";
import { test } from "node:test";
import lexicon from "../../../../tests/golden/lexicon.json";
import listEmpty from "../../../../tests/golden/phone-list-empty.json";
import listReady from "../../../../tests/golden/phone-list-ready.json";
import listReleased from "../../../../tests/golden/phone-list-released.json";
import amended from "../../../../tests/golden/phone-report-amended.json";
import ready from "../../../../tests/golden/phone-report-ready.json";
import released from "../../../../tests/golden/phone-report-released.json";
import withdrawn from "../../../../tests/golden/phone-report-withdrawn.json";
import { toReportView } from "../pages/report/view";
import { parseReport, parseReportList } from "./reports";

test("a phone that is bound before any report came has a name and an empty list", () => {
  const { names, reports } = parseReportList(listEmpty);
  assert.deepEqual(names, ["张*"]);
  assert.deepEqual(reports, []);
});

test("a release of a report that she has opened before is unread again", () => {
  for (const [body, state] of [[listReady, "ready"], [listReleased, "released"]] as const) {
    const [report] = parseReportList(body).reports;
    assert.equal(report?.state, state);
    assert.equal(report?.unread, true);
    assert.equal(report?.examinedOn, "2026-11-20");
  }
});

test("a report that waits or was withdrawn has no content in it", () => {
  for (const [body, state] of [[ready, "ready"], [withdrawn, "withdrawn"]] as const) {
    const report = parseReport(body);
    assert.equal(report.state, state);
    assert.equal(report.content, null);
    assert.equal(report.name, "张*");
  }
});

test("a released report has grade, text, advice and what was measured", () => {
  const { content, age, departmentPhone } = parseReport(released);
  assert.equal(age, "47");
  assert.match(departmentPhone, /^010-/);
  assert.equal(content?.category, "4B");
  assert.equal(content?.amended, false);
  assert.notEqual(content?.text.zh, "");
  assert.notEqual(content?.text.en, content?.text.zh);
  assert.notEqual(content?.advice.zh, "");
  assert.deepEqual(content?.visits, [
    { examinedOn: "2026-11-20", lesions: [{ side: "L", clock: 2, sizeMm: 11.8 }] },
  ]);
});

test("an amended report says that it was changed and shows the new grade", () => {
  const { content } = parseReport(amended);
  assert.equal(content?.amended, true);
  assert.equal(content?.category, "3");
});

test("every category of the lexicon can be shown in both languages", () => {
  for (const category of Object.keys(lexicon.categories)) {
    const report = parseReport({ ...released, category });
    for (const language of ["zh", "en"] as const) {
      assert.ok(toReportView(report, language).category.includes(category));
    }
  }
});
