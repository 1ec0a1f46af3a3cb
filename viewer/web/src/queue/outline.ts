// The outline of a region over its picture.

import type { Geometry } from "../api";

type Ring = [number, number][];

/** Rings of a Polygon or MultiPolygon; a Point and what is not known has none. */
export function ringsOf({ type, coordinates }: Geometry): Ring[] {
  if (type === "Polygon") return coordinates as Ring[];
  if (type === "MultiPolygon") return (coordinates as Ring[][]).flat();
  return [];
}

/** Left, top, right and bottom in level-0 pixels. */
export function boundsOf(geometry: Geometry): [number, number, number, number] {
  const points = geometry.type === "Point" ? [geometry.coordinates as [number, number]] : ringsOf(geometry).flat();
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of points) {
    left = Math.min(left, x);
    top = Math.min(top, y);
    right = Math.max(right, x);
    bottom = Math.max(bottom, y);
  }
  return points.length > 0 ? [left, top, right, bottom] : [0, 0, 0, 0];
}

/** The region in a square of `side` level-0 pixels at (x, y); a dark line under the coloured one, seen on any tissue. */
export function outlineOf(geometry: Geometry, x: number, y: number, side: number): SVGSVGElement {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", `0 0 ${side} ${side}`);
  drawing.setAttribute("aria-hidden", "true");
  const line = ringsOf(geometry).map((ring) => `M${ring.map(([px, py]) => `${px - x} ${py - y}`).join("L")}Z`).join("");
  for (const look of ["halo", "line"]) {
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", line);
    path.setAttribute("class", look);
    drawing.append(path);
  }
  return drawing;
}
