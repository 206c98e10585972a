import { keepReading, type Reading } from "../../reading";

/** The row on top of every page: other language, larger text. */
Component({
  properties: {
    language: { type: String, value: "zh" },
    large: { type: Boolean, value: false },
    languageText: { type: String, value: "" },
    sizeText: { type: String, value: "" },
  },
  methods: {
    switchLanguage() {
      this.choose({
        language: this.data.language === "zh" ? "en" : "zh",
        large: this.data.large,
      });
    },
    switchSize() {
      this.choose({
        language: this.data.language === "en" ? "en" : "zh",
        large: !this.data.large,
      });
    },
    choose(reading: Reading) {
      keepReading(reading);
      this.triggerEvent("choose", reading);
    },
  },
});
