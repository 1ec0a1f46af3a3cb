// The tiles with the highest and the lowest score, some way apart from each other.

import { patchUrl, type Slide } from "../api";
import { h } from "../dom";
import type { ScoreLayer } from "./scores";
import { scoreText } from "./units";

const PICTURE_PX = 128;
const CANDIDATES = 4000;
const COUNTS = [4, 6, 8, 12, 20];

export class Strip {
  readonly element = h("section", {
    class: "slide-strip",
    "aria-label": "Tiles with the highest and lowest score",
    "data-testid": "strip",
  });
  private readonly ends = { top: h("ol", { class: "slide-strip-row" }), bottom: h("ol", { class: "slide-strip-row" }) };
  private shownFor: unknown = null;
  private at = -1;

  constructor(
    private readonly slide: Slide,
    private readonly scores: ScoreLayer,
    private readonly jump: (x: number, y: number, side: number) => void,
    private k: number,
    counted: (k: number) => void,
  ) {
    const options = [...new Set([...COUNTS, k])]
      .sort((a, b) => a - b)
      .map((n) => h("option", { value: n, selected: n === k }, n));
    const chooser = h("select", { "aria-label": "How many tiles at each end" }, ...options);
    chooser.addEventListener("change", () => {
      this.k = Number(chooser.value);
      this.shownFor = null;
      counted(this.k);
      this.show();
    });
    this.element.append(
      h("label", { class: "slide-strip-count" }, h("span", {}, "Tiles"), chooser),
      h("div", { class: "slide-strip-end" }, h("h2", {}, "Highest"), this.ends.top),
      h("div", { class: "slide-strip-end" }, h("h2", {}, "Lowest"), this.ends.bottom),
    );
    this.element.hidden = true;
    scores.onChange(() => this.show());
  }

  /** Jumps to the next (or the one before) of the highest tiles. */
  step(by: number): void {
    const buttons = [...this.ends.top.querySelectorAll("button")];
    if (!buttons.length) return;
    this.at = (this.at + by + buttons.length) % buttons.length;
    buttons[this.at]!.click();
  }

  private show(): void {
    const { column, loaded } = this.scores;
    this.element.hidden = !column || !loaded?.field.count;
    if (!column || !loaded || this.shownFor === column) return;
    this.shownFor = column;
    this.at = -1;
    const { xy, span_px: span } = loaded.tiles;
    for (const [end, sign] of [
      ["top", 1],
      ["bottom", -1],
    ] as const) {
      const tiles = extremeTiles(column.values, xy, span, this.k, sign);
      this.ends[end].replaceChildren(
        ...tiles.map((tile) => this.item(tile, xy, span, scoreText(column.values[tile]!, column.low, column.high))),
      );
    }
  }

  private item(tile: number, xy: Int32Array, span: number, text: string): HTMLElement {
    const [x, y] = [xy[2 * tile]!, xy[2 * tile + 1]!];
    const picture = h("img", {
      src: patchUrl(this.slide.id, x, y, span, Math.min(span, PICTURE_PX)),
      alt: "",
      loading: "lazy",
      width: 64,
      height: 64,
    });
    picture.addEventListener("error", () => picture.classList.add("slide-no-data"));
    const button = h(
      "button",
      {
        type: "button",
        class: "slide-strip-tile",
        "data-x": x,
        "data-y": y,
        "aria-label": `Score ${text}: show this tile at x ${x}, y ${y}`,
      },
      picture,
      h("span", { class: "number" }, text),
    );
    button.addEventListener("click", () => {
      this.element.querySelector("[aria-current]")?.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
      this.jump(x, y, span);
    });
    return h("li", {}, button);
  }
}

/** Up to k tiles, best first, at least two tiles' sides apart where the slide has so many; sign -1 takes the lowest. */
export function extremeTiles(values: Float32Array, xy: Int32Array, span: number, k: number, sign: 1 | -1): number[] {
  const order = candidates(values, sign);
  for (const apart of [2 * span, span, 0]) {
    const chosen: number[] = [];
    for (const tile of order) {
      if (chosen.length === k) break;
      const far = chosen.every(
        (other) =>
          Math.max(Math.abs(xy[2 * tile]! - xy[2 * other]!), Math.abs(xy[2 * tile + 1]! - xy[2 * other + 1]!)) >= apart,
      );
      if (far) chosen.push(tile);
    }
    if (chosen.length === Math.min(k, order.length) || apart === 0) return chosen;
  }
  return [];
}

/** Tiles by score, best first; of very many only those at the end asked for, found without sorting them all. */
function candidates(values: Float32Array, sign: 1 | -1): number[] {
  let cut = -Infinity;
  if (values.length > 4 * CANDIDATES) {
    const step = Math.floor(values.length / (4 * CANDIDATES));
    const sample = Float32Array.from({ length: 4 * CANDIDATES }, (_, i) => sign * values[i * step]!)
      .filter((value) => !Number.isNaN(value))
      .sort();
    cut = sample.at(-Math.ceil((CANDIDATES * sample.length) / values.length) - 1) ?? -Infinity;
  }
  const chosen: number[] = [];
  for (let tile = 0; tile < values.length; tile++) if (sign * values[tile]! >= cut) chosen.push(tile);
  chosen.length = Math.min(chosen.length, 50 * CANDIDATES); // many equal scores: any of them will do
  return chosen.sort((a, b) => sign * (values[b]! - values[a]!));
}
