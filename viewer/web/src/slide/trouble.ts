// Pictures of the slide that could not be loaded: never a white place without a word.

import type OpenSeadragon from "openseadragon";
import { h } from "../dom";
import { hatching } from "./marks";
import type { View } from "./overlay";

interface Missing {
  x: number;
  y: number;
  width: number;
  height: number;
}

export class Trouble {
  private readonly missing = new Map<string, Missing>();
  private readonly text = h("span");
  private readonly hatch = hatching();
  readonly element: HTMLElement;

  constructor(
    private readonly viewer: OpenSeadragon.Viewer,
    width: number,
    changed: () => void,
  ) {
    const again = h("button", { type: "button", class: "small", onclick: () => this.retry() }, "Try again");
    this.element = h("div", { class: "slide-trouble notice error", role: "alert", hidden: true }, this.text, again);
    viewer.addHandler("tile-load-failed", ({ tile }) => {
      const { bounds } = tile;
      this.missing.set(tile.cacheKey, {
        x: bounds.x * width,
        y: bounds.y * width,
        width: bounds.width * width,
        height: bounds.height * width,
      });
      this.show();
      changed();
    });
    viewer.addHandler("tile-loaded", ({ tile }) => {
      if (this.missing.delete(tile.cacheKey)) this.show();
    });
  }

  draw(context: CanvasRenderingContext2D, view: View): void {
    if (!this.missing.size) return;
    const pattern = context.createPattern(this.hatch, "repeat")!;
    pattern.setTransform(new DOMMatrix().scale(1 / view.scale));
    context.fillStyle = pattern;
    context.globalAlpha = 0.55; // a coarser picture, where there is one, shines through
    for (const { x, y, width, height } of this.missing.values()) {
      if (width * view.scale < 8) continue; // a tile of a finer level than is looked at
      context.fillRect(x - view.left, y - view.top, width, height);
    }
    context.globalAlpha = 1;
  }

  private show(): void {
    const { size } = this.missing;
    this.element.hidden = size === 0;
    const parts = size === 1 ? "One part" : `${size} parts`;
    this.text.textContent = `${parts} of the picture could not be loaded (hatched).`;
  }

  private retry(): void {
    this.missing.clear();
    this.show();
    for (let i = 0; i < this.viewer.world.getItemCount(); i++) this.viewer.world.getItemAt(i).reset();
  }
}
