// Slides of a worklist of any length, fetched a page at a time as they come into view.

import { worklist, type Card, type Worklist, type WorklistQuery } from "../api";

const PAGE = 100;
const KEPT_PAGES = 40;

export class SlidePages {
  total = 0;
  counts: Worklist["counts"] = { status: {}, review: {}, predicted: {} };

  #query: WorklistQuery = {};
  #pages = new Map<number, Card[]>();
  #fetching = new Map<number, Promise<void>>();
  #generation = 0;

  /** `changed` is told when slides, their number or the counts are others than before. */
  constructor(readonly changed: () => void) {}

  at(index: number): Card | undefined {
    return this.#pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** Another question: forgets all slides, and loads those around `index`. */
  async ask(query: WorklistQuery, index = 0): Promise<void> {
    this.#query = query;
    this.#generation++;
    this.#pages.clear();
    this.#fetching.clear();
    await this.#fetch(Math.floor(index / PAGE));
    // The list has become shorter than the place that was asked for.
    if (this.total > 0 && index >= this.total) await this.#fetch(Math.floor((this.total - 1) / PAGE));
  }

  /** Loads what is missing of the rows from `first` up to `end`. */
  async need(first: number, end: number): Promise<void> {
    const wanted = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < Math.min(end, this.total); page++)
      if (!this.#pages.has(page)) wanted.push(this.#fetch(page));
    await Promise.all(wanted);
  }

  /** Asks again for the rows that are shown: a run goes on, another reviewer works. */
  async refresh(first: number, end: number): Promise<void> {
    const shown = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < Math.max(end, 1); page++) shown.push(page);
    for (const page of this.#pages.keys()) if (!shown.includes(page)) this.#pages.delete(page);
    await Promise.all(shown.map((page) => this.#fetch(page)));
  }

  /** Where a slide is among those loaded, or null. */
  indexOf(id: string): number | null {
    for (const [page, cards] of this.#pages) {
      const place = cards.findIndex((card) => card.id === id);
      if (place >= 0) return page * PAGE + place;
    }
    return null;
  }

  #fetch(page: number): Promise<void> {
    const running = this.#fetching.get(page);
    if (running) return running;
    const generation = this.#generation;
    const fetched = worklist({ ...this.#query, offset: page * PAGE, limit: PAGE })
      .then((answer) => {
        if (generation === this.#generation) this.#keep(page, answer);
      })
      .finally(() => {
        if (generation === this.#generation) this.#fetching.delete(page);
      });
    this.#fetching.set(page, fetched);
    return fetched;
  }

  #keep(page: number, answer: Worklist): void {
    const same =
      this.total === answer.total &&
      JSON.stringify(this.counts) === JSON.stringify(answer.counts) &&
      JSON.stringify(this.#pages.get(page)) === JSON.stringify(answer.slides);
    if (same) return;
    this.total = answer.total;
    this.counts = answer.counts;
    this.#pages.delete(page); // to the end: the page used last
    this.#pages.set(page, answer.slides);
    for (const oldest of this.#pages.keys()) {
      if (this.#pages.size <= KEPT_PAGES) break;
      this.#pages.delete(oldest);
    }
    this.changed();
  }
}
