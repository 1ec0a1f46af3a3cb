// One tile at full resolution, with its numbers and the way to its neighbours.

import { patchUrl, type Slide } from "../api";
import { h } from "../dom";
import { openDialog } from "../shell/dialog";
import { icon, type IconName } from "../shell/icons";
import { numbersOf } from "./hover";
import type { Loaded, ScoreLayer } from "./scores";
import { count, trim } from "./units";

const MOST_PX = 1024;
const SIDE_PX = 512;
const DIRECTIONS: [string, IconName, string, number, number][] = [
  ["ArrowLeft", "left", "Tile to the left", -1, 0],
  ["ArrowUp", "up", "Tile above", 0, -1],
  ["ArrowDown", "down", "Tile below", 0, 1],
  ["ArrowRight", "right", "Tile to the right", 1, 0],
];

/** Opens the patch of the tile under (x, y); where there is no tile, of the square around it. */
export function openPatch(
  slide: Slide,
  scores: ScoreLayer,
  at: { x: number; y: number },
  goTo: (x: number, y: number, side: number) => void,
): void {
  const loaded = scores.loaded;
  let tile = loaded?.field.at(at.x, at.y) ?? -1;
  const picture = h("img", { class: "slide-patch-picture", "data-testid": "patch-picture" });
  const problem = h(
    "p",
    { class: "notice error", role: "alert", hidden: true },
    "The patch could not be read from the slide.",
  );
  const numbers = h("dl", { class: "facts slide-patch-numbers", "aria-live": "polite" });
  picture.addEventListener("error", () => (problem.hidden = false));
  picture.addEventListener("load", () => (problem.hidden = true));
  const side = tile < 0 || !loaded ? SIDE_PX : loaded.tiles.span_px;
  const corner = (): [number, number] =>
    tile < 0 || !loaded
      ? [Math.round(at.x - side / 2), Math.round(at.y - side / 2)]
      : [loaded.tiles.xy[2 * tile]!, loaded.tiles.xy[2 * tile + 1]!];
  const show = () => {
    const [x, y] = corner();
    picture.src = patchUrl(slide.id, Math.max(0, x), Math.max(0, y), side, Math.min(side, MOST_PX));
    picture.alt = `Patch at x ${x}, y ${y}, ${side} pixels wide`;
    picture.dataset.tile = String(tile);
    numbers.replaceChildren(
      ...rowsOf(slide, loaded, tile, x, y, side).flatMap(([name, value]) => [
        h("dt", {}, name),
        h("dd", { class: "number" }, value),
      ]),
    );
  };
  const step = (dx: number, dy: number) => {
    if (tile < 0 || !loaded) return;
    const next = loaded.field.neighbour(tile, dx, dy);
    if (next >= 0) [tile] = [next];
    show();
  };
  const buttons = DIRECTIONS.map(([, name, label, dx, dy]) =>
    h(
      "button",
      {
        class: "icon",
        type: "button",
        "aria-label": label,
        title: label,
        disabled: tile < 0,
        onclick: () => step(dx, dy),
      },
      icon(name),
    ),
  );
  const place = h(
    "button",
    { type: "button", class: "primary", onclick: () => (dialog.close(), goTo(...corner(), side)) },
    icon("place"),
    "Show on the slide",
  );
  const body = h("div", { class: "slide-patch" }, h("div", {}, picture, problem), numbers);
  const dialog = openDialog(
    tile < 0 ? "Place on the slide" : "Tile",
    [body],
    [h("span", { class: "button-group" }, ...buttons), h("span", { class: "grow" }), place],
  );
  dialog.element.classList.add("slide-patch-dialog");
  dialog.element.addEventListener("keydown", (event) => {
    const direction = DIRECTIONS.find(([key]) => key === event.key);
    if (!direction) return;
    event.preventDefault();
    step(direction[3], direction[4]);
  });
  show();
}

function rowsOf(
  slide: Slide,
  loaded: Loaded | null,
  tile: number,
  x: number,
  y: number,
  side: number,
): (readonly [string, string])[] {
  const place: (readonly [string, string])[] = [["Corner", `x ${count(x)}, y ${count(y)} px`]];
  if (slide.mpp) {
    place.push(["From the slide's corner", `${trim((x * slide.mpp) / 1000)}, ${trim((y * slide.mpp) / 1000)} mm`]);
    place.push(["Side", `${side} px = ${trim(side * slide.mpp)} µm`]);
  } else place.push(["Side", `${side} px`]);
  if (!loaded || tile < 0) return [["Numbers", "no tile here"], ...place];
  return [...numbersOf(loaded.tiles.columns, tile), ...place];
}
