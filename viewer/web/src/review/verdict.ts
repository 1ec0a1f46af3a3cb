// The slide's own verdict: accepted, rejected, relabelled or open.

import type { ReviewStatus, Slide, SlideReview } from "../api";
import { h } from "../dom";
import { icon, type IconName } from "../shell/icons";
import { classChooser, dot } from "./classes";
import type { ReviewModel } from "./model";

const BADGES: Record<ReviewStatus, [string, string]> = {
  open: ["", "open"], accepted: ["ok", "accepted"], rejected: ["bad", "rejected"], relabelled: ["accent", "relabelled"],
};

export function statusBadge(status: ReviewStatus): HTMLElement {
  const [kind, word] = BADGES[status];
  return h("span", { class: `badge ${kind}` }, word);
}

/** "by Ann, 22 Nov 2026, 23:14"; nothing where nobody said anything. */
export function byWhom(who: string | null, when: string | null): string {
  if (who === null) return "";
  return when === null ? `by ${who}` : `by ${who}, ${whenText(when)}`;
}

export function whenText(when: string): string {
  const date = new Date(when);
  return Number.isNaN(date.getTime()) ? when : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export function verdict(slide: Slide, state: SlideReview, classes: readonly string[], model: ReviewModel): HTMLElement {
  const said = Object.entries(slide.said).filter(([, one]) => one.predicted !== null);
  const predictions = said.map(([name, one]) =>
    h("p", { class: "small" }, said.length > 1 && h("span", { class: "muted" }, `${name}: `), "The model says ", dot(one.predicted, classes), " ", h("strong", {}, one.predicted)),
  );
  const press = (action: "accept" | "reject" | "reopen", picture: IconName, text: string, key: string | null, held: boolean) =>
    h(
      "button",
      { type: "button", class: "small", "aria-pressed": String(held), "data-focus": `slide/${action}`, onclick: () => void model.act({ action }) },
      icon(picture), text, key && h("kbd", { "aria-hidden": "true" }, key),
    );
  return h(
    "section",
    { class: "review-part", "aria-labelledby": "review-slide" },
    h("div", { class: "spread" }, h("h3", { id: "review-slide" }, "Whole slide"), h("span", { "data-testid": "slide-status", "data-status": state.status }, statusBadge(state.status))),
    ...predictions,
    state.status !== "open" &&
      h("p", { class: "small" }, state.label !== null && h("strong", {}, dot(state.label, classes), " ", state.label, " "), h("span", { class: "muted" }, byWhom(state.who, state.when))),
    h(
      "div",
      { class: "row" },
      press("accept", "check", "Accept", "a", state.status === "accepted"),
      press("reject", "close", "Reject", "x", state.status === "rejected"),
      state.status !== "open" && press("reopen", "refresh", "Reopen", null, false),
    ),
    h("p", { class: "small muted" }, "or say what it is:"),
    classChooser("the slide", classes, state.status === "relabelled" ? state.label : null, (label) => void model.act({ action: "relabel", label }), false),
  );
}
