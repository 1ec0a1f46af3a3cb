// The status line: short words in the corner of the page, read out by screen readers.

import { h } from "../dom";
import { icon } from "./icons";

const SHOWN_MS = { info: 5_000, error: 12_000 };

let polite: HTMLElement | null = null;
let corner: HTMLElement | null = null;

/** Once, when the page starts: live regions must stand in the document before anything is said in them. */
export function mountAnnouncer(body: HTMLElement): void {
  corner = h("div", { class: "toasts", role: "log", "aria-live": "polite", "aria-label": "Messages" });
  polite = h("div", { class: "visually-hidden", role: "status" });
  body.append(corner, polite);
}

/** Show `text` for some seconds; an error stays longer. */
export function announce(text: string, kind: "info" | "error" = "info"): void {
  const close = h("button", { class: "quiet icon small", "aria-label": "Close this message" }, icon("close"));
  const toast = h("div", { class: `toast ${kind}` }, h("span", { class: "grow" }, text), close);
  const timer = window.setTimeout(() => toast.remove(), SHOWN_MS[kind]);
  close.addEventListener("click", () => (window.clearTimeout(timer), toast.remove()));
  corner?.append(toast);
  while (corner && corner.children.length > 3) corner.firstElementChild?.remove();
}

/** Say `text` to screen readers only (a count that changed, which the page shows already). */
export function whisper(text: string): void {
  if (polite && polite.textContent !== text) polite.textContent = text;
}
