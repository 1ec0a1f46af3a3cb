// The shell: which page is shown for which address (#/worklist, #/slide/ID, #/queue).

import { session } from "./api";
import "./styles/index.css";
import { h } from "./dom";
import type { OpenPage, Page, Route } from "./page";
import { openQueue } from "./pages/queue";
import { openSlide } from "./pages/slide";
import { openWorklist } from "./pages/worklist";

const PAGES: Record<string, OpenPage> = { worklist: openWorklist, slide: openSlide, queue: openQueue };

function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [name = "", ...rest] = path.split("/").map(decodeURIComponent);
  return { name: name in PAGES ? name : "worklist", path: rest, query: new URLSearchParams(query) };
}

async function start(): Promise<void> {
  const app = document.getElementById("app")!;
  const known = await session();
  document.title = known.title;
  let page: Page | null = null;
  const show = () => {
    page?.destroy();
    const route = routeOf(location.hash);
    const root = h("main", { id: "page" });
    app.replaceChildren(root);
    page = PAGES[route.name]!(root, route, known);
  };
  window.addEventListener("hashchange", show);
  show();
}

void start();
