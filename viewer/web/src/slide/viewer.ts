// One view of the slide: OpenSeadragon, the layers over it, scale bar and legend.

import OpenSeadragon from "openseadragon";
import type { Slide } from "../api";
import { h } from "../dom";
import { Legend } from "./legend";
import { Overlay, type Draw } from "./overlay";
import { ScaleBar } from "./scalebar";
import { slideSource } from "./source";
import type { ScoreLayer } from "./scores";

export interface Place {
  /** Centre of the view in level-0 pixels. */
  x: number;
  y: number;
  /** Screen (CSS) pixels for each level-0 pixel. */
  zoom: number;
}

const STILL = window.matchMedia("(prefers-reduced-motion: reduce)");

export class Pane {
  readonly stage = h("div", { class: "slide-stage", "data-testid": "stage" });
  readonly element: HTMLElement;
  readonly viewer: OpenSeadragon.Viewer;
  readonly overlay: Overlay;
  private readonly bar: ScaleBar;
  private readonly legend: Legend;

  /** Stands in `room`, which is in the document, after other views there; `draw` draws over the slide. */
  constructor(
    readonly slide: Slide,
    readonly scores: ScoreLayer,
    name: string,
    room: HTMLElement,
    draw: Draw,
  ) {
    const overview = !room.hasChildNodes(); // one is enough for views that move as one
    this.bar = new ScaleBar(slide.mpp);
    this.legend = new Legend(scores);
    this.element = h(
      "section",
      { class: "slide-pane", "aria-label": name },
      this.stage,
      this.bar.element,
      this.legend.element,
    );
    room.append(this.element); // laid out before OpenSeadragon measures it
    forestallStyle();
    this.viewer = OpenSeadragon({ element: this.stage, ...options(), showNavigator: overview });
    this.viewer.canvas.setAttribute("aria-label", `${name}: ${slide.id}. Arrow keys move, plus and minus zoom.`);
    this.viewer.canvas.setAttribute("role", "application");
    this.overlay = new Overlay(this.viewer, slide.width, draw);
    this.viewer.addHandler("animation", () => this.bar.show(this.zoom()));
    this.viewer.addHandler("resize", () => this.bar.show(this.zoom()));
    this.viewer.addHandler("animation-finish", () => this.mark());
  }

  /** Opens the slide; `place` is where, or null for the whole slide. Ends when the first view is set. */
  open(place: Place | null): Promise<void> {
    return new Promise((opened) => {
      this.viewer.addOnceHandler("open", () => {
        if (place) this.goTo(this.inside(place), true);
        this.bar.show(this.zoom());
        this.mark();
        opened();
      });
      this.viewer.open({ tileSource: slideSource(this.slide) });
    });
  }

  zoom(): number {
    return this.zoomOf(true);
  }

  place(): Place {
    const centre = this.viewer.viewport.getCenter(true).times(this.slide.width);
    return { x: centre.x, y: centre.y, zoom: this.zoom() };
  }

  goTo(place: Place, immediately = STILL.matches): void {
    const { viewport } = this.viewer;
    const wide = viewport.getContainerSize().x;
    const zoom = Math.min(
      viewport.getMaxZoom(),
      Math.max(viewport.getMinZoom(), (place.zoom * this.slide.width) / wide),
    );
    const centre = new OpenSeadragon.Point(place.x / this.slide.width, place.y / this.slide.width);
    viewport.zoomTo(zoom, undefined, immediately);
    viewport.panTo(centre, immediately);
  }

  /** Shows a rectangle in level-0 pixels with some room around it. */
  fit(x: number, y: number, width: number, height: number): void {
    const box = this.viewer.viewport.getContainerSize();
    const zoom = Math.min(box.x / (3 * width), box.y / (3 * height), 2);
    this.goTo({ x: x + width / 2, y: y + height / 2, zoom });
  }

  zoomBy(factor: number): void {
    this.viewer.viewport.zoomBy(factor, undefined, STILL.matches);
    this.viewer.viewport.applyConstraints(STILL.matches);
  }

  /** Keeps the centre and changes what is seen of it. */
  zoomTo(zoom: number): void {
    const target = this.viewer.viewport.getCenter(false).times(this.slide.width);
    this.goTo({ x: target.x, y: target.y, zoom });
  }

  pan(right: number, down: number): void {
    const { viewport } = this.viewer;
    viewport.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(right, down)), STILL.matches);
    viewport.applyConstraints(STILL.matches);
  }

  home(): void {
    this.viewer.viewport.goHome(STILL.matches);
  }

  turn(degrees: number): void {
    const { viewport } = this.viewer;
    viewport.setRotation(viewport.getRotation() + degrees, STILL.matches);
  }

  /** Level-0 pixels under a place of the stage in CSS pixels. */
  toSlide(x: number, y: number): { x: number; y: number } {
    const point = this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(x, y), true).times(this.slide.width);
    return { x: point.x, y: point.y };
  }

  showLegend(): void {
    this.legend.show();
  }

  destroy(): void {
    this.overlay.destroy();
    this.viewer.destroy();
    this.element.remove();
  }

  /** A link may name any place; the view starts on the slide. */
  private inside({ x, y, zoom }: Place): Place {
    const { width, height } = this.slide;
    return { x: Math.min(width, Math.max(0, x)), y: Math.min(height, Math.max(0, y)), zoom };
  }

  private zoomOf(current: boolean): number {
    const { viewport } = this.viewer;
    return (viewport.getZoom(current) * viewport.getContainerSize().x) / this.slide.width;
  }

  private mark(): void {
    const { x, y, zoom } = this.place();
    this.stage.dataset.zoom = zoom.toFixed(6);
    this.stage.dataset.center = `${x.toFixed(1)},${y.toFixed(1)}`;
  }
}

/** OpenSeadragon adds a style element, which the page's security policy refuses, unless it finds its own there: one
 * outside of HTML is found by its name, and the browser takes it for nothing. Its one rule stands in slide.css. */
function forestallStyle(): void {
  const mark = "data-openseadragon-mobile-css";
  if (document.querySelector(`style[${mark}]`)) return;
  const found = document.createElementNS(null, "style");
  found.setAttribute(mark, "true");
  document.head.append(found);
}

function options(): OpenSeadragon.Options {
  return {
    drawer: "canvas", // runs everywhere, and leaves the few WebGL contexts of a page to the drawing of regions
    showNavigationControl: false,
    navigatorPosition: "TOP_RIGHT",
    navigatorSizeRatio: 0.16,
    navigatorAutoFade: false,
    navigatorBackground: "#e4e8ea",
    navigatorOpacity: 1,
    navigatorBorderColor: "#8a94a3",
    navigatorDisplayRegionColor: "#c2410c",
    keyboardNavEnabled: false, // the page's own keys work wherever the focus is
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false, flickEnabled: false },
    gestureSettingsTouch: { dblClickToZoom: true, clickToZoom: false },
    gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
    animationTime: STILL.matches ? 0 : 0.35,
    springStiffness: 9,
    zoomPerScroll: 1.25,
    visibilityRatio: 0.2,
    minZoomImageRatio: 0.7,
    maxZoomPixelRatio: 8,
    maxImageCacheCount: 400,
    imageLoaderLimit: 6,
    tileRetryMax: 1,
    tileRetryDelay: 1500,
    timeout: 20_000,
    placeholderFillStyle: "#f4f4f2",
    autoResize: true,
    preserveImageSizeOnResize: true, // so that a place keeps its magnification, and its link
  };
}
