// Nothing that was done is lost: every action is written into this browser's storage before it is sent, one key for
// each, and taken out when the server has confirmed it. A reload sends what is left; the same event twice counts once.

import { act, ApiError, type Action, type SlideReview } from "../api";
import type { Entry } from "./fold";

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 30_000;

interface Hears {
  /** The server has it; its state of the entry's slide. */
  taken(entry: Entry, state: SlideReview): void;
  /** The server will not have it, whatever is tried: `why` says what is wrong with it. */
  refused(entry: Entry, why: string): void;
  /** The list changed. */
  changed(): void;
}

export class Outbox {
  private readonly prefix: string;
  private entries: Entry[];
  private sending = false;
  private closed = false;
  private wait = FIRST_WAIT_MS;
  private timer = 0;
  /** False where the browser's storage is full or closed: then only this page knows what is not saved yet. */
  stored = true;
  /** Why the last attempt failed; null when it did not. */
  trouble: string | null = null;

  /** `run` names the run folder: another run at the same address has slides of its own. */
  constructor(run: string, private readonly hears: Hears) {
    this.prefix = `slidestream.outbox/${encodeURIComponent(run)}/`;
    this.entries = this.read();
    window.addEventListener("online", this.now);
    if (this.unsent().length > 0) this.timer = window.setTimeout(this.now);
  }

  /** All that is not saved, oldest first. */
  list(): readonly Entry[] {
    return this.entries;
  }

  unsent(): readonly Entry[] {
    return this.entries.filter(({ refused }) => refused === null);
  }

  add(slide: string, who: string, action: Action): Entry {
    const last = this.entries.at(-1)?.at ?? 0;
    const entry: Entry = { event: crypto.randomUUID(), slide, who, action, at: Math.max(Date.now(), last + 1), refused: null };
    this.entries.push(entry);
    this.write(entry);
    this.hears.changed();
    this.now();
    return entry;
  }

  /** Forget a refused entry. */
  drop(event: string): void {
    this.entries = this.entries.filter((entry) => entry.event !== event);
    this.erase(event);
    this.hears.changed();
  }

  /** Send at once what waits. */
  readonly now = (): void => {
    window.clearTimeout(this.timer);
    this.wait = FIRST_WAIT_MS;
    void this.send();
  };

  destroy(): void {
    this.closed = true;
    window.clearTimeout(this.timer);
    window.removeEventListener("online", this.now);
  }

  /** One after the other, in the order in which they were done: an edit must not overtake what it edits. */
  private async send(): Promise<void> {
    if (this.sending) return;
    this.sending = true;
    try {
      for (let entry = this.unsent()[0]; entry && !this.closed; entry = this.unsent()[0]) await this.sendOne(entry);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.trouble = error instanceof ApiError ? error.message : "the server does not answer";
      if (!this.closed) {
        this.timer = window.setTimeout(() => void this.send(), this.wait);
        this.wait = Math.min(LONGEST_WAIT_MS, 2 * this.wait);
        this.hears.changed();
      }
    } finally {
      this.sending = false;
    }
  }

  private async sendOne(entry: Entry): Promise<void> {
    try {
      const state = await act(entry.slide, entry.who, entry.action, entry.event);
      this.trouble = null;
      this.wait = FIRST_WAIT_MS;
      this.entries = this.entries.filter(({ event }) => event !== entry.event);
      this.erase(entry.event);
      if (!this.closed) this.hears.taken(entry, state);
    } catch (error) {
      if (!(error instanceof ApiError) || !isFinal(error.status)) throw error;
      entry.refused = error.message;
      this.write(entry);
      if (!this.closed) this.hears.refused(entry, error.message);
    }
    if (!this.closed) this.hears.changed();
  }

  private read(): Entry[] {
    try {
      const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.prefix));
      return keys.flatMap((key) => parsed(localStorage.getItem(key))).sort((one, other) => one.at - other.at);
    } catch {
      this.stored = false; // storage is closed in this browser: the page works on without it, and says so
      return [];
    }
  }

  private write(entry: Entry): void {
    try {
      localStorage.setItem(this.prefix + entry.event, JSON.stringify(entry));
      this.stored = true;
    } catch {
      this.stored = false;
    }
  }

  private erase(event: string): void {
    try {
      localStorage.removeItem(this.prefix + event);
    } catch {
      this.stored = false;
    }
  }
}

/** The request itself is wrong, so that sending it again is no use. Not so: session over, too many requests, server trouble. */
const isFinal = (status: number): boolean => status >= 400 && status < 500 && ![401, 408, 421, 425, 429].includes(status);

function parsed(text: string | null): Entry[] {
  try {
    const entry = JSON.parse(text ?? "") as Entry;
    return typeof entry.event === "string" && typeof entry.slide === "string" && typeof entry.at === "number" ? [entry] : [];
  } catch {
    return []; // not ours, or cut off by a crash before it was shown as done
  }
}
