// Builds the Mini Program for a browser: the same WXML, WXSS and TypeScript that
// WeChat gets, run by glass-easel (WeChat's own component engine) in place of WeChat.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import esbuild from "esbuild";
import { TmplGroup } from "glass-easel-template-compiler";
import postcss from "postcss";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const source = join(root, "src");
const target = join(root, "dist");
const read = (path) => readFileSync(join(source, path), "utf8");

/** Every page and every component that a page uses, with its JSON configuration. */
function collectComponents(app) {
  const found = new Map();
  const waiting = [...app.pages];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    if (found.has(path)) continue;
    const config = JSON.parse(read(`${path}.json`));
    found.set(path, config);
    for (const used of Object.values(config.usingComponents ?? {})) {
      waiting.push(used.replace(/^\//, ""));
    }
  }
  return found;
}

/** Compile all templates together; a fault in one of them ends the build. */
function compileTemplates(paths) {
  const group = new TmplGroup();
  const faults = [];
  for (const path of paths) {
    for (const fault of group.addTmpl(path, read(`${path}.wxml`))) {
      faults.push(`${path}.wxml: ${fault.message ?? fault}`);
    }
  }
  if (faults.length > 0) throw new Error(faults.join("\n"));
  return group.getTmplGenObjectGroups();
}

/** WXSS to CSS: 750 rpx are the screen's width, classes belong to their component. */
function toCss(wxss, scope) {
  const sheet = postcss.parse(wxss);
  sheet.walkDecls((declaration) => {
    declaration.value = declaration.value.replace(/(-?[\d.]+)rpx/g, "calc($1 * var(--rpx))");
  });
  sheet.walkRules((rule) => {
    rule.selector = rule.selector
      .replace(/(^|[\s>+~,])page\b/g, "$1body")
      .replace(/\.([A-Za-z][\w-]*)/g, `.${scope}--$1`);
  });
  return sheet.toString();
}

const app = JSON.parse(read("app.json"));
const components = collectComponents(app);
const paths = [...components.keys()];
const scopeOf = (path) => path.replace(/\W+/g, "-");
const isPage = (path) => app.pages.includes(path);

// WeChat applies app.wxss to pages, not to components.
const styles = paths.map((path) => {
  const shared = isPage(path) ? toCss(read("app.wxss"), scopeOf(path)) : "";
  return shared + toCss(read(`${path}.wxss`), scopeOf(path));
});

const entry = [
  `import { defineComponent, start } from "./harness/runtime.ts";`,
  `const templates = ${compileTemplates(paths)};`,
  ...paths.map(
    (path) =>
      `defineComponent(${JSON.stringify(path)}, ${JSON.stringify(components.get(path))}, ` +
      `${JSON.stringify(scopeOf(path))}, templates, () => require("./src/${path}.ts"));`,
  ),
  `start(${JSON.stringify(app)});`,
].join("\n");

mkdirSync(target, { recursive: true });
await esbuild.build({
  stdin: { contents: entry, resolveDir: root, loader: "js" },
  bundle: true,
  format: "iife",
  target: "es2020",
  outfile: join(target, "app.js"),
  sourcemap: "inline",
  logLevel: "warning",
});
writeFileSync(join(target, "app.css"), styles.join("\n"));
writeFileSync(
  join(target, "index.html"),
  readFileSync(join(root, "harness", "index.html"), "utf8"),
);
console.log(`built ${paths.length} components into dist/`);
