// Which numbers are shown over the slide, and how.

import { tiles as fetchTiles, type Slide, type Tiles } from "../api";
import { TileField } from "./field";
import type { View } from "./overlay";
import { ScoreRaster } from "./raster";

export interface Loaded {
  tiles: Tiles;
  field: TileField;
  failed: TileField;
}

/** Tiles with their numbers, each asked for once for both views. */
export class TileStore {
  private readonly known = new Map<string, Promise<Loaded>>();

  constructor(private readonly slide: Slide) {}

  /** Of a model's score, or of the grid (model null). What failed is asked for anew the next time. */
  load(model: string | null, score: string): Promise<Loaded> {
    const key = JSON.stringify([model, score]);
    const before = this.known.get(key);
    if (before) return before;
    const loading = fetchTiles(this.slide.id, model, score).then((tiles) => ({
      tiles,
      field: new TileField(tiles.xy, tiles.span_px),
      failed: new TileField(tiles.failed, tiles.span_px),
    }));
    this.known.set(key, loading);
    loading.catch(() => this.known.delete(key));
    return loading;
  }
}

export interface Choice {
  /** Null: the grid's own numbers (share of tissue). */
  model: string | null;
  score: string;
  column: number;
}

export type Range = "cohort" | "definition" | "slide";

export class ScoreLayer {
  on = true;
  opacity = 0.5;
  map = "engine";
  low = 0;
  high = 1;
  threshold = -Infinity;
  choice: Choice | null = null;
  loaded: Loaded | null = null;
  problem: string | null = null;
  busy = false;
  private raster: ScoreRaster | null = null;
  private readonly listeners: (() => void)[] = [];

  constructor(private readonly store: TileStore) {}

  /** Called after every change: of the numbers, of the range, of the look. */
  onChange(listener: () => void): void {
    this.listeners.push(listener);
  }

  get column(): Tiles["columns"][number] | null {
    return (this.choice && this.loaded?.tiles.columns[this.choice.column]) ?? null;
  }

  get name(): string {
    if (!this.choice) return "No scores";
    return this.column?.name ?? this.choice.score;
  }

  async choose(choice: Choice): Promise<void> {
    this.choice = choice;
    this.busy = true;
    this.problem = null;
    this.changed();
    try {
      const loaded = await this.store.load(choice.model, choice.score);
      if (this.choice !== choice) return; // another choice was made meanwhile
      this.loaded = loaded;
      this.threshold = -Infinity;
      this.raster = this.column && new ScoreRaster(loaded.field, this.column.values);
      this.useRange(this.cohort ? "cohort" : "definition");
    } catch (error) {
      if (this.choice !== choice) return;
      this.loaded = this.raster = null;
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this.busy = false;
    this.repaint();
  }

  /** Range of the colours in the run's own files, which is the same for all its slides; null for other numbers. */
  get cohort(): [number, number] | null {
    return this.choice?.column === 0 ? (this.loaded?.tiles.display ?? null) : null;
  }

  /** "cohort": that of the run's files; "definition": the score's own limits; "slide": what occurs here. */
  useRange(which: Range): void {
    const column = this.column;
    if (!column) return;
    const own: [number, number] = which === "slide" ? extremes(column.values) : [column.low, column.high];
    [this.low, this.high] = (which === "cohort" && this.cohort) || own;
    this.repaint();
  }

  /** After `low`, `high`, `threshold` or `map` was set. */
  repaint(): void {
    this.raster?.paint(this);
    this.changed();
  }

  changed(): void {
    for (const listener of this.listeners) listener();
  }

  draw(context: CanvasRenderingContext2D, view: View): void {
    if (!this.on || !this.raster) return;
    context.globalAlpha = this.opacity;
    this.raster.draw(context, view, this);
    context.globalAlpha = 1;
  }

  /** Tiles whose number is not below the threshold. */
  shown(): number {
    const column = this.column;
    if (!column) return 0;
    return column.values.reduce((sum, value) => sum + (value >= this.threshold ? 1 : 0), 0);
  }
}

const extremesOf = new WeakMap<Float32Array, [number, number]>();

/** Smallest and largest number; (0, 1) where there is none. */
export function extremes(values: Float32Array): [number, number] {
  const known = extremesOf.get(values);
  if (known) return known;
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const found: [number, number] = low <= high ? [low, high] : [0, 1];
  extremesOf.set(values, found);
  return found;
}

/** What can be shown: every score of every model, and the grid's share of tissue. */
export function choicesOf(slide: Slide): Choice[] {
  const choices: Choice[] = Object.entries(slide.scores).flatMap(([model, scores]) =>
    scores.map((score) => ({ model, score, column: 0 })),
  );
  if (slide.grid) choices.push({ model: null, score: "grid", column: 0 });
  return choices;
}

/** What to show beside a view: another model's score, another score, another number, at last the grid's. */
export function besides(slide: Slide, scores: ScoreLayer): Choice | null {
  const now = scores.choice;
  const choices = choicesOf(slide);
  const scored = choices.filter((choice) => choice.model !== null);
  const next =
    (scores.loaded?.tiles.columns.length ?? 0) > 1 && now ? { ...now, column: now.column === 0 ? 1 : 0 } : null;
  return (
    scored.find((choice) => choice.model !== now?.model && choice.score === now?.score) ??
    scored.find((choice) => choice.model !== now?.model || choice.score !== now.score) ??
    next ??
    choices.at(-1) ??
    null
  );
}
