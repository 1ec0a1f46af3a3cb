// The bar above the slide: other slides, zoom, magnifications, and what the page can do.

import type { Slide } from "../api";
import { h } from "../dom";
import { icon, type IconName } from "../shell/icons";
import { slideHash } from "./link";
import { shortly } from "./summary";
import { magnification, magnificationText, trim, zoomFor } from "./units";

export const MAGNIFICATIONS = [1.25, 2.5, 5, 10, 20, 40];

export interface Commands {
  zoomBy(factor: number): void;
  zoomTo(zoom: number): void;
  home(): void;
  turn(degrees: number): void;
  compare(): void;
  copyLink(): void;
  fullScreen(): void;
  help(): void;
  panel(): void;
}

export class Toolbar {
  readonly compare: HTMLButtonElement;
  readonly panel: HTMLButtonElement;
  readonly element: HTMLElement;
  private readonly presets: { zoom: number; button: HTMLButtonElement }[];
  private readonly seen = h("span", { class: "slide-seen number", "data-testid": "magnification" });

  constructor(
    private readonly slide: Slide,
    private readonly commands: Commands,
  ) {
    this.compare = tool("compare", "Two heatmaps side by side (c)", commands.compare);
    this.panel = tool("panel", "Side panel (b)", commands.panel);
    this.presets = (slide.mpp ? MAGNIFICATIONS.slice(2) : []).map((times) => {
      const zoom = zoomFor(times, slide.mpp!);
      const title = `${times}×: ${trim(10 / times)} µm for each pixel of the screen`;
      return {
        zoom,
        button: h(
          "button",
          { type: "button", class: "small", title, onclick: () => commands.zoomTo(zoom) },
          `${times}×`,
        ),
      };
    });
    this.element = h(
      "div",
      { class: "slide-bar", role: "toolbar", "aria-label": "Slide" },
      this.around(),
      this.view(),
      this.seen,
      this.more(),
    );
  }

  /** `zoom`: screen pixels for each level-0 pixel. */
  show(zoom: number): void {
    const { mpp } = this.slide;
    this.seen.textContent = mpp
      ? `${magnificationText(magnification(mpp, zoom))} · ${trim(mpp / zoom)} µm/px`
      : `${trim(zoom)} screen px per px`;
    for (const preset of this.presets)
      preset.button.setAttribute("aria-pressed", String(Math.abs(zoom / preset.zoom - 1) < 0.01));
  }

  private around(): HTMLElement {
    const { slide } = this;
    const way = (id: string | null, name: IconName, label: string) =>
      id === null
        ? h("button", { class: "icon", disabled: true, "aria-label": label }, icon(name))
        : h(
            "a",
            { class: "button icon", href: slideHash(id), "aria-label": `${label}: ${id}`, title: `${label}: ${id}` },
            icon(name),
          );
    return h(
      "div",
      { class: "slide-bar-part slide-bar-name" },
      h(
        "span",
        { class: "button-group" },
        way(slide.previous, "left", "Previous slide ([)"),
        way(slide.next, "right", "Next slide (])"),
      ),
      h("h1", { class: "ellipsis", title: slide.id }, slide.id),
      shortly(slide),
    );
  }

  private view(): HTMLElement {
    const { commands } = this;
    return h(
      "div",
      { class: "slide-bar-part" },
      h(
        "span",
        { class: "button-group" },
        tool("plus", "Zoom in (+)", () => commands.zoomBy(1.6)),
        tool("minus", "Zoom out (-)", () => commands.zoomBy(1 / 1.6)),
        tool("home", "Whole slide (0)", commands.home),
      ),
      h(
        "span",
        { class: "button-group slide-presets", role: "group", "aria-label": "Magnification" },
        ...this.presets.map(({ button }) => button),
        h(
          "button",
          {
            type: "button",
            class: "small",
            title: "One pixel of the slide on one pixel of the screen",
            onclick: () => commands.zoomTo(1 / window.devicePixelRatio),
          },
          "1:1",
        ),
      ),
      tool("rotate", "Turn by 90° (v)", () => commands.turn(90)),
    );
  }

  private more(): HTMLElement {
    const { commands } = this;
    return h(
      "div",
      { class: "slide-bar-part slide-bar-end" },
      this.compare,
      tool("link", "Copy a link to this place (y)", commands.copyLink),
      tool("fullscreen", "Full screen (f)", commands.fullScreen),
      tool("help", "Keys (?)", commands.help),
      this.panel,
    );
  }
}

function tool(name: IconName, label: string, run: () => void): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: "icon", "aria-label": label, title: label, onclick: () => run() },
    icon(name),
  );
}
