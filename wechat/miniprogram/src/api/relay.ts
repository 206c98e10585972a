import { RELAY_ADDRESS } from "./address";
import { parseReport, parseReportList, type Report, type ReportList } from "./reports";

/** Why the relay gave no answer that a page can show. */
export type RelayFailure = "offline" | "busy" | "not-found" | "not-bound" | "failed";

export class RelayError extends Error {
  constructor(readonly failure: RelayFailure) {
    super(failure);
  }
}

type Method = "GET" | "POST" | "DELETE";

interface Answer {
  status: number;
  body: unknown;
}

const TIMEOUT_MS = 15_000;

let sessionToken: string | null = null;

/** The reports that this phone may read, newest first. */
export async function readReports(): Promise<ReportList> {
  return parseReportList(await call("GET", "/api/reports"));
}

/** One report. A foreign and an unknown handle both fail as "not-found". */
export async function readReport(handle: string): Promise<Report> {
  return parseReport(await call("GET", `/api/reports/${encodeURIComponent(handle)}`));
}

/** Bind this phone with the desk's code; fails as "not-bound" whatever was wrong. */
export async function bind(token: string, lastFour: string): Promise<void> {
  await call("POST", "/api/bind", { token, last4: lastFour });
}

/** Forget this phone at once. */
export async function unbind(): Promise<void> {
  await call("DELETE", "/api/binding");
  sessionToken = null;
}

/** Tell the relay which templates the patient just accepted. */
export async function countAccepted(templateIds: string[]): Promise<void> {
  await call("POST", "/api/quota", { template_ids: templateIds });
}

/** Call with the session; a session that ended is renewed once, unseen. */
async function call(method: Method, path: string, body?: object): Promise<unknown> {
  const renewable = sessionToken !== null;
  let answer = await send(method, path, await session(), body);
  if (answer.status === 401 && renewable) {
    sessionToken = null;
    answer = await send(method, path, await session(), body);
  }
  return accepted(answer);
}

async function session(): Promise<string> {
  if (sessionToken !== null) return sessionToken;
  const code = await loginCode();
  const body = accepted(await send("POST", "/api/session", null, { js_code: code }));
  const token = (body as { token?: unknown }).token;
  if (typeof token !== "string") throw new RelayError("failed");
  sessionToken = token;
  return token;
}

function accepted(answer: Answer): unknown {
  if (answer.status === 200) return answer.body;
  if (answer.status === 404) throw new RelayError("not-found");
  if (answer.status === 403) throw new RelayError("not-bound");
  if (answer.status === 429 || answer.status === 503) throw new RelayError("busy");
  throw new RelayError("failed");
}

function loginCode(): Promise<string> {
  return new Promise((resolve, reject) => {
    wx.login({
      success: ({ code }) => resolve(code),
      fail: () => reject(new RelayError("offline")),
    });
  });
}

function send(method: Method, path: string, token: string | null, body?: object): Promise<Answer> {
  return new Promise((resolve, reject) => {
    wx.request({
      url: `${RELAY_ADDRESS}${path}`,
      method,
      timeout: TIMEOUT_MS,
      header: token === null ? {} : { Authorization: `Bearer ${token}` },
      ...(body === undefined ? {} : { data: body }),
      success: ({ statusCode, data }) => resolve({ status: statusCode, body: data }),
      fail: () => reject(new RelayError("offline")),
    });
  });
}
