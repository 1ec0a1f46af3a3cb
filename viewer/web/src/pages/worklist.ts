// All slides of a run, the most urgent first.

import type { Session } from "../api";
import { h } from "../dom";
import type { OpenPage } from "../page";
import { announce, whisper } from "../shell/announce";
import { rememberWorklist } from "../shell/header";
import { bindKeys, type Binding } from "../shell/keys";
import { empty, failed, loading, wordsOf } from "../shell/states";
import "../styles/worklist.css";
import { SlidePages } from "../worklist/pages";
import { addressOf, isFiltered, queryOf, viewOf, type View } from "../worklist/query";
import { SlideTable } from "../worklist/table";
import { toolbar } from "../worklist/toolbar";

const REFRESH_MS = 10_000;

export const openWorklist: OpenPage = (root, route, session) => {
  const list = new WorklistPage(root, viewOf(route.query, session), session);
  return { destroy: () => list.destroy() };
};

class WorklistPage {
  #pages = new SlidePages(() => this.#changed());
  #tools;
  #table: SlideTable;
  #place = h("div", { class: "worklist-place" });
  #timer: number;
  #unbind: () => void;
  #loaded = false;
  #asked = 0;
  #gone = false;

  constructor(root: HTMLElement, private view: View, private readonly session: Session) {
    this.#tools = toolbar(session, view, (change) => this.#ask({ ...change, row: 0 }));
    this.#table = new SlideTable(this.#pages, view, {
      sorted: (sort, order) => this.#ask({ sort, order, row: 0 }),
      chosen: (row) => this.#remember({ row }),
      failed: (error) => this.#failedLater(error),
    });
    const title = h("h1", { class: "visually-hidden" }, "Worklist");
    root.append(h("div", { class: "worklist-page" }, title, this.#tools.element, this.#place));
    this.#unbind = bindKeys("Worklist", this.#keys());
    this.#timer = window.setInterval(() => this.#refresh(), REFRESH_MS);
    void this.#load();
  }

  destroy(): void {
    this.#gone = true;
    window.clearInterval(this.#timer);
    this.#unbind();
    this.#table.destroy();
  }

  #ask(change: Partial<View>): void {
    this.#remember(change);
    void this.#load();
  }

  #remember(change: Partial<View>): void {
    this.view = { ...this.view, ...change };
    const address = addressOf(this.view, this.session);
    rememberWorklist(address);
    // Not before the list stands: an address that came with a row must survive the way there.
    if (!this.#gone && location.hash !== address) history.replaceState(null, "", address);
  }

  async #load(): Promise<void> {
    const mine = ++this.#asked;
    this.#remember({});
    if (!this.#loaded) this.#place.replaceChildren(loading("Loading slides", 8));
    try {
      await this.#pages.ask(queryOf(this.view), this.view.row);
    } catch (error) {
      if (mine !== this.#asked || this.#gone) return; // another question is on its way
      this.#place.replaceChildren(failed(error, () => void this.#load()));
      this.#loaded = false;
      return;
    }
    if (mine !== this.#asked || this.#gone) return;
    this.#loaded = true;
    this.#changed();
    if (this.view.row > 0 || this.#table.chosen !== this.view.row) this.#table.choose(this.view.row, false);
    else this.#table.show(0);
  }

  /** Other slides, or another number of them. */
  #changed(): void {
    if (!this.#loaded || this.#gone) return;
    const { total, counts } = this.#pages;
    whisper(this.#tools.draw(this.view, total, counts));
    if (total === 0) this.#place.replaceChildren(this.#nothing());
    else if (!this.#table.element.isConnected) this.#place.replaceChildren(this.#table.element);
    this.#table.redraw(this.view);
  }

  #nothing(): HTMLElement {
    if (!isFiltered(this.view)) return empty("No slides yet", "Slides appear here as the run takes them up.");
    return empty("No slide fits", "Another search or filter shows more; “Clear filters” shows all.");
  }

  #refresh(): void {
    if (document.hidden || !this.#loaded) return;
    const before = this.#pages.at(this.#table.chosen)?.id;
    const [first, end] = this.#table.range();
    this.#pages
      .refresh(first, end)
      .then(() => {
        // The chosen slide stays chosen where it has gone up or down in the list.
        const now = before === undefined ? null : this.#pages.indexOf(before);
        if (now !== null && now !== this.#table.chosen && !this.#gone) this.#table.mark(now);
      })
      .catch(() => undefined); // what stands is still true; the next round, or the next click, says what is wrong
  }

  #failedLater(error: unknown): void {
    const { title, detail } = wordsOf(error);
    announce(`${title}. ${detail}`, "error");
  }

  #keys(): Binding[] {
    const by = (rows: number) => () => this.#table.choose(this.#table.chosen + rows);
    return [
      { keys: ["j", "ArrowDown"], what: "Next slide", run: by(1) },
      { keys: ["k", "ArrowUp"], what: "Slide before", run: by(-1) },
      { keys: ["PageDown"], what: "A page down", run: () => by(this.#table.rowsInView())() },
      { keys: ["PageUp"], what: "A page up", run: () => by(-this.#table.rowsInView())() },
      { keys: ["Home"], what: "First slide", run: () => this.#table.choose(0) },
      { keys: ["End"], what: "Last slide", run: () => this.#table.choose(this.#pages.total - 1) },
      { keys: ["Enter"], what: "Open the slide", run: (event) => this.#enter(event) },
      { keys: ["/"], what: "Search", run: () => this.#tools.search.select() },
    ];
  }

  /** Enter on a button or link is that button's own. */
  #enter(event: KeyboardEvent): unknown {
    if (event.target instanceof Element && event.target.closest("a, button")) return false;
    return this.#table.open();
  }
}
