// Between GeoJSON in level-0 pixels, which is kept, and the shapes that Annotorious draws and edits.

import { ShapeType, type MultiPolygonGeometry, type PolygonGeometry, type RectangleGeometry, type Shape } from "@annotorious/openseadragon";
import type { Geometry } from "../api";

type Point = [number, number];
type Ring = Point[];

export interface Box {
  minX: number;
  minY: number;
  maxX: number;
  maxY: number;
}

/** Polygons of a geometry, each its outer ring and then its holes; [] for points, lines and what is not known. */
export function polygonsOf(geometry: Geometry): Ring[][] {
  if (geometry.type === "Polygon") return [geometry.coordinates as Ring[]];
  if (geometry.type === "MultiPolygon") return geometry.coordinates as Ring[][];
  return [];
}

/** The box around a geometry, or null where it has no point. */
export function boxOf(geometry: Geometry): Box | null {
  const box: Box = { minX: Infinity, minY: Infinity, maxX: -Infinity, maxY: -Infinity };
  const walk = (part: unknown): void => {
    if (!Array.isArray(part)) return;
    if (typeof part[0] === "number" && typeof part[1] === "number") {
      box.minX = Math.min(box.minX, part[0]);
      box.maxX = Math.max(box.maxX, part[0]);
      box.minY = Math.min(box.minY, part[1]);
      box.maxY = Math.max(box.maxY, part[1]);
    } else part.forEach(walk);
  };
  walk(geometry.coordinates);
  return box.minX <= box.maxX ? box : null;
}

/** Area in square level-0 pixels, holes taken off. */
export function areaOf(geometry: Geometry): number {
  const ofPolygon = (rings: Ring[]) => rings.reduce((sum, ring, place) => sum + (place ? -1 : 1) * ringArea(ring), 0);
  return polygonsOf(geometry).reduce((sum, rings) => sum + ofPolygon(rings), 0);
}

function ringArea(ring: Ring): number {
  let twice = 0;
  for (let now = 0; now < ring.length; now += 1) {
    const [x0, y0] = ring[now]!;
    const [x1, y1] = ring[(now + 1) % ring.length]!;
    twice += x0 * y1 - x1 * y0;
  }
  return Math.abs(twice) / 2;
}

/** Area in words: mm² where the pixel size is known, else pixels. */
export function areaText(geometry: Geometry, mpp: number | null): string {
  const area = areaOf(geometry);
  if (area === 0) return geometry.type === "Point" || geometry.type === "MultiPoint" ? "a point" : "no area";
  if (mpp === null) return `${Math.round(area).toLocaleString("en")} px²`;
  const mm2 = (area * mpp * mpp) / 1e6;
  return mm2 >= 0.01 ? `${mm2.toPrecision(3)} mm²` : `${Math.round(mm2 * 1e6).toLocaleString("en")} µm²`;
}

/** The shape of a region; null where it has no area (a point, a line), which is listed but not drawn. */
export function shapeOf(geometry: Geometry): Shape | null {
  const bounds = boxOf(geometry);
  const polygons = polygonsOf(geometry);
  if (!bounds || polygons.length === 0) return null;
  const rings = polygons[0]!;
  if (polygons.length === 1 && rings.length === 1) {
    const points = open(rings[0]!);
    if (isBox(points, bounds)) {
      const { minX: x, minY: y } = bounds;
      const rectangle: RectangleGeometry = { x, y, w: bounds.maxX - x, h: bounds.maxY - y, bounds };
      return { type: ShapeType.RECTANGLE, geometry: rectangle };
    }
    const polygon: PolygonGeometry = { points, bounds };
    return { type: ShapeType.POLYGON, geometry: polygon };
  }
  const element = (parts: Ring[]) => ({
    rings: parts.map((ring) => ({ points: open(ring) })),
    bounds: boxOf({ type: "Polygon", coordinates: parts })!,
  });
  const several: MultiPolygonGeometry = { polygons: polygons.map(element), bounds };
  return { type: ShapeType.MULTIPOLYGON, geometry: several };
}

/** GeoJSON of a shape, within a slide of this size; null where nothing with an area is left of it. */
export function geometryOf(shape: Shape, width: number, height: number): Geometry | null {
  const inside = ([x = 0, y = 0]: number[]): Point => [round(Math.min(width, Math.max(0, x))), round(Math.min(height, Math.max(0, y)))];
  const closed = (points: number[][]): Ring => {
    const ring = points.map(inside);
    return [...ring, ring[0]!];
  };
  const geometry = ringsOf(shape, closed);
  return geometry && areaOf(geometry) > 0 ? geometry : null;
}

function ringsOf(shape: Shape, closed: (points: number[][]) => Ring): Geometry | null {
  if (shape.type === ShapeType.RECTANGLE) {
    return { type: "Polygon", coordinates: [closed(corners(shape.geometry as RectangleGeometry))] };
  }
  if (shape.type === ShapeType.POLYGON) {
    return { type: "Polygon", coordinates: [closed((shape.geometry as PolygonGeometry).points)] };
  }
  if (shape.type !== ShapeType.MULTIPOLYGON) return null;
  const parts = (shape.geometry as MultiPolygonGeometry).polygons.map(({ rings }) => rings.map(({ points }) => closed(points)));
  return parts.length === 1 ? { type: "Polygon", coordinates: parts[0] } : { type: "MultiPolygon", coordinates: parts };
}

/** Corners of a rectangle, turned by `rot` radians about its middle. */
function corners({ x, y, w, h, rot = 0 }: RectangleGeometry): Point[] {
  const [cx, cy, cos, sin] = [x + w / 2, y + h / 2, Math.cos(rot), Math.sin(rot)];
  const turned = (right: number, down: number): Point => [cx + right * cos - down * sin, cy + right * sin + down * cos];
  return [turned(-w / 2, -h / 2), turned(w / 2, -h / 2), turned(w / 2, h / 2), turned(-w / 2, h / 2)];
}

/** Without the point that closes the ring. */
function open(ring: Ring): Point[] {
  const points = ring.map(([x, y]): Point => [x, y]);
  const [first, last] = [points[0], points[points.length - 1]];
  return points.length > 3 && first![0] === last![0] && first![1] === last![1] ? points.slice(0, -1) : points;
}

function isBox(points: Point[], { minX, minY, maxX, maxY }: Box): boolean {
  const onCorner = ([x, y]: Point) => (x === minX || x === maxX) && (y === minY || y === maxY);
  const alongSide = ([x0, y0]: Point, [x1, y1]: Point) => (x0 === x1) !== (y0 === y1);
  return points.length === 4 && points.every(onCorner) && points.every((point, at) => alongSide(point, points[(at + 1) % 4]!));
}

const round = (value: number): number => Math.round(100 * value) / 100;
