/** 128 bits, base64url: what the desk's QR code holds. */
const TOKEN = /^[A-Za-z0-9_-]{22}$/;

/** The token in what a camera read, whatever stands around it; null when there is none. */
export function tokenFromScan(scanned: string): string | null {
  const text = scanned.trim();
  const inside = /[?&#](?:scene|token)=([^&#]+)/.exec(text);
  const candidate = inside?.[1] === undefined ? text : decodeQuietly(inside[1]);
  return TOKEN.test(candidate) ? candidate : null;
}

/** Four characters at most, as the desk wrote them: digits, and X at the end. */
export function cleanLastFour(typed: string): string {
  return typed.replace(/[^0-9A-Za-z]/g, "").toUpperCase().slice(0, 4);
}

function decodeQuietly(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
