// The review panel beside a slide, and the drawing on it.

import type { Region } from "../api";
import { h } from "../dom";
import { bindKeys, type Binding } from "../shell/keys";
import { REVIEWER_CHANGED } from "../shell/reviewer";
import { failed, loading } from "../shell/states";
import type { Mounted, SlideContext } from "../slide/context";
import "../styles/review.css";
import { classesOf, WITH_KEY } from "./classes";
import { Drawing, type Tool } from "./drawing";
import { boxOf } from "./geometry";
import { ReviewModel } from "./model";
import { askClass, type Popover } from "./popover";
import { orderedRegions, RegionList, type RegionActions } from "./regions";
import { CommentBox, comments, exports, history, unsaved } from "./talk";
import { verdict } from "./verdict";

const POINT_PX = 256; // what is shown around a point, in level-0 pixels

/** The review of a slide: its class, its regions, comments and history; and the drawing on the slide. */
export function mountReview(context: SlideContext): Mounted {
  const panel = new ReviewPanel(context);
  return { destroy: () => panel.destroy() };
}

class ReviewPanel implements RegionActions {
  private readonly model: ReviewModel;
  private readonly drawing: Drawing;
  private readonly list = new RegionList(this, () => this.draw());
  private readonly comment: CommentBox;
  private readonly top = h("div", { class: "review-stack" });
  private readonly bottom = h("div", { class: "review-stack" });
  private readonly said = h("div");
  private readonly saving = h("div", { "aria-live": "polite" });
  private selected: string | null = null;
  private popover: Popover | null = null;
  private waiting = 0;
  private readonly unbind: () => void;

  constructor(private readonly context: SlideContext) {
    const { slide, session, viewer, panel, announce } = context;
    this.model = new ReviewModel(slide.id, session, announce);
    this.comment = new CommentBox(this.model);
    this.drawing = new Drawing(viewer, slide, () => this.classes(), {
      drawn: (id, geometry) => void this.add(id, geometry),
      edited: (id, geometry) => void this.model.act({ action: "region-edit", region: { id, geometry } }),
      selected: (id) => this.selectOnly(id),
      changed: () => this.drawSoon(),
    });
    context.claimClicks(this.drawing.claims);
    const talk = h("section", { class: "review-part", "aria-labelledby": "review-talk" }, h("h3", { id: "review-talk" }, "Comments"), this.said, this.comment.element);
    panel.append(h("div", { class: "review", "data-testid": "review" }, this.saving, this.top, session.review && talk, this.bottom));
    this.unbind = bindKeys("Review", this.keys());
    window.addEventListener(REVIEWER_CHANGED, this.drawSoon);
    viewer.addOnceHandler("open", () => this.drawing.show(this.model.shown?.regions ?? []));
    this.model.onChange(() => this.changed());
    this.draw();
  }

  destroy(): void {
    this.popover?.close();
    this.unbind();
    cancelAnimationFrame(this.waiting);
    window.removeEventListener(REVIEWER_CHANGED, this.drawSoon);
    this.drawing.destroy();
    this.model.destroy();
    this.context.panel.replaceChildren();
  }

  // What the list and the keys ask for

  select(id: string | null): void {
    this.selectOnly(id);
    this.drawing.select(id);
  }

  goTo(id: string): void {
    const box = boxOf(this.model.region(id)?.geometry ?? { type: "", coordinates: [] });
    this.select(id);
    if (!box) return;
    const [width, height] = [Math.max(POINT_PX, box.maxX - box.minX), Math.max(POINT_PX, box.maxY - box.minY)];
    this.context.jump((box.minX + box.maxX - width) / 2, (box.minY + box.maxY - height) / 2, width, height);
  }

  accept(id: string): void {
    if (this.model.region(id)?.label == null) return this.context.announce("The region has no class: give it one (1 to 9).");
    void this.answer(id, () => this.model.act({ action: "region-accept", id }), "Region accepted");
  }

  reject(id: string): void {
    void this.answer(id, () => this.model.act({ action: "region-reject", id }), "Region rejected");
  }

  relabel(id: string, label: string): void {
    void this.answer(id, () => this.model.act({ action: "region-relabel", id, label }), `Region: ${label}`);
  }

  edit(id: string): void {
    if (this.drawing.editing === id) this.drawing.stopEditing();
    else this.drawing.edit(id);
  }

  remove(id: string): void {
    if (!this.model.region(id)) return;
    if (this.selected === id) this.select(null);
    void this.model.act({ action: "region-delete", id }).then((done) => done && this.context.announce("Region deleted. u takes it back."));
  }

  use(tool: Tool | null): void {
    if (tool !== null && !this.context.session.review) return this.context.announce("Reviews are not kept here.", "error");
    this.drawing.use(tool);
    if (tool !== null) this.context.announce(tool === "rectangle" ? "Drag a rectangle; Esc ends" : "Click the corners of a polygon; Esc ends");
  }

  // Inside

  /** Drawn: kept at once without a class, then its class is asked for. */
  private async add(id: string, geometry: Region["geometry"]): Promise<void> {
    this.selectOnly(id);
    const done = await this.model.act({ action: "region-add", region: { id, geometry, label: null, note: "" } });
    if (!done) return this.drawing.show(this.model.shown?.regions ?? []);
    const box = boxOf(geometry);
    if (!box) return;
    this.drawing.select(id);
    this.popover?.close();
    this.popover = askClass(this.context.viewer, this.onScreen(box), this.classes(), (label) => this.relabel(id, label));
  }

  private onScreen({ minX, minY, maxX, maxY }: NonNullable<ReturnType<typeof boxOf>>): DOMRect {
    const { viewport, world } = this.context.viewer;
    const across = world.getContentFactor();
    const ends = [[minX, minY], [maxX, minY], [minX, maxY], [maxX, maxY]].map(([x = 0, y = 0]) => {
      const point = viewport.getCenter(true).clone();
      [point.x, point.y] = [x / across, y / across];
      return viewport.pixelFromPoint(point, true);
    });
    const [xs, ys] = [ends.map(({ x }) => x), ends.map(({ y }) => y)];
    return new DOMRect(Math.min(...xs), Math.min(...ys), Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys));
  }

  /** After the answer to a suggestion, the next one that waits is chosen. */
  private async answer(id: string, act: () => Promise<boolean>, text: string): Promise<void> {
    const waited = this.model.region(id)?.status === "open";
    if (!(await act())) return;
    const next = waited ? orderedRegions(this.model.shown?.regions ?? []).find(({ status }) => status === "open") : undefined;
    this.context.announce(next ? `${text}. Next suggestion` : text);
    if (next) this.goTo(next.id);
  }

  private selectOnly(id: string | null): void {
    this.selected = id;
    this.drawSoon();
  }

  private classes(): string[] {
    const { shown } = this.model;
    return classesOf(this.context.session.classes, [shown?.label ?? null, ...(shown?.regions.map(({ label }) => label) ?? [])]);
  }

  private changed(): void {
    if (this.selected !== null && this.model.shown && !this.model.region(this.selected)) this.selected = null;
    if (this.context.viewer.isOpen()) this.drawing.show(this.model.shown?.regions ?? []);
    this.drawSoon();
  }

  private readonly drawSoon = (): void => {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.draw());
  };

  private draw(): void {
    const { slide, session } = this.context;
    const { shown, failed: why } = this.model;
    const focus = document.activeElement instanceof HTMLElement && this.context.panel.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
    this.saving.replaceChildren(unsaved(this.model));
    if (!session.review) {
      this.top.replaceChildren(h("p", { class: "notice" }, "Reviews are not kept here: there is no run folder, or it cannot be written."));
      return;
    }
    if (!shown) {
      this.top.replaceChildren(why === null ? loading("Loading the review", 3) : failed(new Error(why), () => void this.model.poll()));
      return;
    }
    const open = this.bottom.querySelector("details")?.open ?? false;
    const { editing, tool } = this.drawing;
    const view = { slide, state: shown, classes: this.classes(), selected: this.selected, editing, tool, canEdit: (id: string) => this.drawing.canEdit(id) };
    this.top.replaceChildren(
      ...(why === null ? [] : [h("p", { class: "notice" }, `What other people do is not seen now. ${why}`)]),
      verdict(slide, shown, this.classes(), this.model),
      this.list.draw(view),
    );
    this.said.replaceChildren(comments(shown));
    this.bottom.replaceChildren(history(shown, this.model, open), exports(slide.id));
    if (focus) this.context.panel.querySelector<HTMLElement>(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }

  private keys(): Binding[] {
    const chosen = (run: (id: string) => void) => () => (this.selected === null ? false : run(this.selected));
    const label = (event: KeyboardEvent) => {
      const name = this.classes()[Number(event.key) - 1];
      if (this.selected === null || name === undefined) return false;
      this.relabel(this.selected, name);
    };
    return [
      { keys: ["a"], what: "Accept the chosen region, or the slide", run: () => this.say("accept") },
      { keys: ["x"], what: "Reject the chosen region, or the slide", run: () => this.say("reject") },
      { keys: Array.from({ length: WITH_KEY }, (_, place) => String(place + 1)), what: "Class of the chosen region", run: label },
      { keys: ["r"], what: "Draw a rectangle", run: () => this.use("rectangle") },
      { keys: ["p"], what: "Draw a polygon", run: () => this.use("polygon") },
      { keys: ["m"], what: "Edit the chosen region's outline, or end it", run: chosen((id) => this.edit(id)) },
      { keys: ["Delete", "Backspace"], what: "Delete the chosen region", run: chosen((id) => this.remove(id)) },
      { keys: ["u", "Ctrl+z"], what: "Take back what I did last on this slide", run: () => void this.model.undo() },
      { keys: ["Escape"], what: "Put the tool down, end editing, choose nothing", run: () => this.escape() },
    ];
  }

  private say(action: "accept" | "reject"): void {
    if (this.selected !== null) return action === "accept" ? this.accept(this.selected) : this.reject(this.selected);
    void this.model.act({ action }).then((done) => done && this.context.announce(`Slide ${action}ed`));
  }

  private escape(): boolean {
    if (this.drawing.tool !== null) this.use(null);
    else if (this.drawing.editing !== null) this.drawing.stopEditing();
    else if (this.selected !== null) this.select(null);
    else return false;
    return true;
  }
}
