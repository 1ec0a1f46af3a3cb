// What stands where something is loading, missing or wrong.

import { ApiError } from "../api";
import { h } from "../dom";
import { icon } from "./icons";

/** Grey bars, `rows` of them, while something loads. */
export function loading(label: string, rows = 6): HTMLElement {
  const bars = Array.from({ length: rows }, () => {
    const bar = h("div", { class: "skeleton" });
    bar.style.height = "3.2rem";
    return bar;
  });
  return h("div", { class: "stack loading", role: "status", "aria-busy": true }, h("span", { class: "visually-hidden" }, label), ...bars);
}

export function empty(title: string, text: string, ...more: Node[]): HTMLElement {
  return h("div", { class: "state" }, icon("slide", "2.5rem"), h("h2", {}, title), h("p", {}, text), ...more);
}

/** What went wrong, in the server's words, with a button that tries again. */
export function failed(error: unknown, retry?: () => void): HTMLElement {
  const { title, detail } = wordsOf(error);
  const again = retry && h("button", { onclick: retry }, icon("refresh"), "Try again");
  return h("div", { class: "state error", role: "alert" }, icon("warning", "2.5rem"), h("h2", {}, title), h("p", {}, detail), again);
}

/** The page of a session that has ended: the token in the link was the key, so the link must be opened again. */
export function ended(): HTMLElement {
  return h(
    "div",
    { class: "state", role: "alert" },
    icon("link", "2.5rem"),
    h("h1", {}, "This session has ended"),
    h("p", {}, "The server was started again, or this browser was never let in. Open the link that wsi view printed in its terminal."),
  );
}

export function wordsOf(error: unknown): { title: string; detail: string } {
  if (error instanceof ApiError) return { title: error.title || `The server answered ${error.status}`, detail: error.detail };
  if (error instanceof TypeError && /fetch|network|load failed/i.test(error.message))
    return { title: "The server does not answer", detail: "wsi view may have been stopped in its terminal. What is shown was loaded before." };
  return { title: "Something went wrong", detail: error instanceof Error ? error.message : String(error) };
}
