// The regions whose labels would teach the model most, one after the other.

import { queue, type Action, type Session } from "../api";
import { h } from "../dom";
import { counted } from "../format";
import type { OpenPage } from "../page";
import { SuggestionCard, type Answer, type CardHooks, type Suggestion } from "../queue/card";
import { askLabel } from "../queue/labels";
import { Outbox } from "../review/outbox";
import { whisper } from "../shell/announce";
import { bindKeys, type Binding } from "../shell/keys";
import { askReviewer } from "../shell/reviewer";
import { empty, failed, loading } from "../shell/states";
import "../styles/queue.css";

const REFRESH_MS = 15_000;

export const openQueue: OpenPage = (root, route, session) => {
  const page = new QueuePage(root, session, route.query.get("at"));
  return { destroy: () => page.destroy() };
};

interface Item extends Suggestion {
  card: SuggestionCard;
  hooks: CardHooks;
  answer: Answer | null;
}

class QueuePage {
  #items: Item[] = [];
  #chosen = 0;
  #answered: Item[] = []; // in the order of the answers, for undo
  #grid = h("div", { class: "queue-grid" });
  #place = h("div", { class: "queue-place" });
  #progress = h("p", { class: "small muted number" });
  #bar = h("span", {});
  #outbox: Outbox;
  #timer: number;
  #unbind: () => void;
  #gone = false;

  constructor(root: HTMLElement, private readonly session: Session, at: string | null) {
    this.#outbox = new Outbox(session.title, {
      taken: (entry) => this.#settle(entry.event, "saved", ""),
      refused: (entry, why) => this.#settle(entry.event, "refused", why),
      changed: () => this.#count(),
    });
    const head = h(
      "div",
      { class: "queue-head" },
      h("h1", {}, "Review queue"),
      h("p", { class: "small muted grow" }, "Regions whose answers would teach the model most, the most telling first."),
      h("span", { class: "bar" }, this.#bar),
      this.#progress,
    );
    root.append(h("div", { class: "queue-page" }, head, this.#place));
    this.#unbind = bindKeys("Review queue", this.#keys());
    this.#timer = window.setInterval(() => void this.#refresh(), REFRESH_MS);
    void this.#load(at);
  }

  destroy(): void {
    this.#gone = true;
    window.clearInterval(this.#timer);
    this.#unbind();
    this.#outbox.destroy();
  }

  async #load(at: string | null): Promise<void> {
    this.#place.replaceChildren(loading("Loading suggestions", 4));
    try {
      const { items } = await queue();
      if (this.#gone) return;
      this.#take(items);
    } catch (error) {
      if (!this.#gone) this.#place.replaceChildren(failed(error, () => void this.#load(at)));
      return;
    }
    const before = this.#items.findIndex(({ region }) => region.id === at);
    if (this.#items.length > 0) this.#choose(Math.max(0, before));
  }

  /** What others answered meanwhile goes, what is new comes; answers given here stay in sight. */
  async #refresh(): Promise<void> {
    if (document.hidden || !this.#place.contains(this.#grid)) return;
    const { items } = await queue().catch(() => ({ items: null })); // the next round tries again
    if (items !== null && !this.#gone) this.#take(items);
  }

  #take(suggestions: Suggestion[]): void {
    const chosen = this.#items[this.#chosen]?.region.id;
    const waiting = new Map(suggestions.map((one) => [one.region.id, one]));
    const kept = this.#items.filter(({ answer, region }) => answer !== null || waiting.has(region.id));
    for (const item of this.#items) if (!kept.includes(item)) item.card.element.remove();
    const known = new Set(kept.map(({ region }) => region.id));
    const unsent = new Set(this.#outbox.unsent().map(({ action }) => ("id" in action ? action.id : "")));
    const fresh = suggestions.filter(({ region }) => !known.has(region.id) && !unsent.has(region.id));
    this.#items = [...kept, ...fresh.map((one) => this.#item(one))];
    this.#chosen = Math.max(0, this.#items.findIndex(({ region }) => region.id === chosen));
    for (const item of this.#items.slice(kept.length)) this.#grid.append(item.card.element);
    const command = h("code", {}, "wsi review suggest");
    const none = () => empty("No suggestions wait", "All are answered, or none were made yet. This command picks the regions that would teach most:", command);
    this.#place.replaceChildren(this.#items.length > 0 ? this.#grid : none());
    this.#count();
  }

  #item(one: Suggestion): Item {
    const { id } = one.region;
    const hooks: CardHooks = {
      accept: () => void this.#answer(item, { action: "region-accept", id }, `Accepted: ${one.region.label}`),
      reject: () => void this.#answer(item, { action: "region-reject", id }, "Rejected"),
      relabel: (label) => void this.#answer(item, { action: "region-relabel", id, label }, `Relabelled: ${label}`),
      otherLabel: () => void this.#other(item),
      undo: () => void this.#undo(item),
    };
    const card = new SuggestionCard(one, this.session, hooks);
    const item: Item = { ...one, card, hooks, answer: null };
    card.element.addEventListener("focusin", () => this.#mark(this.#items.indexOf(item)));
    card.element.addEventListener("click", () => this.#mark(this.#items.indexOf(item)));
    return item;
  }

  async #other(item: Item): Promise<void> {
    const label = await askLabel();
    if (label !== null) await this.#answer(item, { action: "region-relabel", id: item.region.id, label }, `Relabelled: ${label}`);
  }

  async #answer(item: Item, action: Action, words: string): Promise<void> {
    if (item.answer !== null && item.answer.state !== "refused") return;
    const who = await askReviewer(this.session);
    if (who === null || this.#gone) return;
    const { event } = this.#outbox.add(item.slide_id, who, action);
    item.answer = { words, event, state: "sending", why: "" };
    item.card.draw(item.answer);
    this.#answered.push(item);
    whisper(`${words}: ${item.slide_id}`);
    this.#count();
    const from = this.#items.indexOf(item);
    const next = this.#items.findIndex(({ answer }, index) => index > from && answer === null);
    if (next >= 0) this.#choose(next);
    else item.card.element.focus({ preventScroll: true });
  }

  async #undo(item: Item | undefined): Promise<void> {
    if (!item?.answer) return;
    const who = await askReviewer(this.session);
    if (who === null) return;
    this.#outbox.add(item.slide_id, who, { action: "undo", event: item.answer.event });
    item.answer = null;
    item.card.draw(null);
    this.#answered = this.#answered.filter((other) => other !== item);
    whisper(`Taken back: ${item.slide_id}`);
    this.#count();
    this.#choose(this.#items.indexOf(item));
  }

  /** The server has an answer, or will not have it. */
  #settle(event: string, state: Answer["state"], why: string): void {
    const item = this.#items.find(({ answer }) => answer?.event === event);
    if (!item?.answer) return;
    item.answer = { ...item.answer, state, why };
    item.card.draw(item.answer);
    if (state === "refused") this.#answered = this.#answered.filter((other) => other !== item);
  }

  #count(): void {
    const unsent = this.#outbox.unsent().length;
    const done = this.#items.filter(({ answer }) => answer !== null && answer.state !== "refused").length;
    const late = unsent > 0 ? ` · ${unsent} not saved yet` : "";
    this.#progress.textContent = `${done} of ${counted(this.#items.length, "suggestion")} answered${late}`;
    this.#bar.style.width = `${this.#items.length > 0 ? (100 * done) / this.#items.length : 0}%`;
  }

  #mark(index: number): void {
    if (index < 0 || index >= this.#items.length) return;
    this.#items[this.#chosen]?.card.element.removeAttribute("aria-current");
    this.#chosen = index;
    const item = this.#items[index]!;
    item.card.element.setAttribute("aria-current", "true");
    // The slide page and back: the queue stands where it was left.
    if (!this.#gone) history.replaceState(null, "", `#/queue?at=${encodeURIComponent(item.region.id)}`);
  }

  #choose(index: number): void {
    const place = Math.max(0, Math.min(index, this.#items.length - 1));
    this.#mark(place);
    const card = this.#items[place]?.card.element;
    card?.focus({ preventScroll: true });
    card?.scrollIntoView({ block: "nearest" });
  }

  #keys(): Binding[] {
    const now = () => this.#items[this.#chosen];
    const by = (step: number) => () => this.#choose(this.#chosen + step);
    const across = () => getComputedStyle(this.#grid).gridTemplateColumns.split(" ").length;
    const classes = (item: Item) => this.session.classes.filter((name) => name !== item.region.label);
    const relabel = (event: KeyboardEvent) => {
      const item = now();
      const label = item && classes(item)[Number(event.key) - 1];
      if (label === undefined) return false; // no class has this number
      item!.hooks.relabel(label);
    };
    const accept = () => {
      const item = now();
      if (!item || item.region.label === null) return false; // there is no class to agree with
      item.hooks.accept();
    };
    return [
      { keys: ["j", "ArrowRight"], what: "Next suggestion", run: by(1) },
      { keys: ["k", "ArrowLeft"], what: "Suggestion before", run: by(-1) },
      { keys: ["ArrowDown"], what: "A row down", run: () => by(across())() },
      { keys: ["ArrowUp"], what: "A row up", run: () => by(-across())() },
      { keys: ["a"], what: "Accept: it is what the model says", run: accept },
      { keys: ["x"], what: "Reject: leave it out", run: () => now()?.hooks.reject() },
      { keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9"], what: "Relabel: the class of that number", run: relabel },
      { keys: ["u", "Ctrl+z"], what: "Undo the last answer", run: () => void this.#undo(this.#answered.at(-1)) },
      { keys: ["o"], what: "Open the slide at this place", run: () => now()?.card.link.click() },
    ];
  }
}
