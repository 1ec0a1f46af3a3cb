// The worklist's table: only the rows in view are in the document, so that ten thousand slides scroll as ten do.

import { h } from "../dom";
import { slideAddress, slideRow, spacer, waitingRow } from "./rows";
import { FIRST_ORDER, type Sort, type View } from "./query";
import type { SlidePages } from "./pages";

const AROUND = 8; // rows drawn above and below what is seen
const SETTLED_MS = 90; // a list that is dragged past does not load every page and picture on the way

const HEADS: { name: string; sort?: Sort; look?: string; help?: string }[] = [
  { name: "Slide", sort: "id" },
  { name: "Prediction", help: "The model's class with its calibrated probability; ± is the spread between its networks" },
  { name: "Urgency", sort: "urgency", help: "Calibrated probability of the most urgent class" },
  { name: "Uncertainty", sort: "uncertainty", help: "0: sure, 1: no class is more likely than another, or the model abstains" },
  { name: "Flags" },
  { name: "Tiles", sort: "tiles", look: "number" },
  { name: "Review", sort: "review" },
];

export interface Hooks {
  sorted(sort: Sort, order: "asc" | "desc"): void;
  /** The chosen row is another. */
  chosen(index: number): void;
  failed(error: unknown): void;
}

export class SlideTable {
  readonly element: HTMLElement;
  #body = h("tbody", {});
  #heads = new Map<Sort, HTMLTableCellElement>();
  #table: HTMLTableElement;
  #drawn = new Map<number, { element: HTMLTableRowElement; content: string }>();
  #above = spacer();
  #below = spacer();
  #height = 0;
  #chosen = 0;
  #settled = 0;
  #watch: ResizeObserver;

  constructor(readonly pages: SlidePages, private view: View, private readonly hooks: Hooks) {
    const heads = HEADS.map((head) => this.#head(head));
    this.#table = h(
      "table",
      { class: "table worklist" },
      h("caption", { class: "visually-hidden" }, "Slides of this run"),
      h("colgroup", {}, ...HEADS.map(({ name }) => h("col", { class: `col-${name.toLowerCase()}` }))),
      h("thead", {}, h("tr", { "aria-rowindex": 1 }, ...heads)),
      this.#body,
    );
    // A region that scrolls must be reachable by key for who sees it but uses no mouse.
    this.element = h("div", { class: "worklist-scroll", tabindex: 0, role: "region", "aria-label": "Worklist" }, this.#table);
    this.element.addEventListener("scroll", () => this.#draw(), { passive: true });
    this.#body.addEventListener("click", (event) => this.#clicked(event));
    this.#watch = new ResizeObserver(() => ((this.#height = 0), this.#draw()));
    this.#watch.observe(this.element);
    this.#chosen = view.row;
  }

  get chosen(): number {
    return this.#chosen;
  }

  destroy(): void {
    this.#watch.disconnect();
    window.clearTimeout(this.#settled);
  }

  /** Draw all rows anew: another question was asked, or the answers have changed. */
  redraw(view: View = this.view): void {
    this.view = view;
    for (const [sort, head] of this.#heads) {
      if (sort === view.sort) head.setAttribute("aria-sort", view.order === "asc" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
    this.#table.setAttribute("aria-rowcount", String(this.pages.total + 1));
    const focused = this.#body.contains(document.activeElement);
    this.#chosen = Math.max(0, Math.min(this.#chosen, this.pages.total - 1));
    // One for one: an emptied table would forget how far it was scrolled, and a row that stays keeps its picture.
    for (const [index, row] of this.#drawn) {
      if (this.#content(index) !== row.content) row.element.replaceWith(this.#row(index));
      else this.#point(index, row.element);
    }
    this.#draw();
    if (focused) this.#link(this.#chosen)?.focus({ preventScroll: true });
  }

  /** Choose a row, bring it into view and give it the focus. */
  choose(index: number, focus = true): void {
    this.mark(index);
    this.show(this.#chosen);
    if (focus) this.#link(this.#chosen)?.focus({ preventScroll: true });
  }

  /** Choose a row where it is. */
  mark(index: number): void {
    if (this.pages.total === 0) return;
    this.#drawn.get(this.#chosen)?.element.removeAttribute("aria-current");
    this.#chosen = Math.max(0, Math.min(index, this.pages.total - 1));
    this.#drawn.get(this.#chosen)?.element.setAttribute("aria-current", "true");
    this.hooks.chosen(this.#chosen);
  }

  open(index = this.#chosen): void {
    const card = this.pages.at(index);
    if (card) location.hash = slideAddress(card.id);
  }

  show(index: number): void {
    const head = this.#table.tHead!.offsetHeight;
    const top = index * this.#rowHeight();
    const seen = this.element.clientHeight - head;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + this.#height > this.element.scrollTop + seen) this.element.scrollTop = top + this.#height - seen;
    this.#draw();
  }

  /** Rows that fit into the view: how far Page Down goes. */
  rowsInView(): number {
    return Math.max(1, Math.floor(this.element.clientHeight / this.#rowHeight()) - 1);
  }

  /** First and one past the last row in view. */
  range(): [number, number] {
    const first = Math.floor(this.element.scrollTop / this.#rowHeight());
    return [first, Math.min(this.pages.total, first + this.rowsInView() + 3)];
  }

  #rowHeight(): number {
    if (this.#height === 0) {
      const probe = waitingRow();
      this.#body.append(probe);
      this.#height = probe.getBoundingClientRect().height || 64;
      probe.remove();
    }
    return this.#height;
  }

  #draw(): void {
    if (!this.element.isConnected) return;
    const [first, end] = this.range();
    const from = Math.max(0, first - AROUND);
    const to = Math.min(this.pages.total, end + AROUND);
    for (const [index, row] of this.#drawn)
      if (index < from || index >= to) {
        row.element.remove();
        this.#drawn.delete(index);
      }
    if (this.#above.parentNode !== this.#body) this.#body.append(this.#above, this.#below);
    let after: HTMLTableRowElement = this.#above;
    for (let index = from; index < to; index++) {
      const row = this.#drawn.get(index)?.element ?? this.#row(index);
      if (after.nextSibling !== row) after.after(row);
      after = row;
    }
    this.#above.hidden = from === 0;
    this.#below.hidden = to === this.pages.total;
    (this.#above.firstChild as HTMLElement).style.height = `${from * this.#height}px`;
    (this.#below.firstChild as HTMLElement).style.height = `${(this.pages.total - to) * this.#height}px`;
    window.clearTimeout(this.#settled);
    this.#settled = window.setTimeout(() => this.#rest(from, to), this.#drawn.size > 0 ? SETTLED_MS : 0);
  }

  /** Scrolling has come to rest: load what is missing here, and the pictures. */
  #rest(from: number, to: number): void {
    for (const picture of this.#body.querySelectorAll<HTMLImageElement>("img[data-src]")) {
      picture.src = picture.dataset.src!;
      delete picture.dataset.src;
    }
    this.pages.need(from, to).catch(this.hooks.failed);
  }

  #row(index: number): HTMLTableRowElement {
    const card = this.pages.at(index);
    const row = card ? slideRow(card, this.view.model) : waitingRow();
    row.setAttribute("aria-rowindex", String(index + 2));
    row.dataset.index = String(index);
    this.#point(index, row);
    this.#drawn.set(index, { element: row, content: this.#content(index) });
    return row;
  }

  /** All that a row shows: rows of the same content need not be drawn again. */
  #content(index: number): string {
    return JSON.stringify([this.view.model, this.pages.at(index) ?? null]);
  }

  #point(index: number, row: HTMLTableRowElement): void {
    if (index === this.#chosen) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }

  #link(index: number): HTMLAnchorElement | null {
    return this.#drawn.get(index)?.element.querySelector("a") ?? null;
  }

  #clicked(event: MouseEvent): void {
    const row = (event.target as Element).closest<HTMLTableRowElement>("tr[data-index]");
    if (!row || event.button !== 0) return;
    this.mark(Number(row.dataset.index));
    const aside = event.ctrlKey || event.metaKey || event.shiftKey || (event.target as Element).closest("a");
    if (!aside && !getSelection()?.toString()) this.open();
  }

  #head({ name, sort, look, help }: (typeof HEADS)[number]): HTMLTableCellElement {
    if (!sort) return h("th", { scope: "col", class: look, title: help }, name);
    const button = h("button", { class: "quiet small", type: "button", title: help }, name, h("span", { class: "arrow", "aria-hidden": true }));
    button.addEventListener("click", () => {
      const turned = this.view.order === "asc" ? "desc" : "asc";
      this.hooks.sorted(sort, this.view.sort === sort ? turned : FIRST_ORDER[sort]);
    });
    const head = h("th", { scope: "col", class: look }, button);
    this.#heads.set(sort, head);
    return head;
  }
}

