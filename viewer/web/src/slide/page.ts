// The slide page: what stands where, and how its parts hear of each other.

import * as api from "../api";
import type { Session, Slide } from "../api";
import { h } from "../dom";
import { mountReview } from "../review/panel";
import { announce } from "../shell/announce";
import { bindKeys, showHelp } from "../shell/keys";
import { wordsOf } from "../shell/states";
import { synchronise } from "./compare";
import type { Mounted } from "./context";
import { markControls, scoreControls } from "./controls";
import { Hover } from "./hover";
import { keep, readKept } from "./kept";
import { slideKeys } from "./keys";
import { copyLink, showPlace, slideHash } from "./link";
import { Marks, type MarkName } from "./marks";
import type { View } from "./overlay";
import { Panel } from "./panel";
import { openPatch } from "./patch";
import { besides, choicesOf, ScoreLayer, TileStore } from "./scores";
import { Strip } from "./strip";
import { summary } from "./summary";
import { Toolbar } from "./toolbar";
import { Trouble } from "./trouble";
import { count, trim } from "./units";
import { Pane, type Place } from "./viewer";

const FIRST_PICTURE_MS = 1500;

interface Side {
  pane: Pane;
  hover: Hover;
}

export class SlidePage {
  readonly main: Pane;
  readonly strip: Strip;
  readonly marks = new Marks();
  private readonly store: TileStore;
  private readonly kept = readKept();
  private readonly panes = h("div", { class: "slide-panes" });
  private readonly readout = h("span", { class: "slide-position number", "data-testid": "position" });
  private readonly layers = h("div");
  private readonly toolbar: Toolbar;
  private readonly left: Side;
  private right: (Side & { stop(): void; controls: HTMLElement }) | null = null;
  private readonly marksPanel: { element: HTMLElement; refresh(): void };
  private readonly trouble: Trouble;
  private readonly element: HTMLElement;
  private readonly unbind: () => void;
  private readonly claims: ((x: number, y: number) => boolean)[] = [];
  private readonly review: Mounted;

  constructor(
    root: HTMLElement,
    readonly slide: Slide,
    session: Session,
    place: Place | null,
  ) {
    this.store = new TileStore(slide);
    this.toolbar = new Toolbar(slide, this.commands());
    this.marksPanel = markControls(slide, this.marks, () => this.redraw());
    const [notices, foot, reviewTab] = [
      h("div", { class: "slide-notices" }),
      h("div", { class: "slide-foot" }),
      h("div"),
    ];
    const panel = new Panel([
      { name: "Layers", body: this.layers },
      { name: "Review", body: reviewTab },
      { name: "Slide", body: summary(slide) },
    ]);
    const middle = h("div", { class: "slide-middle" }, notices, this.panes, foot);
    this.element = h(
      "div",
      { class: "slide-page" },
      this.toolbar.element,
      h("div", { class: "slide-body" }, middle, panel.element),
    );
    if (choicesOf(slide).length) foot.classList.add("slide-foot-strip"); // room from the start: the view stays as it is
    root.append(this.element);
    this.left = this.side("Slide");
    this.main = this.left.pane;
    this.trouble = new Trouble(this.main.viewer, slide.width, () => this.redraw());
    this.strip = new Strip(
      slide,
      this.main.scores,
      (x, y, side) => this.jump(x, y, side, side),
      this.kept.k,
      (k) => keep({ k }),
    );
    notices.append(...this.notices());
    foot.append(this.strip.element, h("div", { class: "slide-status" }, this.readout));
    this.layers.append(scoreControls(slide, this.main.scores, "Heatmap"), this.marksPanel.element);
    this.panel(this.kept.panel);
    this.review = this.mountReview(reviewTab, session);
    this.unbind = bindKeys("Slide", slideKeys(this));
    void this.open(place);
  }

  destroy(): void {
    this.unbind();
    this.review.destroy();
    if (this.right) this.compare();
    this.left.hover.destroy();
    this.main.destroy();
    this.element.remove();
  }

  /** Centres the view on a rectangle in level-0 pixels. */
  jump(x: number, y: number, width: number, height: number): void {
    this.main.fit(x, y, width, height);
  }

  redraw(): void {
    for (const side of this.sides()) side.pane.overlay.invalidate();
    this.marksPanel.refresh();
  }

  toggle(name: MarkName): void {
    this.marks.toggles[name].on = !this.marks.toggles[name].on;
    this.redraw();
  }

  toggleScores(): void {
    for (const { pane } of this.sides()) {
      pane.scores.on = !pane.scores.on;
      pane.scores.changed();
    }
  }

  goToSlide(id: string | null): void {
    if (id === null) announce("There is no further slide this way.");
    else location.hash = slideHash(id);
  }

  /** The patch under the pointer of the main view; without one, in the middle of the view. */
  openPatchHere(): void {
    const tile = this.left.hover.tile;
    const { loaded } = this.main.scores;
    const { x, y } = this.main.place();
    const at =
      tile >= 0 && loaded ? { x: loaded.tiles.xy[2 * tile]! + 1, y: loaded.tiles.xy[2 * tile + 1]! + 1 } : { x, y };
    this.showPatch(this.main, at);
  }

  compare(): void {
    if (!choicesOf(this.slide).length) return announce("There are no scores of this slide to compare.");
    if (this.right) {
      this.right.stop();
      this.right.hover.destroy();
      this.right.pane.destroy();
      this.right.controls.remove();
      this.right = null;
    } else {
      const side = this.side("Second view");
      const controls = scoreControls(this.slide, side.pane.scores, "Heatmap on the right");
      this.marksPanel.element.before(controls);
      const stop = synchronise(this.main, side.pane);
      this.right = { ...side, stop, controls };
      const other = besides(this.slide, this.main.scores);
      void side.pane.open(this.main.place()).then(() => other && side.pane.scores.choose(other));
    }
    this.panes.classList.toggle("slide-two", this.right !== null);
    this.toolbar.compare.setAttribute("aria-pressed", String(this.right !== null));
  }

  panel(open = this.element.classList.contains("slide-wide")): void {
    this.element.classList.toggle("slide-wide", !open);
    this.toolbar.panel.setAttribute("aria-pressed", String(open));
    keep({ panel: open });
  }

  copyLink(): void {
    const place = this.main.place();
    showPlace(this.slide.id, place);
    void copyLink(this.slide.id, place).then((done) =>
      announce(
        done
          ? "The link to this place was copied. It opens while this server runs."
          : "The browser did not allow copying. The address bar holds the link.",
      ),
    );
  }

  fullScreen(): void {
    const change = document.fullscreenElement ? document.exitFullscreen() : this.element.requestFullscreen();
    change.catch(() => announce("The browser did not allow full screen.", "error"));
  }

  private commands() {
    return {
      zoomBy: (factor: number) => this.main.zoomBy(factor),
      zoomTo: (zoom: number) => this.main.zoomTo(zoom),
      home: () => this.main.home(),
      turn: (degrees: number) => this.main.turn(degrees),
      compare: () => this.compare(),
      copyLink: () => this.copyLink(),
      fullScreen: () => this.fullScreen(),
      help: showHelp,
      panel: () => this.panel(),
    };
  }

  private sides(): Side[] {
    return this.right ? [this.left, this.right] : [this.left];
  }

  /** A view with its own heatmap. */
  private side(name: string): Side {
    const scores = new ScoreLayer(this.store);
    [scores.map, scores.opacity] = [this.kept.map, this.kept.opacity];
    const pane: Pane = new Pane(this.slide, scores, name, this.panes, (context, view) =>
      this.draw(pane, hover, context, view),
    );
    const hover: Hover = new Hover(pane, (at) => this.point(pane, at));
    scores.onChange(() => {
      pane.overlay.invalidate();
      pane.showLegend();
      pane.stage.dataset.scores = scores.busy
        ? "loading"
        : scores.problem !== null
          ? "failed"
          : scores.column
            ? scores.name
            : "";
      keep({ map: scores.map, opacity: scores.opacity });
    });
    pane.viewer.addHandler("canvas-click", (event) => {
      if (!event.quick) return; // a drag; while mouse navigation is off, none of this is heard
      const at = pane.toSlide(event.position.x, event.position.y);
      if (!this.claims.some((claims) => claims(at.x, at.y))) this.showPatch(pane, at);
    });
    return { pane, hover };
  }

  private draw(pane: Pane, hover: Hover, context: CanvasRenderingContext2D, view: View): void {
    const { scores } = pane;
    if (pane === this.main) this.trouble.draw(context, view);
    scores.draw(context, view);
    this.marks.draw(context, view, scores.loaded?.failed ?? null);
    if (hover.tile < 0 || !scores.loaded) return;
    const { xy, span_px: span } = scores.loaded.tiles;
    context.strokeStyle = "#111827";
    context.lineWidth = (1.5 * window.devicePixelRatio) / view.scale;
    context.strokeRect(xy[2 * hover.tile]! - view.left, xy[2 * hover.tile + 1]! - view.top, span, span);
  }

  private showPatch(pane: Pane, at: { x: number; y: number }): void {
    const { width, height } = this.slide;
    if (at.x < 0 || at.y < 0 || at.x >= width || at.y >= height) return;
    openPatch(this.slide, pane.scores, at, (x, y, side) => this.jump(x, y, side, side));
  }

  /** The picture first, then the numbers over it. */
  private async open(place: Place | null): Promise<void> {
    const { viewer } = this.main;
    viewer.addHandler("animation", () => this.toolbar.show(this.main.zoom()));
    viewer.addHandler("animation-finish", () => showPlace(this.slide.id, this.main.place()));
    const pictured = new Promise<void>((done) => {
      viewer.addOnceHandler("tile-loaded", () => done());
      viewer.addOnceHandler("tile-load-failed", () => done());
      window.setTimeout(done, FIRST_PICTURE_MS);
    });
    await this.main.open(place);
    this.toolbar.show(this.main.zoom());
    await pictured;
    this.main.stage.dataset.ready = "true";
    const [first] = choicesOf(this.slide);
    await Promise.all([first && this.main.scores.choose(first), this.loadMarks()]);
  }

  private async loadMarks(): Promise<void> {
    const { id, tissue, annotations, grid } = this.slide;
    const tried = await Promise.allSettled([
      tissue && api.tissue(id).then((found) => this.marks.setTissue(found)),
      annotations && api.annotations(id).then((found) => this.marks.setAnnotations(found)),
      grid && this.store.load(null, "grid").then((loaded) => this.marks.setGrid(loaded)),
    ]);
    for (const result of tried)
      if (result.status === "rejected")
        announce(wordsOf(result.reason).detail || wordsOf(result.reason).title, "error");
    this.redraw();
  }

  /** Says where the pointer is; true while the review draws: it then claims even what is off the slide. */
  private point(pane: Pane, at: { x: number; y: number } | null): boolean {
    const { mpp } = this.slide;
    const um = at && mpp ? ` · ${trim((at.x * mpp) / 1000)}, ${trim((at.y * mpp) / 1000)} mm` : "";
    this.readout.textContent = at ? `x ${count(Math.floor(at.x))}, y ${count(Math.floor(at.y))} px${um}` : "";
    return at !== null && pane === this.main && this.claims.some((claims) => claims(-1, -1));
  }

  private notices(): HTMLElement[] {
    const { pixels } = this.slide;
    const text = `The slide's file cannot be read, so the picture is coarse: ${pixels}`;
    const missing = pixels ? [h("p", { class: "notice", role: "alert", "data-testid": "no-pixels" }, text)] : [];
    return [...missing, this.trouble.element];
  }

  private mountReview(panel: HTMLElement, session: Session): Mounted {
    return mountReview({
      slide: this.slide,
      session,
      viewer: this.main.viewer,
      panel,
      jump: (x, y, width, height) => this.jump(x, y, width, height),
      announce,
      claimClicks: (claims) => void this.claims.push(claims),
    });
  }
}
