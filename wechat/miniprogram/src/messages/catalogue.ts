/** Every word that the Mini Program itself shows. Texts about a report come with the report. */
export type Language = "zh" | "en";

export interface Messages {
  appTitle: string;
  otherLanguage: string;
  largeText: string;
  normalText: string;
  loading: string;
  tryAgain: string;
  offline: string;
  busy: string;
  failed: string;
  breastUltrasound: string;
  age: string;
  reportTitle: string;
  signedByDoctor: string;
  amendedByDoctor: string;
  examinedOn: string;
  /** Year, month, day of the month. */
  day: string;
  /** Twelve names of months, separated by commas. */
  months: string;
  nameSeparator: string;
  resultLabel: string;
  categoryLabel: string;
  adviceLabel: string;
  summaryLabel: string;
  trendLabel: string;
  trendNote: string;
  trendTable: string;
  left: string;
  right: string;
  both: string;
  clock: string;
  noMeasure: string;
  readyTitle: string;
  readyText: string;
  readyNote: string;
  readyState: string;
  withdrawnTitle: string;
  withdrawnText: string;
  withdrawnState: string;
  notFoundTitle: string;
  notFoundText: string;
  callDepartment: string;
  notifyMe: string;
  notifyAccepted: string;
  notifyRefused: string;
  notifyFailed: string;
  footnote: string;
  listTitle: string;
  listEmpty: string;
  unread: string;
  releasedState: string;
  bindAnother: string;
  unbind: string;
  unbindAsk: string;
  unbindDone: string;
  confirm: string;
  cancel: string;
  bindTitle: string;
  bindText: string;
  privacyTitle: string;
  privacyText: string;
  privacyRead: string;
  privacyAgree: string;
  scan: string;
  codeLabel: string;
  codeHint: string;
  lastFourLabel: string;
  lastFourHint: string;
  lastFourNone: string;
  bind: string;
  bindFailed: string;
  bindDone: string;
  codeMissing: string;
}

const zh: Messages = {
  appTitle: "检查报告",
  otherLanguage: "English",
  largeText: "大字",
  normalText: "标准字",
  loading: "正在读取…",
  tryAgain: "重试",
  offline: "网络没有连上，请稍后再试。",
  busy: "现在访问的人较多，请稍后再试。",
  failed: "暂时无法读取，请稍后再试。",
  breastUltrasound: "乳腺超声检查",
  age: "{0} 岁",
  reportTitle: "检查报告",
  signedByDoctor: "医生已签发",
  amendedByDoctor: "医生已更新",
  examinedOn: "检查日期 {0}",
  day: "{0}年{1}月{2}日",
  months: "1,2,3,4,5,6,7,8,9,10,11,12",
  nameSeparator: "、",
  resultLabel: "检查结果",
  categoryLabel: "BI-RADS 分类 {0}",
  adviceLabel: "接下来怎么做",
  summaryLabel: "医生想对您说",
  trendLabel: "历次检查",
  trendNote: "— 表示该次检查没有测量大小。",
  trendTable: "历次检查的大小",
  left: "左侧",
  right: "右侧",
  both: "双侧",
  clock: "{0} 点方向",
  noMeasure: "—",
  readyTitle: "您的报告已完成",
  readyText: "医生将与您联系，为您讲解结果。您也可以直接致电科室。",
  readyNote: "每一份需要医生讲解的报告，都会先显示这个页面。",
  readyState: "医生将与您联系",
  withdrawnTitle: "报告正在更正",
  withdrawnText: "这份报告暂时不能查看。医生签发新的报告后，您可以在这里看到。",
  withdrawnState: "正在更正",
  notFoundTitle: "没有找到这份报告",
  notFoundText: "请从报告列表中打开，或致电科室。",
  callDepartment: "致电科室",
  notifyMe: "报告有更新时通知我",
  notifyAccepted: "好的，下一次更新会通知您",
  notifyRefused: "没有开启通知，您可以随时在这里查看",
  notifyFailed: "暂时无法开启通知",
  footnote: "内容由医生签发，未经医生确认的人工智能（AI）结果不会发给您。为保护隐私，这里只显示姓氏，不含图像；完整报告请到科室领取。",
  listTitle: "{0}，您好",
  listEmpty: "还没有报告。医生签发后，会出现在这里。",
  unread: "新",
  releasedState: "可以查看",
  bindAnother: "绑定另一份就诊凭证",
  unbind: "解除绑定",
  unbindAsk: "解除后，这部手机上将不再显示报告。确定吗？",
  unbindDone: "已解除绑定",
  confirm: "确定",
  cancel: "取消",
  bindTitle: "绑定就诊凭证",
  bindText: "请扫描检查登记处打印的二维码，并填写证件号码的最后四位。",
  privacyTitle: "先请您了解",
  privacyText: "我们使用：微信登录标识（用来认出这部手机）、您扫描的就诊凭证、证件号码最后四位（只用于核对，不保存），以及医院发来的打码报告（姓名只保留姓氏）。不收集电话、位置和照片。您可以随时解除绑定。",
  privacyRead: "阅读《隐私保护指引》",
  privacyAgree: "同意并继续",
  scan: "扫描二维码",
  codeLabel: "就诊凭证",
  codeHint: "扫描后自动填入",
  lastFourLabel: "证件号码最后四位",
  lastFourHint: "例如 123X",
  lastFourNone: "没有登记证件号码的，可以不填。",
  bind: "绑定",
  bindFailed: "没有绑定成功。请核对后再试；仍有问题请到登记处重新打印。",
  bindDone: "绑定成功",
  codeMissing: "请先扫描二维码。",
};

const en: Messages = {
  appTitle: "My reports",
  otherLanguage: "中文",
  largeText: "Larger",
  normalText: "Normal",
  loading: "Loading…",
  tryAgain: "Try again",
  offline: "There is no connection. Please try again later.",
  busy: "Many people are asking just now. Please try again in a moment.",
  failed: "This cannot be shown just now. Please try again later.",
  breastUltrasound: "Breast ultrasound",
  age: "age {0}",
  reportTitle: "Your report",
  signedByDoctor: "Signed by your doctor",
  amendedByDoctor: "Updated by your doctor",
  examinedOn: "Examined on {0}",
  day: "{2} {1} {0}",
  months: "Jan,Feb,Mar,Apr,May,Jun,Jul,Aug,Sep,Oct,Nov,Dec",
  nameSeparator: ", ",
  resultLabel: "Result",
  categoryLabel: "BI-RADS category {0}",
  adviceLabel: "What to do next",
  summaryLabel: "A note from your doctor",
  trendLabel: "Your visits",
  trendNote: "— means that the size was not measured at that visit.",
  trendTable: "Sizes over your visits",
  left: "Left",
  right: "Right",
  both: "Both sides",
  clock: "{0} o'clock",
  noMeasure: "—",
  readyTitle: "Your report is ready",
  readyText: "Your doctor will contact you and explain the result. You may also call the department.",
  readyNote: "Every report that a doctor explains in person shows this page first.",
  readyState: "Your doctor will contact you",
  withdrawnTitle: "This report is being corrected",
  withdrawnText: "It cannot be shown for now. You will find the new report here as soon as your doctor has signed it.",
  withdrawnState: "Being corrected",
  notFoundTitle: "This report was not found",
  notFoundText: "Please open it from your list of reports, or call the department.",
  callDepartment: "Call the department",
  notifyMe: "Tell me when a report changes",
  notifyAccepted: "We will tell you about the next change",
  notifyRefused: "Messages stay off; you can look here at any time",
  notifyFailed: "Messages cannot be switched on just now",
  footnote: "A doctor signed what you read here. Results of artificial intelligence (AI) that no doctor has confirmed are never sent to you. For your privacy only your family name is shown and no images; the full report is at the department.",
  listTitle: "Hello, {0}",
  listEmpty: "There are no reports yet. They appear here once your doctor has signed them.",
  unread: "New",
  releasedState: "Ready to read",
  bindAnother: "Add another visit code",
  unbind: "Remove from this phone",
  unbindAsk: "Reports will no longer be shown on this phone. Go on?",
  unbindDone: "Removed",
  confirm: "Yes",
  cancel: "No",
  bindTitle: "Add your visit",
  bindText: "Scan the QR code from the registration desk and enter the last four characters of your ID number.",
  privacyTitle: "Before you start",
  privacyText: "We use: WeChat's sign-in mark (to recognise this phone), the visit code you scan, the last four of your ID number (to check it once, not kept) and the masked reports the hospital sends (family name only). We collect no phone number, place or photo. You can remove everything at any time.",
  privacyRead: "Read the privacy guide",
  privacyAgree: "Agree and go on",
  scan: "Scan the QR code",
  codeLabel: "Visit code",
  codeHint: "Filled in by scanning",
  lastFourLabel: "Last four of your ID number",
  lastFourHint: "for example 123X",
  lastFourNone: "Leave it empty if you registered without an ID number.",
  bind: "Add",
  bindFailed: "That did not work. Please check and try again, or ask the desk for a new code.",
  bindDone: "Added",
  codeMissing: "Please scan the QR code first.",
};

export const catalogue: Record<Language, Messages> = { zh, en };

/** The message with `{0}`, `{1}`… replaced. */
export function fill(message: string, ...values: string[]): string {
  return message.replace(/\{(\d)\}/g, (_, index: string) => values[Number(index)] ?? "");
}
