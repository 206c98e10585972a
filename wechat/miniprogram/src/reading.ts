import { catalogue, type Language, type Messages } from "./messages/catalogue";

/** How the patient reads: her language and the size of the text. */
export interface Reading {
  language: Language;
  large: boolean;
}

/** What every page puts into its data for the templates. */
export interface ReadingData {
  t: Messages;
  language: Language;
  large: boolean;
  step: number;
}

const STORAGE_KEY = "reading";
const NORMAL_STEP = 1;
const LARGE_STEP = 1.3;

/** The kept choice, or the phone's own language and text size. */
export function currentReading(): Reading {
  const kept: unknown = wx.getStorageSync(STORAGE_KEY);
  if (isReading(kept)) return kept;
  const phone = wx.getAppBaseInfo();
  const language = String(phone.language ?? "zh").startsWith("en") ? "en" : "zh";
  return { language, large: (phone.fontSizeScaleFactor ?? 1) > 1.1 };
}

export function keepReading(reading: Reading): void {
  wx.setStorageSync(STORAGE_KEY, reading);
}

export function readingData(reading: Reading): ReadingData {
  return {
    t: catalogue[reading.language],
    language: reading.language,
    large: reading.large,
    step: reading.large ? LARGE_STEP : NORMAL_STEP,
  };
}

function isReading(value: unknown): value is Reading {
  if (typeof value !== "object" || value === null) return false;
  const { language, large } = value as Partial<Reading>;
  return (language === "zh" || language === "en") && typeof large === "boolean";
}
