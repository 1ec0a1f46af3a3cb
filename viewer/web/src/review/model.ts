// The review of one slide as it is shown: the server's state, what other people did since, and what is on the way.

import { review, type Action, type Region, type Session, type SlideReview } from "../api";
import { askReviewer, knownReviewer } from "../shell/reviewer";
import { wordsOf } from "../shell/states";
import { foldEntries } from "./fold";
import { Outbox } from "./outbox";

const POLL_MS = 5_000;

export type Announce = (text: string, kind?: "info" | "error") => void;

export class ReviewModel {
  readonly outbox: Outbox;
  /** Null until the server has answered once. */
  shown: SlideReview | null = null;
  /** Why it could not be loaded; null when it could. */
  failed: string | null = null;
  private server: SlideReview | null = null;
  private timer = 0;
  private gone = false;
  private readonly listeners: (() => void)[] = [];

  constructor(readonly slide: string, readonly session: Session, private readonly announce: Announce) {
    this.outbox = new Outbox(session.title, {
      taken: (entry, state) => entry.slide === this.slide && this.take(state),
      refused: (entry, why) => this.announce(`Not saved: ${why}`, entry.slide === this.slide ? "error" : "info"),
      changed: () => this.refresh(),
    });
    if (!session.review) return; // there is nothing to ask for
    document.addEventListener("visibilitychange", this.poll);
    void this.poll();
  }

  /** `listener` is called whenever something that is shown changed. */
  onChange(listener: () => void): void {
    this.listeners.push(listener);
  }

  region(id: string): Region | undefined {
    return this.shown?.regions.find((region) => region.id === id);
  }

  /** Do it: shown at once, kept in the browser, sent. False where no name was given. */
  async act(action: Action): Promise<boolean> {
    if (!this.session.review) {
      this.announce("Reviews are not kept here: there is no run folder, or it cannot be written.", "error");
      return false;
    }
    const who = await askReviewer(this.session);
    if (who === null || this.gone) return false;
    this.outbox.add(this.slide, who, action);
    return true;
  }

  /** Id of this reviewer's newest event that was not taken back. */
  undoable(): string | null {
    const who = knownReviewer(this.session);
    const mine = this.shown?.history.filter((told) => told.who === who && !told.undone && told.action !== "undo") ?? [];
    return mine.at(-1)?.id ?? null;
  }

  /** Take back this reviewer's newest action, whether the server has it already or not. */
  async undo(): Promise<void> {
    const event = this.undoable();
    if (event === null) return this.announce("You have nothing to take back on this slide.");
    const told = this.shown?.history.find(({ id }) => id === event);
    if (await this.act({ action: "undo", event })) this.announce(`Taken back: ${told ? actionText(told.action) : "last action"}`);
  }

  destroy(): void {
    this.gone = true;
    window.clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.poll);
    this.outbox.destroy();
  }

  /** Load again now. */
  readonly poll = async (): Promise<void> => {
    window.clearTimeout(this.timer);
    if (this.gone || (document.hidden && this.server)) return; // shown again, the page asks at once
    try {
      const state = await review(this.slide);
      if (this.gone) return;
      const mended = this.failed !== null;
      this.failed = null;
      this.take(state, mended);
    } catch (error) {
      if (this.gone) return;
      const { title, detail } = wordsOf(error);
      this.failed = `${title}. ${detail}`;
      this.refresh();
    }
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.poll(), POLL_MS);
  };

  /** An answer that was overtaken by a newer one is left alone. */
  private take(state: SlideReview, mended = false): void {
    if (this.server && state.version < this.server.version) return;
    const same = this.server !== null && markOf(state) === markOf(this.server);
    this.server = state;
    if (!same || mended) this.refresh();
  }

  private refresh(): void {
    if (this.server) this.shown = foldEntries(this.server, this.outbox.list());
    for (const listener of this.listeners) listener();
  }
}

/** Changes with every event, and when suggestions come or go. */
const markOf = ({ version, regions }: SlideReview): string => [version, ...regions.map(({ id }) => id)].join();

const WORDS: Record<string, string> = {
  accept: "accepted the slide", reject: "rejected the slide", relabel: "relabelled the slide", reopen: "reopened the slide",
  comment: "commented", undo: "took something back", "region-add": "drew a region", "region-edit": "changed a region's outline",
  "region-relabel": "classed a region", "region-accept": "accepted a region", "region-reject": "rejected a region",
  "region-delete": "deleted a region",
};

/** "accepted the slide", as the history tells it. */
export const actionText = (action: string): string => WORDS[action] ?? action;
