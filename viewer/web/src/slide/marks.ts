// Lines and areas over the slide: tissue outline, tile grid, failed tiles, annotations.

import type { GeoJSON, Geometry, Slide } from "../api";
import { h } from "../dom";
import type { TileField } from "./field";
import type { View } from "./overlay";
import { ScoreRaster } from "./raster";
import type { Loaded } from "./scores";

export interface Toggle {
  on: boolean;
  opacity: number;
}

export type MarkName = "tissue" | "grid" | "failed" | "annotations";

interface Shape {
  path: Path2D;
  colour: string;
}

const FLAT = { low: 0, high: 1, threshold: -Infinity };
const TISSUE = "#0b6e4f";
const PALETTE = ["#b4235a", "#1d4ed8", "#a15c00", "#0f766e", "#7e22ce", "#4d7c0f", "#be123c", "#334155"];

export class Marks {
  readonly toggles: Record<MarkName, Toggle> = {
    tissue: { on: false, opacity: 0.9 },
    grid: { on: false, opacity: 0.6 },
    failed: { on: true, opacity: 0.8 },
    annotations: { on: true, opacity: 0.9 },
  };
  /** Names of the annotations' classes with their colours. */
  readonly classes = new Map<string, string>();
  private grid: TileField | null = null;
  private failed: TileField | null = null;
  /** One picture of all tiles for views where they are too many, or too small, to be drawn one by one. */
  private readonly rasters = new Map<TileField, ScoreRaster>();
  private tissue: Path2D | null = null;
  private annotations: Shape[] = [];
  private readonly hatch = hatching();

  setTissue(found: GeoJSON): void {
    this.tissue = new Path2D();
    for (const feature of found.features) addGeometry(this.tissue, feature.geometry);
  }

  setGrid(loaded: Loaded): void {
    [this.grid, this.failed] = [loaded.field, loaded.failed];
  }

  setAnnotations(found: GeoJSON): void {
    this.annotations = found.features.map(({ geometry, properties }) => {
      const path = new Path2D();
      addGeometry(path, geometry);
      return { path, colour: this.colourOf(properties.classification?.name ?? properties.name ?? "no class") };
    });
  }

  draw(context: CanvasRenderingContext2D, view: View, failed: TileField | null): void {
    const { toggles } = this;
    if (toggles.failed.on) this.drawFailed(context, view, failed ?? this.failed);
    if (toggles.grid.on && this.grid) this.drawGrid(context, view, this.grid);
    context.translate(-view.left, -view.top);
    if (toggles.tissue.on && this.tissue)
      this.outline(context, view, { path: this.tissue, colour: TISSUE }, toggles.tissue);
    if (toggles.annotations.on) {
      for (const shape of this.annotations) this.outline(context, view, shape, toggles.annotations, 0.12);
    }
    context.translate(view.left, view.top);
    context.globalAlpha = 1;
  }

  private colourOf(name: string): string {
    const known = this.classes.get(name) ?? PALETTE[this.classes.size % PALETTE.length]!;
    this.classes.set(name, known);
    return known;
  }

  /** A line in `colour` on a wider pale one, so that it is seen on any stain. */
  private outline(context: CanvasRenderingContext2D, view: View, shape: Shape, toggle: Toggle, fill = 0): void {
    context.lineJoin = "round";
    const pixel = window.devicePixelRatio / view.scale;
    if (fill) {
      context.globalAlpha = fill * toggle.opacity;
      context.fillStyle = shape.colour;
      context.fill(shape.path, "evenodd");
    }
    context.globalAlpha = toggle.opacity;
    for (const [colour, width] of [
      ["#ffffff", 3.5],
      [shape.colour, 1.75],
    ] as const) {
      context.strokeStyle = colour;
      context.lineWidth = width * pixel;
      context.stroke(shape.path);
    }
  }

  private drawGrid(context: CanvasRenderingContext2D, view: View, field: TileField): void {
    context.globalAlpha = this.toggles.grid.opacity;
    if (field.span * view.scale < 6) {
      // lines would run into one area
      context.globalAlpha *= 0.4;
      this.raster(field, "grid").draw(context, view, { ...FLAT, map: "grid" });
      return;
    }
    context.strokeStyle = "#1e3a8a";
    context.lineWidth = window.devicePixelRatio / view.scale;
    context.stroke(inView(field, view));
  }

  private drawFailed(context: CanvasRenderingContext2D, view: View, field: TileField | null): void {
    if (!field?.count) return;
    context.globalAlpha = this.toggles.failed.opacity;
    if (field.span * view.scale < 6) {
      this.raster(field, "failed").draw(context, view, { ...FLAT, map: "failed" });
      return;
    }
    const pattern = context.createPattern(this.hatch, "repeat")!;
    pattern.setTransform(new DOMMatrix().scale(1 / view.scale)); // the hatching keeps its width on the screen
    context.fillStyle = pattern;
    context.fill(inView(field, view));
  }

  private raster(field: TileField, map: string): ScoreRaster {
    const known = this.rasters.get(field);
    if (known) return known;
    const made = new ScoreRaster(field, new Float32Array(field.count));
    made.paint({ ...FLAT, map });
    this.rasters.set(field, made);
    return made;
  }
}

function inView(field: TileField, view: View): Path2D {
  const path = new Path2D();
  field.visible(view.left, view.top, view.right, view.bottom, (tile) =>
    path.rect(field.xy[2 * tile]! - view.left, field.xy[2 * tile + 1]! - view.top, field.span, field.span),
  );
  return path;
}

/** Which of the layers a slide has at all. */
export function marksOf(slide: Slide): MarkName[] {
  const there: [MarkName, boolean][] = [
    ["tissue", slide.tissue],
    ["grid", slide.grid],
    ["failed", slide.failed_tiles > 0],
    ["annotations", slide.annotations],
  ];
  return there.filter(([, has]) => has).map(([name]) => name);
}

type Ring = [number, number][];

function addGeometry(path: Path2D, geometry: Geometry): void {
  const parts = geometry.coordinates as unknown[];
  if (geometry.type === "Polygon") (parts as Ring[]).forEach((ring) => addRing(path, ring, true));
  else if (geometry.type === "MultiPolygon") (parts as Ring[][]).flat().forEach((ring) => addRing(path, ring, true));
  else if (geometry.type === "LineString") addRing(path, parts as Ring, false);
  else if (geometry.type === "MultiLineString") (parts as Ring[]).forEach((line) => addRing(path, line, false));
  else if (geometry.type === "Point") addPoint(path, parts as [number, number]);
  else if (geometry.type === "MultiPoint") (parts as Ring).forEach((point) => addPoint(path, point));
}

function addRing(path: Path2D, ring: Ring, closed: boolean): void {
  ring.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
  if (closed) path.closePath();
}

function addPoint(path: Path2D, [x, y]: [number, number]): void {
  const radius = 20; // level-0 pixels
  path.moveTo(x + radius, y);
  path.arc(x, y, radius, 0, 2 * Math.PI);
}

/** Grey with diagonal lines: no data. */
export function hatching(): HTMLCanvasElement {
  const side = 8;
  const canvas = h("canvas", { width: side, height: side });
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#969696";
  context.fillRect(0, 0, side, side);
  context.strokeStyle = "#e6e6e6";
  context.lineWidth = 2;
  for (const shift of [-side, 0, side]) {
    context.beginPath();
    context.moveTo(shift - 2, side + 2);
    context.lineTo(shift + side + 2, -2);
    context.stroke();
  }
  return canvas;
}
