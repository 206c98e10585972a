import type { ReportList, ReportSummary } from "../../api/reports";
import { catalogue, fill, type Language, type Messages } from "../../messages/catalogue";
import { dayText } from "../report/view";

export interface ListRow {
  handle: string;
  title: string;
  day: string;
  stateText: string;
  state: ReportSummary["state"];
  unread: boolean;
}

/** The lines of the list, in the patient's language, in the order they came. */
export function toListRows(list: ReportList, language: Language): ListRow[] {
  const t = catalogue[language];
  return list.reports.map((report) => toRow(report, language, t));
}

export function greeting(list: ReportList, t: Messages): string {
  return fill(t.listTitle, list.names.join(t.nameSeparator));
}

function toRow(report: ReportSummary, language: Language, t: Messages): ListRow {
  const day = report.examinedOn === null ? t.noMeasure : dayText(report.examinedOn, language);
  const states = {
    released: t.releasedState,
    ready: t.readyState,
    withdrawn: t.withdrawnState,
  };
  return {
    handle: report.handle,
    title: t.breastUltrasound,
    day,
    stateText: states[report.state],
    state: report.state,
    unread: report.unread,
  };
}
