import { countAccepted } from "./api/relay";

/** WeChat takes at most three templates per request. */
const MAX_TEMPLATES = 3;

export type SubscribeResult = "accepted" | "refused" | "failed";

/**
 * Ask WeChat's permission for one message more. Call it directly in a tap
 * handler: WeChat refuses it anywhere else. Each accept buys one message.
 */
export function subscribeOnTap(templateIds: string[]): Promise<SubscribeResult> {
  const asked = templateIds.slice(0, MAX_TEMPLATES);
  return new Promise((resolve) => {
    wx.requestSubscribeMessage({
      tmplIds: asked,
      success: (answer) => {
        const said = answer as unknown as Record<string, unknown>;
        const accepted = asked.filter((id) => said[id] === "accept");
        if (accepted.length === 0) return resolve("refused");
        countAccepted(accepted).then(
          () => resolve("accepted"),
          () => resolve("failed"),
        );
      },
      fail: () => resolve("failed"),
    });
  });
}
