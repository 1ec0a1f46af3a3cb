// Choosing a class: a button for each that is known, and a field for a new one.

import { h } from "../dom";
import { colourOf, css } from "./colours";

const NAME_LIMIT = 100;
/** Keys 1 to 9 choose the first nine. */
export const WITH_KEY = 9;

export function dot(label: string | null, classes: readonly string[]): HTMLElement {
  const point = h("span", { class: "dot", "aria-hidden": "true" });
  point.style.color = css(colourOf(label, classes));
  return point;
}

/** `what` says to screen readers what is classed; `current` is held down; `keys`: show their numbers. */
export function classChooser(what: string, classes: readonly string[], current: string | null, choose: (label: string) => void, keys = true): HTMLElement {
  const buttons = classes.map((label, place) =>
    h(
      "button",
      {
        type: "button", class: "small review-class", "aria-pressed": String(label === current), "data-focus": `${what}/${label}`,
        title: label, onclick: () => choose(label),
      },
      dot(label, classes),
      h("span", { class: "ellipsis" }, label),
      keys && place < WITH_KEY && h("kbd", { "aria-hidden": "true" }, place + 1),
    ),
  );
  const field = h("input", { "aria-label": `Another class for ${what}`, placeholder: "Another class", maxlength: NAME_LIMIT, "data-focus": `${what}/other` });
  const form = h(
    "form",
    { class: "review-other", onsubmit: (event) => {
      event.preventDefault();
      const label = field.value.trim();
      if (label) choose(label);
      field.value = "";
    } },
    field,
    h("button", { type: "submit", class: "small" }, "Set"),
  );
  return h("div", { class: "review-classes", role: "group", "aria-label": `Class of ${what}` }, ...buttons, form);
}

/** Classes to choose from: those of the session, and those that reviewers typed on this slide. */
export function classesOf(known: readonly string[], used: Iterable<string | null>): string[] {
  const more = [...used].filter((label): label is string => label !== null && !known.includes(label));
  return [...known, ...[...new Set(more)].sort()];
}
