import assert from "node:assert/strict";
import { test } from "node:test";
import { catalogue, fill } from "./catalogue";

test("both languages say everything, with the same places to fill", () => {
  for (const key of Object.keys(catalogue.zh) as (keyof typeof catalogue.zh)[]) {
    assert.notEqual(catalogue.en[key].trim(), "", key);
    const places = (text: string) => [...text.matchAll(/\{\d\}/g)].map((m) => m[0]).sort();
    assert.deepEqual(places(catalogue.en[key]), places(catalogue.zh[key]), key);
  }
});

test("no message names a fear", () => {
  const said = JSON.stringify(catalogue);
  assert.doesNotMatch(said, /癌|恶性|malign|cancer|carcinoma/i);
});

test("a missing value leaves its place empty", () => {
  assert.equal(fill("a {0} b {1}", "x"), "a x b ");
});
