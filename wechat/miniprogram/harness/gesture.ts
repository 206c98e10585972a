/** Whether a tap is being handled right now: WeChat opens some doors only then. */
let tapping = false;

export function startTap(): void {
  tapping = true;
}

/** Promises that the handler already resolved still belong to the tap; timers do not. */
export function endTap(): void {
  setTimeout(() => {
    tapping = false;
  }, 0);
}

export function isTapping(): boolean {
  return tapping;
}
