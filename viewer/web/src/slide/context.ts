// What the slide page offers to the review panel beside it.

import type OpenSeadragon from "openseadragon";
import type { Session, Slide } from "../api";

export interface SlideContext {
  slide: Slide;
  session: Session;
  viewer: OpenSeadragon.Viewer;
  /** Empty element in the side panel that is the review's own. */
  panel: HTMLElement;
  /** Centre the view on a rectangle in level-0 pixels. */
  jump(x: number, y: number, width: number, height: number): void;
  /** Say something in the page's status line, which screen readers read out. */
  announce(text: string, kind?: "info" | "error"): void;
  /** Asked before a click (level-0 pixels) opens its patch: true where the click is for a region, or for drawing. */
  claimClicks(claims: (x: number, y: number) => boolean): void;
}

export interface Mounted {
  destroy(): void;
}
