// The address of a place: #/slide/ID?x=…&y=…&zoom=… (centre in level-0 pixels, screen pixels for each of them).

import type { Place } from "./viewer";

/** The place that an address names, or null where it names none (or nonsense). */
export function placeOf(query: URLSearchParams): Place | null {
  const [x, y, zoom] = ["x", "y", "zoom"].map((name) => Number(query.get(name) ?? NaN)) as [number, number, number];
  return [x, y, zoom].every(Number.isFinite) && zoom > 0 ? { x, y, zoom } : null;
}

export function slideHash(id: string, place: Place | null = null): string {
  const at = place
    ? `?x=${Math.round(place.x)}&y=${Math.round(place.y)}&zoom=${Number(place.zoom.toPrecision(4))}`
    : "";
  return `#/slide/${encodeURIComponent(id)}${at}`;
}

/** Puts the place into the address bar; the page stays as it is, and Back leads to where it led before. */
export function showPlace(id: string, place: Place): void {
  history.replaceState(history.state, "", slideHash(id, place));
}

/** True where the link is in the clipboard; false where the browser did not let it in. */
export async function copyLink(id: string, place: Place): Promise<boolean> {
  const link = new URL(slideHash(id, place), location.href).href;
  try {
    await navigator.clipboard.writeText(link);
    return true;
  } catch {
    return false; // refused by the reader or the browser: the address bar holds the same link
  }
}
