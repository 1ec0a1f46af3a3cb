// What the keyboard does on the slide page; "?" shows it.

import type { Binding } from "../shell/keys";
import type { SlidePage } from "./page";
import { MAGNIFICATIONS } from "./toolbar";
import { magnification, zoomFor } from "./units";

const STEP_PX = 120;

export function slideKeys(page: SlidePage): Binding[] {
  const { main, slide } = page;
  return [
    { keys: ["["], what: "Previous slide", run: () => page.goToSlide(slide.previous) },
    { keys: ["]"], what: "Next slide", run: () => page.goToSlide(slide.next) },
    { keys: ["+", "="], what: "Zoom in", run: () => main.zoomBy(1.6) },
    { keys: ["-"], what: "Zoom out", run: () => main.zoomBy(1 / 1.6) },
    { keys: ["0"], what: "Whole slide", run: () => main.home() },
    { keys: ["z"], what: "Next magnification", run: () => magnify(page, 1) },
    { keys: ["Z"], what: "Magnification before", run: () => magnify(page, -1) },
    { keys: ["ArrowLeft"], what: "Move left", run: (event) => pan(page, event, -STEP_PX, 0) },
    { keys: ["ArrowRight"], what: "Move right", run: (event) => pan(page, event, STEP_PX, 0) },
    { keys: ["ArrowUp"], what: "Move up", run: (event) => pan(page, event, 0, -STEP_PX) },
    { keys: ["ArrowDown"], what: "Move down", run: (event) => pan(page, event, 0, STEP_PX) },
    { keys: ["v"], what: "Turn by 90°", run: () => main.turn(90) },
    { keys: ["f"], what: "Full screen", run: () => page.fullScreen() },
    {
      keys: ["Enter"],
      what: "Patch in the middle of the view, or under the pointer",
      run: (event) => !onControl(event) && page.openPatchHere(),
    },
    { keys: ["s"], what: "Heatmap on or off", run: () => page.toggleScores() },
    { keys: ["o"], what: "Heatmap clearer", run: () => fade(page, -0.1) },
    { keys: ["O"], what: "Heatmap stronger", run: () => fade(page, 0.1) },
    { keys: ["t"], what: "Tissue outline", run: () => page.toggle("tissue") },
    { keys: ["g"], what: "Tile grid", run: () => page.toggle("grid") },
    { keys: ["n"], what: "Annotations", run: () => page.toggle("annotations") },
    { keys: ["e"], what: "Failed tiles", run: () => page.toggle("failed") },
    { keys: ["k"], what: "Next of the highest tiles", run: () => page.strip.step(1) },
    { keys: ["j"], what: "Highest tile before", run: () => page.strip.step(-1) },
    { keys: ["c"], what: "Two heatmaps side by side", run: () => page.compare() },
    { keys: ["b"], what: "Side panel", run: () => page.panel() },
    { keys: ["y"], what: "Copy a link to this place", run: () => page.copyLink() },
  ];
}

function magnify(page: SlidePage, by: 1 | -1): void {
  const { mpp } = page.slide;
  if (!mpp) return;
  const now = magnification(mpp, page.main.zoom());
  const next =
    by > 0
      ? MAGNIFICATIONS.find((times) => times > now * 1.02)
      : MAGNIFICATIONS.findLast((times) => times < now * 0.98);
  if (next) page.main.zoomTo(zoomFor(next, mpp));
}

/** Arrow keys on a tab, a button or a scrolled list are theirs. */
function pan(page: SlidePage, event: KeyboardEvent, right: number, down: number): boolean | void {
  if (onControl(event)) return false;
  page.main.pan(right, down);
}

function onControl(event: KeyboardEvent): boolean {
  return event.target instanceof Element && event.target.closest("button, a, summary, [role=tab]") !== null;
}

function fade(page: SlidePage, by: number): void {
  const { scores } = page.main;
  scores.opacity = Math.min(1, Math.max(0, Math.round(10 * (scores.opacity + by)) / 10));
  scores.changed();
}
