// Window and level on 8-bit rendered frames.

export interface Window {
  centre: number;
  width: number;
}

export const FULL_WINDOW: Window = { centre: 127.5, width: 255 };

/** Slope and intercept on 0..1 of the linear function that shows `window` (PS3.3 C.11.2.1.3). */
export function transfer(window: Window): { slope: number; intercept: number } {
  const slope = 255 / window.width;
  return { slope, intercept: 0.5 - (window.centre / 255) * slope };
}

/** Dragging right narrows nothing and widens contrast; dragging up brightens. */
export function dragged(from: Window, dx: number, dy: number): Window {
  return {
    centre: clamp(from.centre + dy * 0.5, 0, 255),
    width: clamp(from.width + dx, 8, 510),
  };
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}

export function isFull(window: Window): boolean {
  return window.centre === FULL_WINDOW.centre && window.width === FULL_WINDOW.width;
}
