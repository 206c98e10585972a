/**
 * The part of `wx` that the Mini Program uses, as strict as WeChat's: requests only
 * to the registered domain, messages only on a tap and for at most three templates,
 * the camera only after the privacy guide was accepted. Every call is kept in
 * `window.__calls`.
 */
import { RELAY_ADDRESS } from "../src/api/address";
import { isTapping } from "./gesture";

export interface Navigation {
  open(url: string, replace: boolean): void;
}

interface Answers {
  success?: (result: never) => void;
  fail?: (error: never) => void;
  complete?: (result: never) => void;
}

type Options = Answers & Record<string, unknown>;

const DOMAINS = [new URL(RELAY_ADDRESS).host];
const MAX_REQUESTS = 10;
const MAX_TEMPLATES = 3;

const asked = new URLSearchParams(location.search);
const calls: [string, unknown][] = [];
let requests = 0;

function succeed(options: Options, result: object): void {
  options.success?.(result as never);
  options.complete?.(result as never);
}

function fail(options: Options, error: object): void {
  options.fail?.(error as never);
  options.complete?.(error as never);
}

function note(name: string, detail: unknown): void {
  calls.push([name, detail]);
}

/** Who holds the phone. */
const openid = asked.get("openid") ?? "patient-of-the-demo";

async function post(path: string, body: object): Promise<Record<string, unknown>> {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return (await response.json()) as Record<string, unknown>;
}

function login(options: Options): void {
  note("login", {});
  post("/_control/js-codes", { openid }).then(
    (answer) => succeed(options, { code: answer.js_code, errMsg: "login:ok" }),
    () => fail(options, { errMsg: "login:fail" }),
  );
}

function request(options: Options): void {
  const url = new URL(String(options.url));
  note("request", `${String(options.method ?? "GET")} ${url.pathname}`);
  if (url.protocol !== "https:" || !DOMAINS.includes(url.host)) {
    return fail(options, { errno: 600002, errMsg: "request:fail url not in domain list" });
  }
  if (requests >= MAX_REQUESTS) {
    return fail(options, { errno: 600003, errMsg: "request:fail too many requests" });
  }
  requests += 1;
  forward(url, options).then(
    (result) => succeed(options, result),
    () => fail(options, { errno: 5, errMsg: "request:fail" }),
  );
}

async function forward(url: URL, options: Options): Promise<object> {
  try {
    const body = options.data === undefined ? null : JSON.stringify(options.data);
    const response = await fetch(`/relay${url.pathname}${url.search}`, {
      method: String(options.method ?? "GET"),
      headers: { "Content-Type": "application/json", ...(options.header as object) },
      body,
    });
    const text = await response.text();
    return { statusCode: response.status, data: text === "" ? "" : JSON.parse(text) };
  } finally {
    requests -= 1;
  }
}

function requestSubscribeMessage(options: Options): void {
  const ids = options.tmplIds as string[];
  note("requestSubscribeMessage", ids);
  if (!isTapping()) {
    const errMsg = "requestSubscribeMessage:fail can only be invoked by user TAP gesture.";
    return fail(options, { errCode: 20000, errMsg });
  }
  if (ids.length === 0 || ids.length > MAX_TEMPLATES) {
    return fail(options, { errCode: 20003, errMsg: "requestSubscribeMessage:fail number of ids" });
  }
  const answer = asked.get("subscribe") ?? "accept";
  const said = Object.fromEntries(ids.map((id) => [id, answer]));
  const done = () => succeed(options, { errMsg: "requestSubscribeMessage:ok", ...said });
  if (answer !== "accept") return done();
  Promise.all(ids.map((id) => post("/_control/quota", { openid, template_id: id }))).then(
    done,
    () => fail(options, { errCode: 10002, errMsg: "requestSubscribeMessage:fail network" }),
  );
}

let agreed = asked.get("privacy") === "agreed";

function scanCode(options: Options): void {
  note("scanCode", { agreed });
  if (!agreed) {
    return fail(options, { errno: 104, errMsg: "scanCode:fail privacy permission is not authorized" });
  }
  const result = asked.get("scan") ?? "";
  succeed(options, { result, path: "", scanType: "QR_CODE", errMsg: "scanCode:ok" });
}

function setStorageSync(key: string, value: unknown): void {
  localStorage.setItem(`${openid}/${key}`, JSON.stringify(value));
  const language = (value as { language?: unknown }).language;
  if (typeof language === "string") showLanguage(language);
}

function getStorageSync(key: string): unknown {
  const kept = localStorage.getItem(`${openid}/${key}`);
  const value: unknown = kept === null ? "" : JSON.parse(kept);
  if (value !== "") showLanguage(String((value as { language?: unknown }).language));
  return value;
}

function showLanguage(language: string): void {
  document.documentElement.lang = language === "en" ? "en" : "zh-CN";
}

/** The `wx` object. */
export function createWx(navigation: Navigation): object {
  Object.assign(window, { __calls: calls });
  const phoneLanguage = asked.get("lang") === "en" ? "en" : "zh_CN";
  showLanguage(phoneLanguage === "en" ? "en" : "zh");
  const go = (name: string, replace: boolean) => (options: Options) => {
    note(name, options.url);
    navigation.open(String(options.url), replace);
  };
  return {
    login,
    request,
    requestSubscribeMessage,
    scanCode,
    setStorageSync,
    getStorageSync,
    getAppBaseInfo: () => ({
      language: phoneLanguage,
      fontSizeScaleFactor: Number(asked.get("scale") ?? "1"),
    }),
    getPrivacySetting: (options: Options) => succeed(options, { needAuthorization: !agreed }),
    agreePrivacy: () => {
      agreed = true;
    },
    openPrivacyContract: () => note("openPrivacyContract", {}),
    navigateTo: go("navigateTo", false),
    redirectTo: go("redirectTo", true),
    reLaunch: go("reLaunch", true),
    navigateBack: () => history.back(),
    setNavigationBarTitle: ({ title }: { title: string }) => {
      document.title = title;
    },
    makePhoneCall: ({ phoneNumber }: { phoneNumber: string }) => note("makePhoneCall", phoneNumber),
    showToast: ({ title }: { title: string }) => note("showToast", title),
    showModal: (options: Options) => {
      note("showModal", options.content);
      succeed(options, { confirm: true, cancel: false });
    },
  };
}
