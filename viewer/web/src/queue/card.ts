// One suggestion as a card: the place with its outline, what the model takes it for, and the answers to it.

import { patchUrl, type Geometry, type Region, type Session } from "../api";
import { h } from "../dom";
import { colourOf, css } from "../review/colours";
import { icon } from "../shell/icons";
import { boundsOf, outlineOf } from "./outline";

const SHOWN = 1.5; // the picture is this much wider than the region, so that its surroundings are seen
const LEAST_PX = 256; // level-0 pixels: fewer are a blur

export interface Suggestion {
  slide_id: string;
  region: Region;
}

/** What has been said of it here: words, and whether the server has it. */
export interface Answer {
  words: string;
  event: string;
  state: "sending" | "saved" | "refused";
  why: string;
}

export interface CardHooks {
  accept(): void;
  reject(): void;
  relabel(label: string): void;
  /** A class that no model knows. */
  otherLabel(): void;
  undo(): void;
}

export class SuggestionCard {
  readonly element: HTMLElement;
  readonly link: HTMLAnchorElement;
  #answers: HTMLElement;
  #said = h("p", { class: "said", role: "status" });

  constructor(readonly suggestion: Suggestion, readonly session: Session, private readonly hooks: CardHooks) {
    const { slide_id, region } = suggestion;
    const view = frameOf(region.geometry);
    this.link = h("a", { class: "slide-link ellipsis", href: placeAddress(slide_id, view), title: `Open ${slide_id} at this place` }, slide_id);
    this.#answers = this.#buttons();
    this.element = h(
      "article",
      { class: "card suggestion", tabindex: -1, "aria-label": `${region.label ?? "Region"} on ${slide_id}`, "data-id": region.id },
      h("a", { class: "suggestion-picture", href: placeAddress(slide_id, view), tabindex: -1, "aria-hidden": true }, picture(suggestion, session, view)),
      h("div", { class: "spread" }, this.link, this.#label()),
      h("p", { class: "reason small muted", title: region.reason }, region.reason || "No reason was kept."),
      this.#answers,
      this.#said,
    );
    this.draw(null);
  }

  /** Show what was answered, or with null the buttons to answer with. */
  draw(answer: Answer | null): void {
    const open = answer === null || answer.state === "refused";
    this.#answers.hidden = !open;
    this.element.classList.toggle("answered", !open);
    this.#said.replaceChildren();
    if (answer === null) return;
    const undo = h("button", { class: "quiet small", type: "button", onclick: () => this.hooks.undo() }, icon("undo"), "Undo");
    if (answer.state === "refused") this.#said.append(h("span", { class: "notice error" }, `Not saved: ${answer.why}`));
    else {
      const saved = answer.state === "saved";
      this.#said.append(h("span", { class: `badge ${saved ? "ok" : "warn"}` }, saved && icon("check"), saved ? answer.words : `${answer.words} – saving`), undo);
    }
  }

  #label(): HTMLElement {
    const { label } = this.suggestion.region;
    const dot = h("span", { class: "dot" });
    dot.style.color = css(colourOf(label, this.session.classes));
    return h("span", { class: "badge", title: "What the model takes it for" }, dot, label ?? "no class");
  }

  #buttons(): HTMLElement {
    const { label } = this.suggestion.region;
    const accept = h(
      "button",
      { class: "small accept", type: "button", title: `Yes, this is ${label ?? "it"} (a)`, onclick: () => this.hooks.accept() },
      icon("check"), "Accept",
    );
    const reject = h("button", { class: "small", type: "button", title: "No, leave it out (x)", onclick: () => this.hooks.reject() }, icon("close"), "Reject");
    const classes = this.session.classes.filter((name) => name !== label);
    const relabel = h(
      "select",
      { class: "relabel", "aria-label": "It is something else" },
      h("option", { value: "" }, "Relabel…"),
      ...classes.map((name, index) => h("option", { value: `=${name}` }, `${index + 1}  ${name}`)),
      h("option", { value: "+" }, "Another class…"),
    );
    relabel.addEventListener("change", () => {
      const chosen = relabel.value;
      relabel.value = "";
      if (chosen === "+") this.hooks.otherLabel();
      else if (chosen) this.hooks.relabel(chosen.slice(1));
    });
    return h("div", { class: "answers" }, label === null ? null : accept, reject, relabel);
  }
}

interface Frame {
  x: number;
  y: number;
  side: number;
}

/** The square around a region that its picture shows, in level-0 pixels. */
function frameOf(geometry: Geometry): Frame {
  const [left, top, right, bottom] = boundsOf(geometry);
  const side = Math.ceil(Math.min(65_536, Math.max(LEAST_PX, SHOWN * Math.max(right - left, bottom - top))));
  return { x: Math.round((left + right - side) / 2), y: Math.round((top + bottom - side) / 2), side };
}

/** The slide page with the place in its middle. */
function placeAddress(id: string, { x, y, side }: Frame): string {
  const zoom = Math.min(1, 600 / side);
  const place = new URLSearchParams({ x: String(x + side / 2), y: String(y + side / 2), zoom: zoom.toPrecision(4) });
  return `#/slide/${encodeURIComponent(id)}?${place}`;
}

function picture({ slide_id, region }: Suggestion, session: Session, { x, y, side }: Frame): HTMLElement {
  const px = devicePixelRatio > 1 || innerWidth > 2200 ? 768 : 384;
  const image = h("img", { src: patchUrl(slide_id, x, y, side, Math.min(px, side)), alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(h("span", { class: "no-picture muted small" }, "No picture of this place")));
  const outline = outlineOf(region.geometry, x, y, side);
  outline.style.color = css(colourOf(region.label, session.classes));
  return h("span", {}, image, outline);
}
