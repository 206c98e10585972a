import { readReport, readReports, RelayError } from "../../api/relay";
import type { Report } from "../../api/reports";
import { currentReading, readingData, type Reading } from "../../reading";
import { subscribeOnTap } from "../../subscribe";
import { toReportView, type ReportView } from "./view";

type Phase = "loading" | "shown" | "not-found" | "failed";

interface PageData {
  phase: Phase;
  failure: string;
  view: ReportView | null;
  subscribed: string;
}

interface Kept {
  handle: string;
  report: Report | null;
  templateIds: string[];
}

const kept: Kept = { handle: "", report: null, templateIds: [] };

Page({
  data: {
    ...readingData({ language: "zh", large: false }),
    phase: "loading",
    failure: "",
    view: null,
    subscribed: "",
  } as PageData & ReturnType<typeof readingData>,

  onLoad(query: Record<string, string | undefined>) {
    kept.handle = query.handle ?? "";
    kept.report = null;
    this.show(currentReading());
    void this.load();
  },

  async load() {
    this.setData({ phase: "loading" });
    try {
      kept.report = await readReport(kept.handle);
      this.show(currentReading());
      kept.templateIds = (await readReports()).templateIds;
    } catch (error) {
      this.fail(error);
    }
  },

  fail(error: unknown) {
    const failure = error instanceof RelayError ? error.failure : "failed";
    if (kept.report !== null) return; // the report is shown; only messages stay off
    if (failure === "not-found") return this.setData({ phase: "not-found" });
    const { t } = this.data;
    const text = failure === "offline" ? t.offline : failure === "busy" ? t.busy : t.failed;
    this.setData({ phase: "failed", failure: text });
  },

  show(reading: Reading) {
    const data = readingData(reading);
    wx.setNavigationBarTitle({ title: data.t.reportTitle });
    if (kept.report === null) return this.setData(data);
    this.setData({ ...data, phase: "shown", view: toReportView(kept.report, reading.language) });
  },

  choose(event: WechatMiniprogram.CustomEvent<Reading>) {
    this.show(event.detail);
  },

  callDepartment() {
    if (this.data.view !== null) wx.makePhoneCall({ phoneNumber: this.data.view.phone });
  },

  async subscribe() {
    const result = await subscribeOnTap(kept.templateIds);
    const { t } = this.data;
    const said = { accepted: t.notifyAccepted, refused: t.notifyRefused, failed: t.notifyFailed };
    this.setData({ subscribed: said[result] });
  },

  openList() {
    wx.reLaunch({ url: "/pages/list/index" });
  },
});
