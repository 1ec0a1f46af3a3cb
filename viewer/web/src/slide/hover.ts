// The numbers of the tile under the pointer.

import { h } from "../dom";
import type { Pane } from "./viewer";
import { count, scoreText } from "./units";

export interface Pointer {
  x: number;
  y: number;
  tile: number;
}

export class Hover {
  /** Tile under the pointer, or -1. */
  tile = -1;
  private readonly card = h("div", { class: "slide-hover", "data-testid": "hover", hidden: true });
  private readonly stop = new AbortController();

  /** `moved` hears where the pointer is in level-0 pixels, null when it has left; true: no numbers now. */
  constructor(
    private readonly pane: Pane,
    moved: (at: { x: number; y: number } | null) => boolean,
  ) {
    pane.element.append(this.card);
    const { signal } = this.stop;
    pane.stage.addEventListener(
      "pointermove",
      (event) => {
        const box = pane.stage.getBoundingClientRect();
        const [left, top] = [event.clientX - box.left, event.clientY - box.top];
        const at = pane.toSlide(left, top);
        const taken = moved(at) || event.buttons > 0 || event.pointerType === "touch";
        this.show(at, left, top, box, taken);
      },
      { signal },
    );
    pane.stage.addEventListener("pointerleave", () => (moved(null), this.hide()), { signal });
    pane.viewer.addHandler("animation", () => this.hide());
  }

  destroy(): void {
    this.stop.abort();
    this.card.remove();
  }

  private show(at: { x: number; y: number }, left: number, top: number, box: DOMRect, busy: boolean): void {
    const { loaded, choice } = this.pane.scores;
    const tile = loaded?.field.at(at.x, at.y) ?? -1;
    const failed = loaded?.failed.at(at.x, at.y) ?? -1;
    this.mark(busy ? -1 : tile);
    this.card.hidden = busy || !loaded || (tile < 0 && failed < 0);
    if (this.card.hidden || !loaded) return;
    const rows =
      tile < 0 ? [["This tile could not be read", "no data"] as const] : numbersOf(loaded.tiles.columns, tile);
    const xy = tile < 0 ? loaded.tiles.failed.subarray(2 * failed) : loaded.tiles.xy.subarray(2 * tile);
    this.card.replaceChildren(
      h(
        "dl",
        { class: "facts" },
        ...rows.flatMap(([name, value], i) => [
          h("dt", { class: i === choice?.column ? "chosen" : null }, name),
          h("dd", { class: `number${i === choice?.column ? " chosen" : ""}` }, value),
        ]),
      ),
      h("div", { class: "muted number" }, `x ${count(xy[0]!)}, y ${count(xy[1]!)} px`),
    );
    const beyond = (place: number, size: number, room: number) =>
      place + 18 + size > room ? place - size - 12 : place + 18;
    const { offsetWidth, offsetHeight } = this.card;
    const right = Math.max(0, beyond(left, offsetWidth, box.width));
    const down = Math.max(0, beyond(top, offsetHeight, box.height));
    this.card.style.transform = `translate(${right}px, ${down}px)`;
  }

  private hide(): void {
    this.card.hidden = true;
    this.mark(-1);
  }

  private mark(tile: number): void {
    if (tile === this.tile) return;
    this.tile = tile;
    this.pane.overlay.invalidate();
  }
}

/** Every number of a tile with its name, as text. */
export function numbersOf(
  columns: { name: string; low: number; high: number; values: Float32Array }[],
  tile: number,
): (readonly [string, string])[] {
  return columns.map(({ name, low, high, values }) => [name, scoreText(values[tile]!, low, high)] as const);
}
