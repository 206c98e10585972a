import assert from "node:assert/strict";
import { test } from "node:test";
import { parseReportList } from "../../api/reports";
import { catalogue } from "../../messages/catalogue";
import { greeting, toListRows } from "./rows";

const list = parseReportList({
  names: ["张*"],
  reports: [
    { handle: "a", state: "ready", examined_on: null, unread: true },
    { handle: "b", state: "released", examined_on: "2026-03-01", unread: false },
  ],
});

test("a line says examination, day and state", () => {
  const [first, second] = toListRows(list, "zh");
  assert.deepEqual([first?.day, first?.stateText, first?.unread], ["—", "医生将与您联系", true]);
  assert.deepEqual([second?.day, second?.stateText], ["2026年3月1日", "可以查看"]);
});

test("the patient is greeted by her masked name", () => {
  assert.equal(greeting(list, catalogue.en), "Hello, 张*");
});
