// A canvas over the slide, redrawn with every frame of the viewer, so that what is drawn sits on its pixels.

import OpenSeadragon from "openseadragon";
import { h } from "../dom";

/** What is in view, in level-0 pixels (upright box around it), and device pixels for each of them. */
export interface View {
  left: number;
  top: number;
  right: number;
  bottom: number;
  scale: number;
}

export type Draw = (context: CanvasRenderingContext2D, view: View) => void;

export class Overlay {
  readonly canvas = h("canvas", { class: "slide-overlay", "aria-hidden": "true" });
  private readonly context = this.canvas.getContext("2d")!;
  private frame = 0;

  /** `draw` gets a context in level-0 pixels relative to the view's top-left corner. */
  constructor(
    private readonly viewer: OpenSeadragon.Viewer,
    private readonly width: number,
    private readonly draw: Draw,
  ) {
    viewer.canvas.insertBefore(this.canvas, viewer.overlaysContainer);
    viewer.addHandler("update-viewport", () => this.redraw());
    viewer.addHandler("resize", () => this.invalidate());
  }

  /** Draws again with the next frame: something else than the view has changed. */
  invalidate(): void {
    this.frame ||= requestAnimationFrame(() => this.redraw());
  }

  destroy(): void {
    cancelAnimationFrame(this.frame);
  }

  private redraw(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const ratio = window.devicePixelRatio;
    const box = this.viewer.viewport.getContainerSize();
    const [wide, high] = [Math.round(box.x * ratio), Math.round(box.y * ratio)];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      [this.canvas.width, this.canvas.height] = [wide, high];
    }
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.clearRect(0, 0, wide, high);
    if (!this.viewer.world.getItemCount()) return;
    const view = this.view(box, ratio);
    const [zero, right, down] = [
      this.pixel(view.left, view.top),
      this.pixel(view.left + 1000, view.top),
      this.pixel(view.left, view.top + 1000),
    ];
    this.context.setTransform(
      ((right.x - zero.x) / 1000) * ratio,
      ((right.y - zero.y) / 1000) * ratio,
      ((down.x - zero.x) / 1000) * ratio,
      ((down.y - zero.y) / 1000) * ratio,
      zero.x * ratio,
      zero.y * ratio,
    );
    this.draw(this.context, view);
  }

  private view(box: OpenSeadragon.Point, ratio: number): View {
    const corners = [
      [0, 0],
      [box.x, 0],
      [0, box.y],
      [box.x, box.y],
    ].map(([x, y]) => this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(x, y), true).times(this.width));
    const xs = corners.map((point) => point.x);
    const ys = corners.map((point) => point.y);
    const scale = (this.viewer.viewport.getZoom(true) * box.x * ratio) / this.width;
    return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys), scale };
  }

  private pixel(x: number, y: number): OpenSeadragon.Point {
    return this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(x / this.width, y / this.width), true);
  }
}
