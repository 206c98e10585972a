import assert from "node:assert/strict";
import { test } from "node:test";
import { parseReport } from "../../api/reports";
import { catalogue } from "../../messages/catalogue";
import { dayText, placeText, sizeText, toReportView, visitRows } from "./view";

const released = {
  handle: "h",
  state: "released",
  examined_on: "2026-03-01",
  name: "张*",
  age: "45",
  department_phone: "010-55550100",
  category: "3",
  text: { zh: "良性可能性大", en: "Probably benign" },
  advice: { zh: "6 个月后复查", en: "Come back after 6 months" },
  summary: "",
  trend: [],
};

test("a released report shows text, category and advice in the language chosen", () => {
  const view = toReportView(parseReport(released), "en");
  assert.equal(view.text, "Probably benign");
  assert.equal(view.category, "BI-RADS category 3");
  assert.equal(view.subtitle, "Breast ultrasound · 张* · age 45");
  assert.equal(view.day, "Examined on 1 Mar 2026");
});

test("a report that waits or was withdrawn shows no content even if some came along", () => {
  for (const state of ["ready", "withdrawn", "something-new"]) {
    const view = toReportView(parseReport({ ...released, state }), "zh");
    assert.equal(view.text + view.category + view.advice + view.summary, "");
    assert.deepEqual(view.visits, []);
  }
});

test("a missing size is a dash and draws no bar", () => {
  const t = catalogue.zh;
  assert.equal(sizeText({ side: "L", clock: 2, sizeMm: null }, t), "—");
  assert.equal(sizeText({ side: "L", clock: 2, sizeMm: 8 }, t), "8 mm");
  assert.equal(placeText({ side: null, clock: null, sizeMm: null }, t), "—");
  const rows = visitRows(
    [
      { examinedOn: "2025-03-01", lesions: [{ side: "L", clock: 2, sizeMm: null }] },
      { examinedOn: null, lesions: [{ side: "L", clock: 2, sizeMm: 9 }] },
    ],
    "zh",
  );
  assert.deepEqual(
    rows.map((row) => [row.day, row.lesions[0]?.size, row.lesions[0]?.barPercent]),
    [
      ["2025年3月1日", "—", null],
      ["—", "9 mm", 100],
    ],
  );
});

test("one visit alone is no trend", () => {
  assert.deepEqual(visitRows([{ examinedOn: "2026-03-01", lesions: [] }], "zh"), []);
});

test("a day that is not a day stays as it came", () => {
  assert.equal(dayText("2026", "zh"), "2026");
  assert.equal(dayText("2026-13-01", "en"), "2026-13-01");
});
