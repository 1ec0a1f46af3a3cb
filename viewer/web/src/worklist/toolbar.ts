// Search, filters and counts above the worklist.

import type { Session, Worklist } from "../api";
import { h } from "../dom";
import { count, counted } from "../format";
import { icon } from "../shell/icons";
import { isFiltered, type View } from "./query";

const TYPED_MS = 200;

const WORDS: Record<string, string> = {
  done: "Done", empty: "No tissue", failed: "Failed", waiting: "Waiting",
  open: "Open", accepted: "Accepted", rejected: "Rejected", relabelled: "Relabelled",
};

export interface Toolbar {
  element: HTMLElement;
  search: HTMLInputElement;
  /** Show the counts and the filters as they are now; returns what the count says. */
  draw(view: View, total: number, counts: Worklist["counts"]): string;
}

/** `changed` gets the fields of the view that are to be others. */
export function toolbar(session: Session, view: View, changed: (change: Partial<View>) => void): Toolbar {
  const search = h("input", {
    type: "search", id: "worklist-search", placeholder: "Search slides  ( / )", "aria-label": "Search slides by name", value: view.search, maxlength: 100,
  });
  let timer = 0;
  search.addEventListener("input", () => {
    window.clearTimeout(timer);
    timer = window.setTimeout(() => changed({ search: search.value.trim() }), TYPED_MS);
  });
  const filters = {
    status: filter("Status", (status) => changed({ status })),
    review: filter("Review", (review) => changed({ review })),
    predicted: filter("Predicted", (predicted) => changed({ predicted })),
  };
  const model = modelChooser(session, view, (name) => changed({ model: name }));
  const total = h("p", { class: "small muted number worklist-count" });
  const clear = h("button", { class: "quiet small", type: "button", hidden: true }, icon("close"), "Clear filters");
  clear.addEventListener("click", () => {
    search.value = "";
    changed({ search: "", status: "", review: "", predicted: "" });
    search.focus();
  });
  const element = h(
    "div",
    { class: "worklist-tools", role: "search", "aria-label": "Filter the worklist" },
    h("span", { class: "search-field" }, icon("search"), search),
    ...Object.values(filters).map(({ field }) => field),
    model,
    h("span", { class: "grow" }),
    clear,
    total,
  );
  const draw = (now: View, shown: number, counts: Worklist["counts"]) => {
    filters.status.draw(now.status, counts.status);
    filters.review.draw(now.review, counts.review);
    filters.predicted.draw(now.predicted, counts.predicted);
    clear.hidden = !isFiltered(now);
    const all = Object.values(counts.status).reduce((sum, one) => sum + one, 0);
    total.textContent = isFiltered(now) ? `${count(shown)} of ${counted(all, "slide")}` : counted(shown, "slide");
    return total.textContent;
  };
  return { element, search, draw };
}

interface Filter {
  field: HTMLElement;
  draw(chosen: string, counts: Record<string, number>): void;
}

function filter(name: string, chosen: (value: string) => void): Filter {
  const id = `filter-${name.toLowerCase()}`;
  const select = h("select", { id });
  select.addEventListener("change", () => chosen(select.value));
  const field = h("span", { class: "field-row" }, h("label", { for: id }, name), select);
  const draw = (now: string, counts: Record<string, number>) => {
    const values = Object.keys(counts).filter((value) => counts[value]! > 0 || value === now);
    if (now && !values.includes(now)) values.push(now);
    const words = (value: string) => `${name === "Predicted" ? value : (WORDS[value] ?? value)} (${count(counts[value] ?? 0)})`;
    const options = values.map((value) => h("option", { value, selected: value === now }, words(value)));
    select.replaceChildren(h("option", { value: "" }, "All"), ...options);
    field.hidden = values.length === 0;
    select.classList.toggle("set", now !== "");
  };
  return { field, draw };
}

function modelChooser(session: Session, view: View, chosen: (name: string) => void): HTMLElement | null {
  if (session.models.length < 2) return null;
  const select = h("select", { id: "worklist-model" }, ...session.models.map((name) => h("option", { value: name, selected: name === view.model }, name)));
  select.addEventListener("change", () => chosen(select.value));
  return h("span", { class: "field-row" }, h("label", { for: "worklist-model" }, "Model"), select);
}
