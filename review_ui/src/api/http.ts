// The only place that sends requests.

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly requestId: string | null,
  ) {
    super(message);
  }
}

interface Outgoing {
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
  /** Refreshing on its own does not count as somebody being there. */
  background?: boolean;
  signal?: AbortSignal;
  accept?: string;
}

let csrf = '';
let signedOut: () => void = () => {};

export function useCsrf(token: string): void {
  csrf = token;
}

export function onSignedOut(callback: () => void): void {
  signedOut = callback;
}

export async function send(url: string, out: Outgoing = {}): Promise<Response> {
  const method = out.method ?? 'GET';
  const headers: Record<string, string> = { Accept: out.accept ?? 'application/json', ...out.headers };
  if (method !== 'GET') headers['X-CSRF-Token'] = csrf;
  if (out.background) headers['X-Sononode-Background'] = '1';
  if (out.body !== undefined) headers['Content-Type'] ??= 'application/json';
  const body = out.body === undefined ? null : JSON.stringify(out.body);
  const response = await reach(url, { method, headers, body, signal: out.signal ?? null });
  if (response.status === 401 && !url.startsWith('/auth/login')) signedOut();
  if (!response.ok) throw await failure(response);
  return response;
}

/** JSON of a node that answers; the caller parses it into a view type at once. */
// oxlint-disable-next-line no-explicit-any
export async function json(url: string, out: Outgoing = {}): Promise<any> {
  const response = await send(url, out);
  return response.status === 204 ? null : response.json();
}

async function reach(url: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(url, { credentials: 'same-origin', ...init });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new ApiError(0, 'the node does not answer', null);
  }
}

async function failure(response: Response): Promise<ApiError> {
  const requestId = response.headers.get('X-Request-Id');
  const text = await response.text();
  return new ApiError(response.status, detail(text) ?? response.statusText, requestId);
}

/** What the node says went wrong, in either of its two forms. */
export function detail(text: string): string | null {
  try {
    const body = JSON.parse(text);
    if (typeof body.error === 'string') return body.error;
    const issue = body.issue?.[0];
    return issue?.diagnostics ?? issue?.details?.text ?? null;
  } catch {
    return null;
  }
}
