// Comments, what was done by whom, what is not saved yet, and the files to take away.

import type { SlideReview } from "../api";
import { h } from "../dom";
import { icon } from "../shell/icons";
import { actionText, type ReviewModel } from "./model";
import { whenText } from "./verdict";

const COMMENT_LIMIT = 4_000;
const HISTORY_SHOWN = 50;

/** The comment box stands as long as the page: what is typed is not lost when the rest is drawn again, nor on reload. */
export class CommentBox {
  readonly element: HTMLFormElement;
  private readonly field: HTMLTextAreaElement;
  private readonly key: string;

  constructor(private readonly model: ReviewModel) {
    this.key = `slidestream.draft/${encodeURIComponent(model.session.title)}/${model.slide}`;
    this.field = h("textarea", { id: "review-comment", rows: 2, maxlength: COMMENT_LIMIT, placeholder: "Comment on this slide", oninput: () => this.keep(), onkeydown: (event) => this.onKey(event) });
    this.field.value = this.kept();
    this.element = h(
      "form",
      { class: "review-comment", onsubmit: (event) => (event.preventDefault(), void this.send()) },
      h("label", { class: "visually-hidden", for: "review-comment" }, "Comment on this slide"),
      this.field,
      h("button", { type: "submit", class: "small" }, icon("comment"), "Add comment"),
    );
  }

  private async send(): Promise<void> {
    const text = this.field.value.trim();
    if (text === "" || !(await this.model.act({ action: "comment", text }))) return;
    this.field.value = "";
    this.keep();
  }

  private onKey(event: Event): void {
    if (event instanceof KeyboardEvent && event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.element.requestSubmit();
  }

  private keep(): void {
    try {
      if (this.field.value) sessionStorage.setItem(this.key, this.field.value);
      else sessionStorage.removeItem(this.key);
    } catch {
      this.field.title = "This browser keeps no drafts";
    }
  }

  private kept(): string {
    try {
      return sessionStorage.getItem(this.key) ?? "";
    } catch {
      return "";
    }
  }
}

export function comments(state: SlideReview): HTMLElement {
  const told = state.comments.map(({ who, when, text }) =>
    h("li", {}, h("p", { class: "small muted" }, `${who}, ${whenText(when)}`), h("p", { class: "review-text" }, text)),
  );
  return h("ul", { class: "review-comments", "data-testid": "comments", "aria-label": "Comments" }, ...told);
}

/** `open`: whether the list was unfolded before it was drawn again. */
export function history(state: SlideReview, model: ReviewModel, open: boolean): HTMLElement {
  const undo = model.undoable();
  const newest = state.history.slice(-HISTORY_SHOWN).reverse();
  const lines = newest.map((told) =>
    h(
      "li",
      { class: told.undone ? "undone" : null },
      h("span", {}, `${told.who} ${actionText(told.action)}`, told.text && told.action !== "comment" ? `: ${told.text}` : ""),
      h("span", { class: "muted" }, ` ${whenText(told.when)}${told.undone ? ", taken back" : ""}`),
    ),
  );
  const left = state.history.length - newest.length;
  return h(
    "section",
    { class: "review-part", "aria-labelledby": "review-history" },
    h(
      "div",
      { class: "spread" },
      h("h3", { id: "review-history" }, "History"),
      h("button", { type: "button", class: "small", disabled: undo === null, "data-focus": "undo", onclick: () => void model.undo() }, icon("undo"), "Undo mine", h("kbd", { "aria-hidden": "true" }, "u")),
    ),
    state.history.length === 0
      ? h("p", { class: "small muted" }, "Nothing was said of this slide yet.")
      : h("details", { class: "review-history", open }, h("summary", { "data-focus": "history" }, `${state.history.length} ${state.history.length === 1 ? "entry" : "entries"}`), h("ol", {}, ...lines), left > 0 && h("p", { class: "small muted" }, `and ${left} older`)),
  );
}

export function exports(slide: string): HTMLElement {
  const file = (href: string, name: string, text: string) => h("a", { class: "button small", href, download: name }, icon("download"), text);
  return h(
    "section",
    { class: "review-part", "aria-labelledby": "review-export" },
    h("h3", { id: "review-export" }, "Take away"),
    h("div", { class: "row" }, file(`api/slides/${encodeURIComponent(slide)}/review.geojson`, `${slide}.geojson`, "Regions for QuPath"), file("api/review/labels.csv", "labels.csv", "Labels of all slides")),
  );
}

/** What is on its way or was refused; an empty element where all is saved. */
export function unsaved(model: ReviewModel): HTMLElement {
  const { outbox } = model;
  const waiting = outbox.unsent().length;
  const refused = outbox.list().filter((entry) => entry.refused !== null);
  const trouble = outbox.trouble;
  const notes: HTMLElement[] = [];
  if (waiting > 0 && trouble !== null) {
    const kept = outbox.stored ? "Kept in this browser and sent again." : "This browser does not keep it: leave this page open.";
    notes.push(h("div", { class: "notice row", "data-testid": "unsaved" }, h("span", { class: "grow" }, `${waiting} not saved yet: ${trouble}. ${kept}`), h("button", { type: "button", class: "small", "data-focus": "retry", onclick: outbox.now }, "Try now")));
  }
  for (const { event, slide, action, refused: why } of refused) {
    const where = slide === model.slide ? "" : ` (slide ${slide})`;
    notes.push(h("div", { class: "notice error row", "data-testid": "refused" }, h("span", { class: "grow" }, `Not saved: ${actionText(action.action)}${where}. ${why ?? ""}`), h("button", { type: "button", class: "small", "data-focus": `drop/${event}`, onclick: () => outbox.drop(event) }, "Dismiss")));
  }
  return h("div", { class: "stack", "data-testid": "saving", "data-waiting": waiting }, ...notes);
}
