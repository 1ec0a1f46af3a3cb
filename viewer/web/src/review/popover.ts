// Asks for the class of a region right after it was drawn, beside it.

import type OpenSeadragon from "openseadragon";
import { h } from "../dom";
import { icon } from "../shell/icons";
import { classChooser, WITH_KEY } from "./classes";

const GAP_PX = 12;

export interface Popover {
  close(): void;
}

/** `box` is the region on the screen, in CSS pixels of the viewer. Keys 1 to 9 choose, Escape leaves it without a class. */
export function askClass(viewer: OpenSeadragon.Viewer, box: DOMRect, classes: readonly string[], choose: (label: string) => void): Popover {
  let open = true;
  const close = (): void => {
    if (!open) return;
    open = false;
    document.removeEventListener("pointerdown", outside, true);
    viewer.removeHandler("animation-start", close);
    element.remove();
    viewer.canvas.focus({ preventScroll: true });
  };
  const chosen = (label: string): void => {
    choose(label);
    close();
  };
  const outside = (event: Event): void => {
    if (event.target instanceof Node && !element.contains(event.target)) close();
  };
  const keys = (event: Event): void => {
    if (!(event instanceof KeyboardEvent)) return;
    const label = event.target instanceof HTMLInputElement ? undefined : classes[Number(event.key) - 1];
    if (event.key === "Escape") close();
    else if (label !== undefined && /^[1-9]$/.test(event.key) && Number(event.key) <= WITH_KEY) chosen(label);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const shut = h("button", { type: "button", class: "quiet icon small", "aria-label": "Leave it without a class", onclick: close }, icon("close"));
  const element = h(
    "div",
    { class: "review-popover", role: "dialog", "aria-label": "Class of the new region", "data-testid": "class-popover", onkeydown: keys },
    h("div", { class: "spread" }, h("strong", {}, "What is it?"), shut),
    classChooser("the new region", classes, null, chosen),
  );
  document.body.append(element);
  place(element, viewer.element.getBoundingClientRect(), box);
  document.addEventListener("pointerdown", outside, true);
  viewer.addOnceHandler("animation-start", close);
  (element.querySelector<HTMLElement>(".review-class") ?? element.querySelector("input"))?.focus();
  return { close };
}

/** Right of the region where there is room, else left of it, else inside; always within the viewer. */
function place(element: HTMLElement, stage: DOMRect, box: DOMRect): void {
  const { width, height } = element.getBoundingClientRect();
  const right = box.right + GAP_PX;
  const left = right + width <= stage.width ? right : box.left - GAP_PX - width;
  const inside = (value: number, size: number, room: number) => Math.min(Math.max(GAP_PX, value), Math.max(GAP_PX, room - size - GAP_PX));
  element.style.left = `${stage.left + inside(left, width, stage.width)}px`;
  element.style.top = `${stage.top + inside(box.top, height, stage.height)}px`;
}
