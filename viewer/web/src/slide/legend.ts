// What the colours over the slide mean, in the score's own units.

import { h } from "../dom";
import { drawBar, STEPS } from "./colormap";
import type { ScoreLayer } from "./scores";
import { scoreText } from "./units";

export class Legend {
  private readonly title = h("div", { class: "slide-legend-title" });
  private readonly model = h("div", { class: "slide-legend-note ellipsis" });
  private readonly bar = h("canvas", { class: "slide-legend-bar", role: "img" });
  private readonly low = h("span");
  private readonly middle = h("span");
  private readonly high = h("span");
  private readonly note = h("div", { class: "slide-legend-note" });
  readonly element = h(
    "div",
    { class: "slide-legend", "data-testid": "legend", hidden: true },
    this.title,
    this.model,
    this.bar,
    h("div", { class: "slide-legend-ends" }, this.low, this.middle, this.high),
    this.note,
  );

  constructor(private readonly scores: ScoreLayer) {}

  show(): void {
    const { scores } = this;
    const column = scores.column;
    this.element.hidden = !scores.on || (!column && !scores.busy && !scores.problem);
    this.title.textContent = scores.name;
    this.model.textContent = scores.choice?.model ?? "";
    this.bar.hidden = !column;
    const waiting = scores.busy && !column ? "Loading …" : "";
    this.note.textContent = scores.problem ? `Not shown: ${scores.problem}` : waiting;
    if (!column) return;
    const span = scores.high - scores.low || 1;
    drawBar(this.bar, scores.map, Math.ceil(((scores.threshold - scores.low) / span) * (STEPS - 1)));
    const text = (value: number) => scoreText(value, scores.low, scores.high);
    this.low.textContent = text(scores.low);
    this.middle.textContent = text((scores.low + scores.high) / 2);
    this.high.textContent = text(scores.high);
    this.bar.setAttribute("aria-label", `Colours from ${this.low.textContent} to ${this.high.textContent}`);
    if (scores.threshold > -Infinity) this.note.textContent = `Hidden below ${text(scores.threshold)}`;
  }
}
