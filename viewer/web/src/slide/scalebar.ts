// A scale bar of a round length.

import { h } from "../dom";
import { lengthText, niceLength } from "./units";

const WIDEST_PX = 160;

export class ScaleBar {
  private readonly line = h("span", { class: "slide-scale-line" });
  private readonly text = h("span", { class: "slide-scale-text" });
  readonly element = h("div", { class: "slide-scale", "data-testid": "scalebar" }, this.text, this.line);

  constructor(private readonly mpp: number | null) {}

  /** `zoom`: screen pixels for each level-0 pixel. Without a pixel size the bar counts level-0 pixels. */
  show(zoom: number): void {
    if (!(zoom > 0)) return;
    const perPixel = (this.mpp ?? 1) / zoom;
    const length = niceLength(WIDEST_PX * perPixel);
    const label = this.mpp ? lengthText(length) : `${length.toLocaleString("en-GB")} px`;
    this.line.style.width = `${length / perPixel}px`;
    this.text.textContent = label;
    this.element.setAttribute("aria-label", `Scale bar: ${label}`);
    this.element.dataset.length = String(length);
  }
}
