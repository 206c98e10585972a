import { readReports, RelayError, unbind } from "../../api/relay";
import type { ReportList } from "../../api/reports";
import { currentReading, readingData, type Reading } from "../../reading";
import { subscribeOnTap } from "../../subscribe";
import { greeting, toListRows, type ListRow } from "./rows";

type Phase = "loading" | "shown" | "failed";

interface PageData {
  phase: Phase;
  failure: string;
  greeting: string;
  rows: ListRow[];
  subscribed: string;
}

const kept: { list: ReportList | null } = { list: null };

Page({
  data: {
    ...readingData({ language: "zh", large: false }),
    phase: "loading",
    failure: "",
    greeting: "",
    rows: [],
    subscribed: "",
  } as PageData & ReturnType<typeof readingData>,

  onLoad() {
    kept.list = null;
    this.show(currentReading());
  },

  onShow() {
    void this.load();
  },

  async load() {
    try {
      const list = await readReports();
      if (list.names.length === 0) return wx.redirectTo({ url: "/pages/bind/index" });
      kept.list = list;
      this.show(currentReading());
    } catch (error) {
      const failure = error instanceof RelayError ? error.failure : "failed";
      const { t } = this.data;
      const text = failure === "offline" ? t.offline : failure === "busy" ? t.busy : t.failed;
      this.setData({ phase: "failed", failure: text });
    }
  },

  show(reading: Reading) {
    const data = readingData(reading);
    wx.setNavigationBarTitle({ title: data.t.appTitle });
    if (kept.list === null) return this.setData(data);
    this.setData({
      ...data,
      phase: "shown",
      greeting: greeting(kept.list, data.t),
      rows: toListRows(kept.list, reading.language),
    });
  },

  choose(event: WechatMiniprogram.CustomEvent<Reading>) {
    this.show(event.detail);
  },

  open(event: WechatMiniprogram.TouchEvent) {
    const { handle } = event.currentTarget.dataset as { handle: string };
    wx.navigateTo({ url: `/pages/report/index?handle=${encodeURIComponent(handle)}` });
  },

  async subscribe() {
    const result = await subscribeOnTap(kept.list?.templateIds ?? []);
    const { t } = this.data;
    const said = { accepted: t.notifyAccepted, refused: t.notifyRefused, failed: t.notifyFailed };
    this.setData({ subscribed: said[result] });
  },

  bindAnother() {
    wx.navigateTo({ url: "/pages/bind/index" });
  },

  askToUnbind() {
    const { t } = this.data;
    wx.showModal({
      title: t.unbind,
      content: t.unbindAsk,
      confirmText: t.confirm,
      cancelText: t.cancel,
      success: ({ confirm }) => {
        if (confirm) void this.unbind();
      },
    });
  },

  async unbind() {
    try {
      await unbind();
      wx.showToast({ title: this.data.t.unbindDone, icon: "none" });
      wx.reLaunch({ url: "/pages/bind/index" });
    } catch {
      wx.showToast({ title: this.data.t.failed, icon: "none" });
    }
  },
});
