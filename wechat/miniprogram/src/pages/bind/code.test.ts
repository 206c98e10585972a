import assert from "node:assert/strict";
import { test } from "node:test";
import { cleanLastFour, tokenFromScan } from "./code";

const TOKEN = "AbCdEfGhIjKlMnOpQrStU-";

test("the token is found alone, in a link and in a scene", () => {
  for (const scanned of [TOKEN, ` ${TOKEN}\n`, `https://x.example/b?token=${TOKEN}`, `?scene=${TOKEN}&a=1`]) {
    assert.equal(tokenFromScan(scanned), TOKEN);
  }
});

test("anything else is no token", () => {
  for (const scanned of ["", "hello", "https://x.example/?token=%E0%A4%A", `${TOKEN}x`]) {
    assert.equal(tokenFromScan(scanned), null);
  }
});

test("the last four are cleaned as the desk wrote them", () => {
  assert.equal(cleanLastFour(" 12 3x9"), "123X");
});
