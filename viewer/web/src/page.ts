// What the shell and the pages owe each other.

import type { Session } from "./api";

export interface Page {
  /** Called when another page takes this one's place: remove listeners on the document, timers, viewers. */
  destroy(): void;
}

export interface Route {
  /** "worklist", "slide", "queue". */
  name: string;
  /** Of #/slide/ID?a=b: ["ID"], already decoded. */
  path: string[];
  query: URLSearchParams;
}

/** Draws a page into `root`, which is empty. */
export type OpenPage = (root: HTMLElement, route: Route, session: Session) => Page;
