/** Runs the Mini Program's pages in a browser: built-in tags, page stack, events. */
import * as glassEasel from "glass-easel";
import { MiniProgramEnv } from "glass-easel-miniprogram-adapter";
import { endTap, startTap } from "./gesture";
import { createWx, type Navigation } from "./wx";

interface AppConfig {
  pages: string[];
}

type Templates = Record<string, unknown>;
type ComponentEnv = { Page: unknown; Component: unknown; Behavior: unknown };

interface PageInstance {
  onLoad?: (query: Record<string, string>) => void;
  onShow?: () => void;
}

const environment = new MiniProgramEnv();
const space = environment.createCodeSpace("", true);
const scope = globalThis as unknown as Record<string, unknown>;

/** The element that a built-in tag made, where attributes of accessibility go. */
interface BuiltIn {
  $$: HTMLElement | null;
  data: Record<string, unknown>;
}

const ATTRIBUTES: Record<string, string> = {
  ariaRole: "role",
  ariaLevel: "aria-level",
  ariaLabel: "aria-label",
  placeholder: "placeholder",
  maxlength: "maxlength",
};

function defineBuiltIns(): void {
  const components = space.getComponentSpace();
  for (const tag of ["view", "text", "button", "input"]) {
    const definition = components
      .define()
      .property("ariaRole", String)
      .property("ariaLevel", String)
      .property("ariaLabel", String)
      .property("placeholder", String)
      .property("maxlength", String)
      .property("value", String)
      .property("openType", String)
      .property("disabled", Boolean)
      .observer("**", function (this: unknown) {
        draw(this as BuiltIn);
      })
      .lifetime("attached", function (this: unknown) {
        draw(this as BuiltIn);
      })
      .registerComponent();
    components.setGlobalUsingComponent(tag, definition as never);
  }
}

function draw(component: BuiltIn): void {
  const element = component.$$;
  if (element === null) return;
  for (const [property, attribute] of Object.entries(ATTRIBUTES)) {
    const value = component.data[property];
    if (typeof value === "string" && value !== "") element.setAttribute(attribute, value);
  }
  if (component.data.openType) element.dataset.openType = String(component.data.openType);
  if (element instanceof HTMLButtonElement) element.disabled = component.data.disabled === true;
  if (element instanceof HTMLInputElement) {
    const value = String(component.data.value ?? "");
    if (element.value !== value) element.value = value;
  }
}

defineBuiltIns();

/** Register one page or component; `load` runs its TypeScript module. */
export function defineComponent(
  path: string,
  config: { component?: boolean },
  styleScope: string,
  templates: Templates,
  load: () => void,
): void {
  space.addStyleSheet(path, undefined as never, styleScope);
  space.addComponentStaticConfig(path, { ...config, styleIsolation: "isolated" } as never);
  space.addCompiledTemplate(path, { groupList: templates, content: templates[path] } as never);
  space.componentEnv(path, (env: ComponentEnv) => {
    Object.assign(scope, { Page: env.Page, Component: env.Component, Behavior: env.Behavior });
    load();
  });
}

/** Show the page of the address: `#/pages/report/index?handle=…`. */
export function start(app: AppConfig): void {
  const backend = new glassEasel.CurrentWindowBackendContext();
  backend.onEvent((target, type, detail, options) => {
    // The browser's own event has no value in `detail`; `forwardInput` adds it.
    if (type === "input") return glassEasel.EventBubbleStatus.Normal;
    const event = new glassEasel.Event(type, detail, options as never);
    const tapped = type === "tap";
    if (tapped) startTap();
    glassEasel.Event.dispatchEvent(target as never, event);
    if (tapped) endTap();
    return event.defaultPrevented()
      ? glassEasel.EventBubbleStatus.NoDefault
      : glassEasel.EventBubbleStatus.Normal;
  });
  forwardInput();
  const associated = environment.associateBackend(backend as never);
  const pages = new PageStack(app, associated);
  scope.App = () => undefined;
  scope.wx = createWx(pages);
  forwardPrivacyButtons();
  window.addEventListener("hashchange", () => pages.follow(location.hash));
  pages.follow(location.hash || `#/${app.pages[0] ?? ""}`);
}

/** Hand what was typed to the element as WeChat does: in `detail.value`. */
function forwardInput(): void {
  document.addEventListener("input", (event) => {
    const input = event.target as HTMLInputElement;
    trigger(input, "input", { value: input.value });
  });
}

/** `open-type="agreePrivacyAuthorization"` answers a tap with its own event. */
function forwardPrivacyButtons(): void {
  document.addEventListener("click", (event) => {
    const button = (event.target as HTMLElement).closest<HTMLElement>("[data-open-type]");
    if (button?.dataset.openType !== "agreePrivacyAuthorization") return;
    (scope.wx as { agreePrivacy: () => void }).agreePrivacy();
    trigger(button, "agreeprivacyauthorization", {});
  });
}

function trigger(element: HTMLElement, name: string, detail: object): void {
  const owner = (element as unknown as { __wxElement?: never }).__wxElement;
  if (owner !== undefined) glassEasel.Event.triggerEvent(owner, name, detail, {});
}

type Associated = ReturnType<MiniProgramEnv["associateBackend"]>;

/** One page at a time; the browser's history is the stack. */
class PageStack implements Navigation {
  private shown: ReturnType<Associated["createRoot"]> | null = null;

  constructor(
    private readonly app: AppConfig,
    private readonly backend: Associated,
  ) {}

  open(url: string, replace: boolean): void {
    const hash = `#${url.startsWith("/") ? url : `/${url}`}`;
    if (replace) history.replaceState(null, "", hash);
    else history.pushState(null, "", hash);
    this.follow(hash);
  }

  follow(hash: string): void {
    const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?");
    if (!this.app.pages.includes(path)) throw new Error(`no such page: ${path}`);
    const screen = document.getElementById("screen") ?? document.body;
    this.shown?.release();
    screen.replaceChildren();
    const placeholder = document.createElement("div");
    screen.append(placeholder);
    const root = this.backend.createRoot("wx-page", space, path);
    root.attach(screen as never, placeholder as never);
    this.shown = root;
    const page = root.get() as unknown as PageInstance;
    page.onLoad?.(Object.fromEntries(new URLSearchParams(query)));
    page.onShow?.();
    window.scrollTo(0, 0);
  }
}
