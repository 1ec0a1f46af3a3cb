// The shell: which page is shown for which address (#/worklist, #/slide/ID, #/queue).

import "./styles/index.css";
import { ApiError, SESSION_ENDED, session, worklist, type Session } from "./api";
import { h } from "./dom";
import type { OpenPage, Page, Route } from "./page";
import { mountAnnouncer } from "./shell/announce";
import { header } from "./shell/header";
import { listenToKeys } from "./shell/keys";
import { ended, failed, loading } from "./shell/states";
import { applyTheme } from "./shell/theme";

// Loaded when they are first opened: the worklist does not wait for the slide viewer.
const PAGES: Record<string, () => Promise<OpenPage>> = {
  worklist: () => import("./pages/worklist").then((module) => module.openWorklist),
  slide: () => import("./pages/slide").then((module) => module.openSlide),
  queue: () => import("./pages/queue").then((module) => module.openQueue),
};

function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [name = "", ...rest] = path.split("/").map(decoded);
  return { name: Object.hasOwn(PAGES, name) ? name : "worklist", path: rest, query: new URLSearchParams(query) };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a broken address names no slide, and the page says so
  }
}

/** One page at a time below the header; each call of the returned function shows what the address names. */
function router(main: HTMLElement, known: Session, moved: (route: Route) => void): () => Promise<void> {
  let page: Page | null = null;
  let asked = 0;
  return async () => {
    const mine = ++asked;
    const route = routeOf(location.hash);
    page?.destroy();
    page = null;
    moved(route);
    main.replaceChildren(loading("Loading"));
    try {
      const open = await PAGES[route.name]!();
      if (mine !== asked) return; // another page was asked for meanwhile
      main.replaceChildren();
      main.scrollTo(0, 0);
      page = open(main, route, known);
    } catch (error) {
      main.replaceChildren(failed(error, () => location.reload()));
    }
  };
}

async function start(): Promise<void> {
  applyTheme();
  mountAnnouncer(document.body);
  const app = document.getElementById("app")!;
  app.replaceChildren(loading("Loading"));
  window.addEventListener(SESSION_ENDED, () => app.replaceChildren(h("main", { id: "page" }, ended())));
  try {
    const known = await session();
    if (known.kind === "slide" && !location.hash.startsWith("#/slide/")) await openOnlySlide();
    const frame = header(known);
    const main = h("main", { id: "page", tabindex: "-1" });
    const show = router(main, known, frame.moved);
    app.replaceChildren(...frame.elements, main);
    listenToKeys();
    window.addEventListener("hashchange", () => void show());
    await show();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return; // said already
    app.replaceChildren(h("main", { id: "page" }, failed(error, () => location.reload())));
  }
}

async function openOnlySlide(): Promise<void> {
  const [only] = (await worklist({ limit: 1 })).slides;
  if (only) history.replaceState(null, "", `#/slide/${encodeURIComponent(only.id)}`);
}

void start();
