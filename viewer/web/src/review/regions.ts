// The list of regions: suggestions that wait first, then what people drew or answered.

import type { Region, Slide, SlideReview } from "../api";
import { h } from "../dom";
import { icon, type IconName } from "../shell/icons";
import { classChooser, dot } from "./classes";
import { areaText } from "./geometry";
import type { Tool } from "./drawing";
import { byWhom, statusBadge } from "./verdict";

const SHOWN_AT_FIRST = 100;

/** What the list may ask for. */
export interface RegionActions {
  select(id: string | null): void;
  goTo(id: string): void;
  accept(id: string): void;
  reject(id: string): void;
  relabel(id: string, label: string): void;
  edit(id: string): void;
  remove(id: string): void;
  use(tool: Tool | null): void;
}

export interface RegionView {
  slide: Slide;
  state: SlideReview;
  classes: readonly string[];
  selected: string | null;
  editing: string | null;
  tool: Tool | null;
  /** Whether a region has an outline that can be edited. */
  canEdit(id: string): boolean;
}

export function orderedRegions(regions: readonly Region[]): Region[] {
  const rank = ({ status, origin }: Region) => (status === "open" ? 0 : origin === "suggested" ? 2 : 1);
  return [...regions].sort((one, other) => rank(one) - rank(other));
}

export class RegionList {
  private limit = SHOWN_AT_FIRST;

  constructor(private readonly actions: RegionActions, private readonly again: () => void) {}

  draw(view: RegionView): HTMLElement {
    const regions = orderedRegions(view.state.regions);
    const place = regions.findIndex(({ id }) => id === view.selected);
    if (place >= this.limit) this.limit = place + SHOWN_AT_FIRST;
    const waiting = regions.filter(({ status }) => status === "open").length;
    const count = regions.length === 0 ? "" : `${regions.length}${waiting ? `, ${waiting} to answer` : ""}`;
    return h(
      "section",
      { class: "review-part", "aria-labelledby": "review-regions" },
      h("div", { class: "spread" }, h("h3", { id: "review-regions" }, "Regions"), h("span", { class: "small muted", "data-testid": "region-count" }, count)),
      this.tools(view),
      regions.length === 0 && h("p", { class: "small muted" }, "None yet. Draw one with r (rectangle) or p (polygon)."),
      h("ul", { class: "review-regions" }, ...regions.slice(0, this.limit).map((region) => this.item(region, view))),
      regions.length > this.limit &&
        h("button", { type: "button", class: "small", "data-focus": "regions/more", onclick: () => ((this.limit += 4 * SHOWN_AT_FIRST), this.again()) }, `Show more (${regions.length - this.limit} left)`),
    );
  }

  private tools({ tool, editing }: RegionView): HTMLElement {
    const button = (name: Tool, key: string, text: string) =>
      h(
        "button",
        { type: "button", "aria-pressed": String(tool === name), "data-focus": `tool/${name}`, onclick: () => this.actions.use(tool === name ? null : name) },
        icon(name), text, h("kbd", { "aria-hidden": "true" }, key),
      );
    const hints: Record<Tool, string> = {
      rectangle: "Drag from corner to corner. Esc puts the tool down.",
      polygon: "Click each corner; click the first one, or double-click, to close. Drag moves the slide. Esc puts the tool down.",
    };
    const hint = tool ? hints[tool] : editing ? "Drag the handles, or the region. Click between two corners for a new one. Esc ends." : "";
    return h("div", { class: "stack review-tools" }, h("div", { class: "row" }, button("rectangle", "r", "Rectangle"), button("polygon", "p", "Polygon")), hint !== "" && h("p", { class: "small notice" }, hint));
  }

  private item(region: Region, view: RegionView): HTMLElement {
    const chosen = region.id === view.selected;
    const name = region.label ?? "no class";
    const head = h(
      "button",
      {
        type: "button", class: "quiet review-region-head", "aria-expanded": String(chosen), "data-focus": `region/${region.id}`,
        onclick: () => (chosen ? this.actions.select(null) : this.actions.goTo(region.id)),
      },
      dot(region.label, view.classes),
      h("span", { class: "ellipsis grow" }, name),
      h("span", { class: "small muted number" }, areaText(region.geometry, view.slide.mpp)),
      badge(region),
    );
    return h(
      "li",
      { class: chosen ? "chosen" : null, "data-testid": "region", "data-id": region.id, "data-status": region.status, "data-origin": region.origin },
      head,
      region.reason !== "" && (chosen || region.status === "open") && h("p", { class: "small muted" }, region.reason),
      chosen && this.details(region, view),
    );
  }

  private details(region: Region, view: RegionView): HTMLElement {
    const { id } = region;
    const button = (picture: IconName, text: string, key: string | null, run: () => void, more: { held?: boolean; off?: string; kind?: string } = {}) =>
      h(
        "button",
        {
          type: "button", class: `small ${more.kind ?? ""}`, "aria-pressed": more.held === undefined ? null : String(more.held),
          disabled: more.off !== undefined, title: more.off ?? null, "data-focus": `${id}/${text}`, onclick: run,
        },
        icon(picture), text, key && h("kbd", { "aria-hidden": "true" }, key),
      );
    const editing = view.editing === id;
    const noClass = region.label === null ? { off: "Give it a class instead" } : {};
    const noOutline = view.canEdit(id) ? {} : { off: "It has no outline that can be edited" };
    return h(
      "div",
      { class: "stack review-region" },
      region.note !== "" && h("p", { class: "small" }, region.note),
      region.who !== null && h("p", { class: "small muted" }, byWhom(region.who, region.when)),
      h(
        "div",
        { class: "row" },
        button("check", "Accept", "a", () => this.actions.accept(id), { held: region.status === "accepted", ...noClass }),
        button("close", "Reject", "x", () => this.actions.reject(id), { held: region.status === "rejected" }),
      ),
      classChooser("the region", view.classes, region.label, (label) => this.actions.relabel(id, label)),
      h(
        "div",
        { class: "row" },
        button("place", "Go to", null, () => this.actions.goTo(id)),
        button("pencil", editing ? "Done" : "Edit outline", "m", () => this.actions.edit(id), { held: editing, ...noOutline }),
        button("trash", "Delete", "Del", () => this.actions.remove(id), { kind: "danger" }),
      ),
    );
  }
}

/** Of what a person drew and nobody rejected, there is nothing to accept or relabel. */
function badge({ status, origin }: Region): HTMLElement {
  if (status === "open") return h("span", { class: "badge info" }, "suggested");
  return origin === "drawn" && status !== "rejected" ? h("span", { class: "badge" }, "drawn") : statusBadge(status);
}
