import { bind, RelayError } from "../../api/relay";
import { currentReading, readingData, type Reading } from "../../reading";
import { cleanLastFour, tokenFromScan } from "./code";

interface PageData {
  agreed: boolean;
  token: string;
  lastFour: string;
  said: string;
  busy: boolean;
}

Page({
  data: {
    ...readingData({ language: "zh", large: false }),
    agreed: false,
    token: "",
    lastFour: "",
    said: "",
    busy: false,
  } as PageData & ReturnType<typeof readingData>,

  onLoad(query: Record<string, string | undefined>) {
    this.show(currentReading());
    const scene = query.scene ?? query.token ?? "";
    const token = tokenFromScan(scene.includes("%") ? `?scene=${scene}` : scene);
    if (token !== null) this.setData({ token });
    wx.getPrivacySetting({
      success: ({ needAuthorization }) => this.setData({ agreed: !needAuthorization }),
    });
  },

  show(reading: Reading) {
    const data = readingData(reading);
    wx.setNavigationBarTitle({ title: data.t.bindTitle });
    this.setData({ ...data, said: "" });
  },

  choose(event: WechatMiniprogram.CustomEvent<Reading>) {
    this.show(event.detail);
  },

  readPrivacy() {
    wx.openPrivacyContract({});
  },

  agree() {
    this.setData({ agreed: true });
  },

  scan() {
    wx.scanCode({
      scanType: ["qrCode", "wxCode"],
      success: ({ result, path }) => {
        const token = tokenFromScan(result) ?? tokenFromScan(path);
        this.setData(token === null ? { said: this.data.t.bindFailed } : { token, said: "" });
      },
    });
  },

  typeToken(event: WechatMiniprogram.Input) {
    this.setData({ token: event.detail.value.trim() });
  },

  typeLastFour(event: WechatMiniprogram.Input) {
    this.setData({ lastFour: cleanLastFour(event.detail.value) });
  },

  async bind() {
    const { t, busy, lastFour } = this.data;
    const token = tokenFromScan(this.data.token);
    if (busy) return;
    if (token === null) return this.setData({ said: t.codeMissing });
    this.setData({ busy: true, said: "" });
    try {
      await bind(token, lastFour);
      wx.showToast({ title: t.bindDone, icon: "success" });
      wx.reLaunch({ url: "/pages/list/index" });
    } catch (error) {
      const failure = error instanceof RelayError ? error.failure : "failed";
      const texts = { "not-bound": t.bindFailed, offline: t.offline, busy: t.busy };
      this.setData({ said: texts[failure as keyof typeof texts] ?? t.failed });
    } finally {
      this.setData({ busy: false });
    }
  },
});
