// What is shown before the server has answered: its last state, and on it what is on the way.

import type { Action, Region, ReviewStatus, SlideReview } from "../api";

/** An action that waits in this browser until the server has it. */
export interface Entry {
  event: string;
  slide: string;
  who: string;
  action: Action;
  /** When it was done, milliseconds since 1970. */
  at: number;
  /** Why the server would not take it; null while it is on the way. */
  refused: string | null;
}

const SLIDE: Record<string, ReviewStatus> = { accept: "accepted", reject: "rejected", relabel: "relabelled", reopen: "open" };
const REGION: Record<string, ReviewStatus> = {
  "region-accept": "accepted", "region-reject": "rejected", "region-relabel": "relabelled",
};

/** The state after these entries, as the server will tell it. `state` stays as it is. */
export function foldEntries(state: SlideReview, entries: readonly Entry[]): SlideReview {
  const known = new Set(state.history.map(({ id }) => id));
  const waiting = entries.filter(({ event, slide, refused }) => slide === state.slide_id && refused === null && !known.has(event));
  const undone = new Set(waiting.flatMap(({ action }) => (action.action === "undo" ? [action.event] : [])));
  // Regions are replaced, never changed: those of the server's state are shown as they are, however many corners they have
  const history = state.history.map((told) => ({ ...told, undone: told.undone || undone.has(told.id) }));
  const shown = { ...state, regions: [...state.regions], comments: [...state.comments], history };
  for (const entry of waiting) if (!undone.has(entry.event)) apply(shown, entry);
  return shown;
}

function apply(state: SlideReview, { event, who, action, at }: Entry): void {
  const when = new Date(at).toISOString();
  state.history.push({ id: event, who, when, action: action.action, text: textOf(action), undone: false });
  if (action.action === "comment") state.comments.push({ who, when, text: action.text });
  else if (action.action === "region-add") {
    state.regions.push({ ...action.region, status: "accepted", origin: "drawn", reason: "", who, when });
  } else if (action.action === "region-edit") {
    change(state, action.region.id, (region) => ({
      geometry: action.region.geometry, origin: region.origin === "drawn" ? "drawn" : "edited", who, when,
    }));
  } else if (action.action === "region-delete") state.regions = state.regions.filter(({ id }) => id !== action.id);
  else if (action.action === "region-relabel") change(state, action.id, () => ({ label: action.label, status: "relabelled", who, when }));
  else if (action.action === "region-accept" || action.action === "region-reject") {
    change(state, action.id, () => ({ status: REGION[action.action]!, who, when }));
  } else if (action.action !== "undo") {
    state.status = SLIDE[action.action]!;
    state.label = action.action === "relabel" ? action.label : null;
    [state.who, state.when] = action.action === "reopen" ? [null, null] : [who, when];
  }
}

function change(state: SlideReview, id: string, to: (region: Region) => Partial<Region>): void {
  state.regions = state.regions.map((region) => (region.id === id ? { ...region, ...to(region) } : region));
}

function textOf(action: Action): string {
  if (action.action === "comment") return action.text;
  if (action.action === "region-add") return action.region.label ?? "";
  return "label" in action ? action.label : "";
}
