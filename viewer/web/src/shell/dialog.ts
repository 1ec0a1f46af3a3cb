// Modal dialogs, on the browser's own <dialog>: focus is kept inside, Escape closes, focus goes back.

import { h } from "../dom";
import { icon } from "./icons";

export interface Dialog {
  element: HTMLDialogElement;
  close(): void;
}

/** Show `body` under `title`, with `foot` (buttons) below it; `closed` is called once, however it is closed. */
export function openDialog(title: string, body: Node[], foot: Node[] = [], closed?: () => void): Dialog {
  const shut = h("button", { class: "quiet icon", "aria-label": "Close", type: "button" }, icon("close"));
  const heading = h("h2", { id: `dialog-${crypto.randomUUID()}` }, title);
  const element = h(
    "dialog",
    { class: "dialog", "aria-labelledby": heading.id },
    h("div", { class: "dialog-head" }, heading, shut),
    h("div", { class: "dialog-body" }, ...body),
    foot.length > 0 && h("div", { class: "dialog-foot" }, ...foot),
  );
  const before = document.activeElement;
  shut.addEventListener("click", () => element.close());
  element.addEventListener("click", (event) => event.target === element && element.close());
  element.addEventListener("close", () => {
    element.remove();
    if (before instanceof HTMLElement) before.focus();
    closed?.();
  });
  document.body.append(element);
  element.showModal();
  return { element, close: () => element.close() };
}
